"""The operators of an int8 file in the arithmetic of the engines, put into a simulated network (simulation.py).

Summed in float32, a value that lies near the border of two steps falls to either side of it, and the layers after it pass
that on. Here, as in every engine, a layer adds up integers, without error. What follows is what ONNX Runtime's kernels and
XNNPACK (LiteRT's, on x86 and ARM) do:

- layer: the sum as float32, times step read · step of the weights / step written in float32, rounded half to even;
- average: the mean of the integers, rounded half to even;
- addition: ONNX Runtime on x86 multiplies the unsigned integers with step read / step written in float32 and adds with fused
  multiply-adds (`MlasQLinearAdd`); on ARM it shifts integers, which is not reckoned with. XNNPACK multiplies both integers
  with integers of at most 21 bits in the place of step read / step written, and shifts the sum back, half upwards
  (`xnn_init_qs8_add_minmax_scalar_params`).

Products, concatenations, and batch norms and ReLUs that are not fused compute in float32, as layers in float do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from edgecompress import sites
from edgecompress.compress.quantize.folding import Engine
from edgecompress.compress.quantize.rounding import output_axis

_BITS = 21
"""Of the larger multiplier of an addition in XNNPACK."""

_EXACT = 2**24
"""Integers below it are added up without error in float32, which is several times as fast as float64."""

_FINE = 2.0**-16
"""Of the step written, what the bias of a channel of zeros is rounded to: its weights have no step."""


class _Layer(nn.Module):
    """A layer in float32 outside and integers inside. weights: their steps, (channels,) or (); read, written: steps."""

    factor: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, weights: Tensor, read: float, written: float) -> None:
        super().__init__()
        self.read, self.written = read, written
        self.layer = copy.deepcopy(layer).double()
        self.layer.bias = None
        steps = torch.where(weights > 0, weights.double(), _FINE * written / read)
        axis, shape, after = output_axis(layer), [1] * layer.weight.dim(), [-1] + [1] * (layer.weight.dim() - 2)
        shape[axis] = -1
        with torch.no_grad():
            levels = self.layer.weight.copy_(torch.round(self.layer.weight / steps.reshape(shape))).abs()
            if levels.sum([k for k in range(levels.dim()) if k != axis]).max() * 255 < _EXACT:
                self.layer.float()
            bias = torch.zeros(()) if layer.bias is None else torch.round(layer.bias / (steps * read)).reshape(after)
        self.register_buffer("bias", bias.double())
        factor = steps.float() * torch.tensor(read) / torch.tensor(written)
        self.register_buffer("factor", factor.reshape(after))

    def forward(self, x: Tensor) -> Tensor:
        sums = self.layer(torch.round(x / self.read).to(self.layer.weight.dtype)).double() + self.bias
        return torch.round(sums.float() * self.factor) * self.written


class _Shifted(nn.Module):
    """XNNPACK's addition of multiples of the steps a and b, to multiples of the step `written`."""

    def __init__(self, a: float, b: float, written: float) -> None:
        super().__init__()
        self.steps, self.written = (a, b), written
        ratios = [float(np.float32(step) / np.float32(written)) for step in self.steps]
        self.shift = _BITS - math.frexp(max(ratios))[1]
        self.factors = [round(math.ldexp(ratio, self.shift)) for ratio in ratios]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = (
            torch.round(v / s).long() * f for v, s, f in zip((x, y), self.steps, self.factors, strict=True)
        )
        return ((first + second + (1 << (self.shift - 1))) >> self.shift).float() * self.written


class _Fused(nn.Module):
    """ONNX Runtime's addition of multiples of the steps a and b, to multiples of `written`. zeros: their zero points, as uint8."""

    def __init__(self, a: float, b: float, written: float, zeros: tuple[int, int, int]) -> None:
        super().__init__()
        self.steps, self.written, self.zeros = (a, b), written, zeros
        ratios = [np.float32(step) / np.float32(written) for step in self.steps]
        self.constant = float(
            np.float32(zeros[2]) - (ratios[0] * np.float32(zeros[0]) + ratios[1] * np.float32(zeros[1]))
        )
        self.ratios = [float(ratio) for ratio in ratios]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = (  # the product of an 8-bit number and a float32 is exact in float64
            (torch.round(v / s) + z).double() * r
            for v, s, z, r in zip((x, y), self.steps, self.zeros, self.ratios, strict=False)
        )
        total = (first + (second + self.constant).float().double()).float()
        return (torch.round(total) - self.zeros[2]) * self.written


class _Levels(nn.Module):
    """Multiples of a step → integers."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x / self.step)


class _Mean(nn.Module):
    """A mean of multiples of `read`, in those → the nearest multiple of `written`."""

    def __init__(self, read: float, written: float) -> None:
        super().__init__()
        self.factor, self.written = read / written, written

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * self.factor) * self.written


def put(
    traced: fx.GraphModule,
    likes: Mapping[str, str],
    steps: Mapping[str, float],
    zeros: Mapping[str, int],
    weights: Mapping[fx.Node, Tensor],
    engine: Engine,
) -> dict[str, fx.Node]:
    """Replace layers, averages and additions of a trace whose batch norms are folded, in place.

    likes: as `sites.scales` found them before. steps, zeros: site → its step and its zero point, as uint8. weights: node of a
    layer that is in integers, and computes with rounded weights and bias already → the steps of its weights, (channels,) or
    (). Returns average → the node that now has its value. The trace is to be recompiled then.
    """
    new: list[tuple[fx.Node, nn.Module]] = []
    for node, weight_steps in weights.items():
        read, end = steps[likes[node.args[0].name]], _end(traced, node, likes)
        if end is not None and read > 0 and steps[end] > 0:
            new.append((node, _Layer(traced.get_submodule(str(node.target)), weight_steps, read, steps[end])))
    for node in sites.additions(traced):
        ends = (*(likes.get(term.name) for term in node.args), _end(traced, node, likes))
        known = [end for end in ends if end is not None and steps[end] > 0]
        if len(known) == 3:
            a, b, written = (steps[end] for end in known)
            points = (zeros[known[0]], zeros[known[1]], zeros[known[2]])
            shifted = engine == "litert"
            new.append((node, _Shifted(a, b, written) if shifted else _Fused(a, b, written, points)))
    for node, module in new:
        name = f"integers_{node.name}"
        traced.add_submodule(name, module)
        node.op, node.target = "call_module", name
    means: dict[str, fx.Node] = {}
    for node in sites.averages(traced):
        source = node.all_input_nodes[0]
        read, written = steps[likes[source.name]], steps[node.name]
        if read > 0 and written > 0:
            levels, mean = f"levels_{node.name}", f"mean_{node.name}"
            traced.add_submodule(levels, _Levels(read))
            traced.add_submodule(mean, _Mean(read, written))
            with traced.graph.inserting_before(node):
                node.replace_input_with(source, traced.graph.call_module(levels, (source,)))
            means[node.name] = insert(traced, node, mean)
    return means


def _end(traced: fx.GraphModule, node: fx.Node, likes: Mapping[str, str]) -> str | None:
    """The site that a node writes; None when a batch norm that could not be folded lies between."""
    while node.name not in likes:
        (node,) = node.users
        if node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), sites.NORMS):
            return None
    return node.name


def insert(module: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    """Put a call of the submodule `name` between a node and all that read it. The module is to be recompiled then."""
    readers = list(node.users)
    with module.graph.inserting_after(node):
        new = module.graph.call_module(name, (node,))
    for reader in readers:
        reader.replace_input_with(node, new)
    return new
