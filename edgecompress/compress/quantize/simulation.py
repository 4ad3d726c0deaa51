"""What an int8 file of a network computes, in floating point: weights and activations rounded where the engines round them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecompress import histograms, quantization, sites
from edgecompress.compress.quantize.folding import folded
from edgecompress.compress.quantize.rounding import limit, output_axis, rounded, rounded_weight
from edgecompress.errors import UserError
from edgecompress.quantization import Quantization


class _Rounds(nn.Module):
    """Rounds a tensor to 256 levels between low ≤ 0 and high ≥ 0."""

    ends: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.register_buffer("ends", torch.tensor([min(low, 0.0), max(high, 0.0)]))

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, self.ends[0], self.ends[1])


def simulated(model: nn.Module, settings: Quantization | None = None, bits: int = 8) -> nn.Module:
    """What an int8 file of a model computes, in floating point: for comparison with the engines, not for training.

    settings: the file's; default: those of the model. Their ranges are needed: method qat gives them, or `calibrated`. Batch
    norms are folded, weights (of `bits` bits: 7 in a file of reduced range) and biases rounded to the scales of the file (a
    bias to input scale times weight scale, in 32 bits), activations at every site that an integer operator writes or reads.
    Layers that stay in float compute in it, with weights rounded to float16 where that is their precision. `model` is left
    as it was. ValueError: there are no ranges.
    """
    settings = quantization.get(model) if settings is None else settings
    ranges = settings.ranges
    if not ranges:
        raise ValueError("the model has no trained ranges: method qat gives them")
    traced = sites.trace(copy.deepcopy(model).eval())
    likes, integers = sites.scales(traced), sites.in_integers(traced, settings.float_layers)
    nodes = {node.name: node for node in traced.graph.nodes}
    fold(traced)
    with torch.no_grad():
        for node, layer in layer_nodes(traced):
            if str(node.target) not in settings.float_layers:
                low, high = ranges[likes[node.args[0].name]]
                _round_layer(layer, (high - low) / 255, bits, settings, str(node.target))
            elif settings.float_precision == "float16":
                layer.weight.copy_(layer.weight.half().float())
    for name in integers:
        traced.add_submodule(f"rounding_{name}", _Rounds(*ranges[name]))
        insert(traced, nodes[name], f"rounding_{name}")
    traced.recompile()
    return traced.eval()


def fold(traced: fx.GraphModule) -> None:
    """Fold the batch norms of a trace into its layers, in place. UserError: a layer with a batch norm computes twice."""
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
            weight, bias = folded(layer, module)
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            traced.set_submodule(str(norm.target), nn.Identity())


def layer_nodes(traced: fx.GraphModule) -> list[tuple[fx.Node, nn.Module]]:
    """The calls of convolution and linear layers, in the order in which they compute, and the layers."""
    modules = dict(traced.named_modules())
    found = [(node, modules[str(node.target)]) for node in traced.graph.nodes if node.op == "call_module"]
    return [(node, layer) for node, layer in found if isinstance(layer, sites.LAYERS)]


def _round_layer(layer: nn.Module, input_step: float, bits: int, settings: Quantization, name: str) -> None:
    weight = rounded_weight(layer, bits, settings.weights, settings.simulated_bits.get(name))
    axes = [k for k in range(weight.dim()) if k != output_axis(layer)] if settings.weights == "channel" else []
    # Rounding leaves the largest weight what it was, so the file's steps can be read from the rounded ones.
    step = weight.abs().amax(axes).double() / limit(bits) * input_step
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(torch.where(step > 0, torch.round(layer.bias.double() / step) * step, layer.bias.double()))


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


def insert(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Put a call of the submodule `name` between a node and all that read it. The module is to be recompiled then."""
    readers = list(node.users)
    with module.graph.inserting_after(node):
        new = module.graph.call_module(name, (node,))
    for reader in readers:
        reader.replace_input_with(node, new)
