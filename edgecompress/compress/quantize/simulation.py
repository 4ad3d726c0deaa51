"""What an int8 file of a network computes, in floating point: weights and activations rounded where the engines round them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edgecompress import histograms, quantization, sites
from edgecompress.compress.quantize import integers
from edgecompress.compress.quantize.folding import Engine, folded
from edgecompress.compress.quantize.rounding import few_bits_weight, limit, output_axis, rounded_weight
from edgecompress.errors import UserError
from edgecompress.quantization import Quantization


class _Rounds(nn.Module):
    """Rounds a tensor to 256 levels that are `step` apart, 0 the one of number `zero`. Step 0: leaves it alone."""

    def __init__(self, step: float, zero: int) -> None:
        super().__init__()
        self.step, self.zero = step, zero

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x / self.step).clamp(-self.zero, 255 - self.zero) * self.step if self.step > 0 else x


def simulated(
    model: nn.Module, settings: Quantization | None = None, bits: int = 8, engine: Engine | None = None
) -> nn.Module:
    """What an int8 file of a model computes, in floating point: for comparison with the engines, not for training.

    settings: the file's; default: those of the model. Their ranges are needed: method qat gives them, or `calibrated`. Batch
    norms are folded, weights (of `bits` bits: 7 in a file of reduced range) and biases rounded to the scales of the file (a
    bias to input scale times weight scale, in 32 bits), activations at every site that an integer operator writes or reads.
    Layers that stay in float compute in it, with weights rounded to float16 where that is their precision. engine: with its
    integer arithmetic, element by element (integers.py); None: sums in float32, which is faster and differs by a step now and
    then. `model` is left as it was. ValueError: there are no ranges.
    """
    settings = quantization.get(model) if settings is None else settings
    ranges = settings.ranges
    if not ranges:
        raise ValueError("the model has no trained ranges: method qat gives them")
    traced = sites.trace(copy.deepcopy(model).eval())
    likes, held = sites.scales(traced), sites.in_integers(traced, settings.float_layers)
    nodes = {node.name: node for node in traced.graph.nodes}
    steps = {name: _step(low, high, engine) for name, (low, high) in ranges.items()}
    zeros = {name: round(-min(low, 0.0) / steps[name]) if steps[name] > 0 else 0 for name, (low, _) in ranges.items()}
    weights: dict[fx.Node, Tensor] = {}
    fold(traced, engine)
    with torch.no_grad():
        for node, layer in layer_nodes(traced):
            if str(node.target) not in settings.float_layers:
                read = steps[likes[node.args[0].name]]
                weights[node] = _round_layer(layer, read, bits, settings, str(node.target))
            elif settings.float_precision == "float16":
                layer.weight.copy_(layer.weight.half().float())
    if engine is not None:
        nodes |= integers.put(traced, likes, steps, zeros, weights, engine)
    for name in held:
        traced.add_submodule(f"rounding_{name}", _Rounds(steps[name], zeros[name]))
        integers.insert(traced, nodes[name], f"rounding_{name}")
    traced.recompile()
    return traced.eval()


def _step(low: float, high: float, engine: Engine | None) -> float:
    """The distance of two of 256 levels, 0 among them; the LiteRT quantiser computes it in float32."""
    low, high = min(low, 0.0), max(high, 0.0)
    if engine == "litert":
        return float((np.float32(high) - np.float32(low)) / np.float32(255))
    return (high - low) / 255


def fold(traced: fx.GraphModule, engine: Engine | None = None) -> None:
    """Fold the batch norms of a trace into its layers, in place.

    engine: as in `folded`. UserError: a layer with a batch norm computes twice.
    """
    seen: set[str] = set()
    with torch.no_grad():
        for node, layer in layer_nodes(traced):
            norm = sites.batch_norm(traced, node)
            module = None if norm is None else traced.get_submodule(str(norm.target))
            if (
                norm is None or module is None or module.running_mean is None
            ):  # without one it goes by the batch, and stays
                continue
            if str(node.target) in seen:
                raise UserError(
                    f"the layer {node.target} computes twice, each time with a batch norm: what its int8 file computes cannot "
                    "be simulated",
                    fix="Leave max_drop out.",
                )
            seen.add(str(node.target))
            weight, bias = folded(layer, module, engine)
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            traced.set_submodule(str(norm.target), nn.Identity())


def layer_nodes(traced: fx.GraphModule) -> list[tuple[fx.Node, nn.Module]]:
    """The calls of convolution and linear layers, in the order in which they compute, and the layers."""
    modules = dict(traced.named_modules())
    found = [(node, modules[str(node.target)]) for node in traced.graph.nodes if node.op == "call_module"]
    return [(node, layer) for node, layer in found if isinstance(layer, sites.LAYERS)]


def _round_layer(layer: nn.Module, input_step: float, bits: int, settings: Quantization, name: str) -> Tensor:
    """Round weight and bias in place. The steps of the weights: (channels,), or () where all channels have one."""
    few = settings.simulated_bits.get(name)
    if few is not None:
        layer.weight.copy_(few_bits_weight(layer, few))
    axes = [k for k in range(layer.weight.dim()) if k != output_axis(layer)] if settings.weights == "channel" else []
    found = layer.weight.abs().amax(axes) / limit(bits)
    layer.weight.copy_(rounded_weight(layer, bits, settings.weights))
    if layer.bias is not None:
        step = (found * input_step).double()  # a float32 in the file
        layer.bias.copy_(torch.where(step > 0, torch.round(layer.bias.double() / step) * step, layer.bias.double()))
    return found


def calibrated(model: nn.Module, images: Tensor, settings: Quantization) -> dict[str, tuple[float, float]]:
    """Site → range by the settings' rule on these images (N, C, H, W), of a model in eval mode."""

    def feed() -> Iterator[dict[str, Any]]:
        for batch in images.split(32):
            yield {name: value.numpy() for name, value in sites.values(model, batch).items()}

    kept = histograms.collect(feed)
    return {name: histograms.covered(histogram, settings) for name, histogram in kept.items()}


def of_inputs(traced: fx.GraphModule, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Layer → the range of what it reads."""
    likes = sites.scales(traced)
    return {str(node.target): ranges[likes[node.args[0].name]] for node, _ in layer_nodes(traced)}
