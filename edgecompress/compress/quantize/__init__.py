"""Quantisation after training (PTQ): how the int8 exports of this model are made, and what prepares its weights for them.

What it does: puts settings beside the model that the exporters `onnx-int8` and `tflite-int8` follow: how the activations'
ranges come from the calibration images, one weight scale per channel or per tensor, and which layers stay in float. On
request it also changes the weights so that 8 bits cost less: cross-layer equalisation, bias correction, and learned rounding
(AdaRound). The float network computes the same afterwards (equalisation) or nearly (the others). Without this step an int8
export uses minimum and maximum, per channel, and leaves nothing in float.
Costs: seconds; the search for sensitive layers one pass over validation images for each layer; AdaRound an optimisation for each.
Needs: data, for bias correction, AdaRound and the search. Gains: accuracy of the int8 files, which have a quarter of the bytes and,
where the engine has integer kernels, less latency.
Papers: Jacob et al. 2018 (arXiv:1712.05877); Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721); Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"
(arXiv:2004.10568); Gholami et al. 2021, the survey (arXiv:2103.13630).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgecompress import patterns, quantization
from edgecompress.compress.contract import Context
from edgecompress.compress.quantize.adaround_spec import AdaRound
from edgecompress.errors import UserError
from edgecompress.quantization import Calibration, Granularity

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
    equalise: cross-layer equalisation before all else: even weight ranges between consecutive layers.
    correct_bias: take the mean error that rounding the weights causes in each output channel out of the biases.
    adaround: learn for each weight whether it is rounded up or down, so that its layer's outputs change least: true, or settings
        (iterations, lr, batch_size, images, regulariser, beta_start, beta_end, warm_up). Not with correct_bias.
    weight_bits: bits that the correction, AdaRound and the search reckon with: 8, or 7 for devices of x86 without VNNI.
    """

    calibration: Calibration = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    weights: Granularity = "channel"
    float_layers: patterns.LayerNames = ()
    float_worst: Annotated[int, Field(ge=0)] = 0
    equalise: bool = False
    correct_bias: bool = False
    adaround: AdaRound = None
    weight_bits: Annotated[int, Field(ge=7, le=8)] = 8


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, with settings; its weights changed in place where that was asked for.

    UserError: a layer name that matches nothing, nothing to quantise, no data where it is needed, a model that cannot be
    traced (equalise and adaround only), adaround with correct_bias or for weights that share values.
    """
    from edgecompress.compress.quantize import adaround, bias, equalisation, sensitivity

    quantization.refuse_other(model, "quantize")
    if params.adaround is not None and params.correct_bias:
        raise UserError(
            "adaround and correct_bias: both take out what rounding the weights does to a layer's outputs",
            fix="Keep one of the two.",
        )
    layers = layer_names(model)
    kept = patterns.matching(params.float_layers, layers, "float_layers")
    if params.float_worst and len(kept) + params.float_worst >= len(layers):
        raise UserError(
            f"float_worst: {params.float_worst} leaves no layer of {len(layers)} to quantise", fix="Ask for fewer."
        )
    if params.equalise:
        context.note("equalised_pairs", equalisation.equalise(model))
    if params.float_worst:
        effects = sensitivity.effects(model, context, [name for name in layers if name not in kept], params)
        context.note("effect_of_each_layer", effects)
        kept += sorted(effects, key=lambda name: -effects[name])[: params.float_worst]
    if params.correct_bias:
        corrected = bias.correct(model, context, [name for name in layers if name not in kept], params)
        context.note("corrected_layers", corrected)
    rounded_bits = None
    if params.adaround is not None:
        names = [name for name in layers if name not in kept]
        if adaround.round_weights(model, context, names, params, params.adaround).kept:
            rounded_bits = params.weight_bits
    chosen = tuple(name for name in layers if name in kept)
    context.note("float_layers", list(chosen))
    settings = quantization.Quantization(
        params.calibration, params.percentile, params.weights, chosen, rounded_bits=rounded_bits
    )
    quantization.put(model, settings)
    return model


def layer_names(model: nn.Module) -> list[str]:
    """Names of the convolution and fully connected layers in the order of their definition. UserError: there is none."""
    from torch import nn

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if not names:
        raise UserError("the model has no convolution or linear layer to quantise", fix="Use another model.")
    return names
