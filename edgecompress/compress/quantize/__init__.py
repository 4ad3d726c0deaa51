"""Quantisation after training (PTQ): how the int8 exports of this model are made, and what prepares its weights for them.

What it does: puts settings beside the model that the exporters `onnx-int8` and `tflite-int8` follow: how the activations'
ranges come from the calibration images, one weight scale per channel or per tensor, and which layers stay in float, and in
which: by name, by their effect, or as many as a budget of lost accuracy asks for. On request it also changes the weights so
that 8 bits cost less, by cross-layer equalisation, bias correction, and learned rounding (AdaRound): the float network computes
the same afterwards (equalisation) or nearly (the others). Or it puts them on the grid of fewer bits, to see what that would
cost. Without this step an int8 export uses minimum and maximum, per channel, and leaves nothing in float.
Costs: seconds; the search for sensitive layers one pass over validation images for each layer, a budget of accuracy one over
all of them for each layer that it puts into float; AdaRound an optimisation for each.
Needs: data, for bias correction, AdaRound and the searches. Gains: accuracy of the int8 files, which have a quarter of the bytes
and, where the engine has integer kernels, less latency.
Papers: Jacob et al. 2018 (arXiv:1712.05877); Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721); Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"
(arXiv:2004.10568); Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient Inference"
(arXiv:1902.06822), for grids of few bits; Gholami et al. 2021, the survey (arXiv:2103.13630).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress import patterns, quantization
from edgecompress.compress.contract import Context
from edgecompress.compress.quantize.adaround_spec import AdaRound
from edgecompress.errors import UserError
from edgecompress.quantization import Bits, Calibration, Granularity, Precision

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Params:
    """Parameters of quantisation after training.

    calibration: the range of an activation tensor: "minmax"; "percentile", which leaves out the outermost values; "mse",
        the least squared error; "entropy", the least Kullback-Leibler divergence.
    percentile: per cent of the values inside, for "percentile".
    weights: one scale per output "channel", or one per "tensor".
    float_layers: layers that stay in float, by name; `*` and `?` match as in file names.
    float_worst: so many more layers stay in float: those whose quantisation alone changes the outputs on the validation
        images most.
    max_drop: instead: so many more stay in float, most sensitive first, that the simulated int8 network's top-1 on the
        validation part is at most this much below the float network's: 0.003 is 0.3 points. None: no budget.
    float_precision: what the weights of those layers are stored as: "float32", or "float16" in half the bytes. They compute
        in float32 either way.
    equalise: cross-layer equalisation before all else: even weight ranges between consecutive layers.
    correct_bias: take the mean error that rounding the weights causes in each output channel out of the biases.
    adaround: learn for each weight whether it is rounded up or down, so that its layer's outputs change least: true, or settings
        (iterations, lr, batch_size, images, regulariser, beta_start, beta_end, warm_up). Not with correct_bias.
    weight_bits: bits of the weights in the files, which the correction, AdaRound and the searches reckon with: 8, or 7 for devices
        of x86 without VNNI.
    simulated_bits: only to see what fewer bits would do: the weights are put on the grid of so many, 2 to 8, and the files
        store them in 8 all the same. One number, or layers by pattern, {"fc*": 4}; those that no pattern matches, and those
        that stay in float, are left alone.
    """

    calibration: Calibration = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    weights: Granularity = "channel"
    float_layers: patterns.LayerNames = ()
    float_worst: Annotated[int, Field(ge=0)] = 0
    max_drop: Annotated[float, Field(ge=0, lt=1)] | None = None
    float_precision: Precision = "float32"
    equalise: bool = False
    correct_bias: bool = False
    adaround: AdaRound = None
    weight_bits: Literal[7, 8] = 8
    simulated_bits: Bits | dict[str, Bits] | None = None

    def __post_init__(self) -> None:
        if self.float_worst and self.max_drop is not None:
            raise ValueError("float_worst and max_drop both choose the layers that stay in float: give one of them")
        if self.float_precision != "float32" and not (
            self.float_layers or self.float_worst or self.max_drop is not None
        ):
            raise ValueError(
                "float_precision is for layers that stay in float: ask for some by float_layers or max_drop"
            )
        if self.adaround is not None and self.correct_bias:
            raise ValueError(
                "adaround and correct_bias both take out what rounding the weights does to a layer's outputs: keep one"
            )
        if self.simulated_bits == {}:
            raise ValueError("simulated_bits: name at least one layer")
        if self.simulated_bits is not None and self.adaround is not None:
            raise ValueError("adaround learns the rounding to the files' own bits: not with simulated_bits")
        if self.simulated_bits is not None and self.weights == "tensor":
            raise ValueError("simulated_bits have one scale per output channel: not with weights: tensor")


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, with settings; its weights changed in place where that was asked for.

    UserError: a layer name that matches nothing, nothing to quantise, no data where it is needed, a model that cannot be
    traced (equalise, adaround, max_drop), adaround for weights that share values, a budget out of reach (with the
    least loss that is not).
    """
    from edgecompress.compress.quantize import adaround, bias, budget, equalisation, sensitivity

    quantization.refuse_other(model, "quantize")
    layers = layer_names(model)
    kept = patterns.matching(params.float_layers, layers, "float_layers")
    bits = _simulated(params, layers)
    if params.float_worst and len(kept) + params.float_worst >= len(layers):
        raise UserError(
            f"float_worst: {params.float_worst} leaves no layer of {len(layers)} to quantise", fix="Ask for fewer."
        )
    if params.equalise:
        context.note("equalised_pairs", equalisation.equalise(model))
    if params.float_worst:
        effects = sensitivity.effects(model, context, [name for name in layers if name not in kept], params, bits)
        context.note("effect_of_each_layer", effects)
        kept += sorted(effects, key=lambda name: -effects[name])[: params.float_worst]
    if params.max_drop is not None:
        kept = budget.choose(model, context, layers, kept, params, bits, max_drop=params.max_drop)
    chosen = tuple(name for name in layers if name in kept)
    bits = {name: few for name, few in bits.items() if name not in chosen}
    if params.correct_bias:
        corrected = bias.correct(model, context, [name for name in layers if name not in kept], params, bits)
        context.note("corrected_layers", corrected)
    rounded_bits: Literal[7, 8] | None = None
    if params.adaround is not None:
        names = [name for name in layers if name not in kept]
        if adaround.round_weights(model, context, names, params, params.adaround).kept:
            rounded_bits = params.weight_bits
    if bits:
        _put_on_grids(model, bits, context)
    context.note("float_layers", list(chosen))
    settings = quantization.Quantization(
        params.calibration, params.percentile, params.weights, chosen,
        params.float_precision if chosen else "float32", bits, rounded_bits=rounded_bits,
    )  # fmt: skip
    quantization.put(model, settings)
    return model


def _simulated(params: Params, layers: list[str]) -> dict[str, int]:
    """Layer → bits of the layers whose weights are simulated in fewer bits than the 8 of the files."""
    if params.simulated_bits is None:
        return {}
    asked = patterns.of_layers(params.simulated_bits, layers, "simulated_bits", partial=True)
    return {name: bits for name, bits in asked.items() if bits < 8}


def _put_on_grids(model: nn.Module, bits: dict[str, int], context: Context) -> None:
    """Round the weights of these layers to their bits, in place; the record says that it is a simulation, and of what size."""
    import torch

    from edgecompress.compress.quantize.rounding import few_bits_weight

    with torch.no_grad():
        for name, few in bits.items():
            layer = model.get_submodule(name)
            layer.weight.copy_(few_bits_weight(layer, few))
    context.note("simulated", quantization.simulation(model, bits, "an 8-bit"))
    context.note("simulated_bits_of_each_layer", bits)
    context.note("bytes_apart_if_stored_in_these_bits", quantization.bytes_apart(model, bits))


def layer_names(model: nn.Module) -> list[str]:
    """Names of the convolution and fully connected layers in the order of their definition. UserError: there is none."""
    from torch import nn

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if not names:
        raise UserError("the model has no convolution or linear layer to quantise", fix="Use another model.")
    return names
