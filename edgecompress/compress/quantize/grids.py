"""The levels that the weights of a layer have in an int8 file, and weights that lie on them.

The file holds the weight with its batch norm folded in, symmetric, one scale per output channel or per tensor. A weight that
lies on the levels, the outermost among them, makes an exporter find the same scale again, so that its rounding changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecompress import sites
from edgecompress.compress.quantize.folding import folded, gain
from edgecompress.compress.quantize.rounding import output_axis, steps
from edgecompress.quantization import Granularity


@dataclass(frozen=True)
class Layer:
    """A layer, the batch norm that is folded into it, and "relu" or "relu6" where an engine fuses that as well."""

    name: str
    module: nn.Module
    norm: nn.Module | None
    activation: str | None


@dataclass(frozen=True)
class Grid:
    """The levels of a layer's folded weight: W ≈ step · integer, and what of W cannot be learned (bool)."""

    weight: Tensor
    bias: Tensor | None
    step: Tensor
    most: int
    fixed: Tensor

    def nearest(self) -> Tensor:
        return torch.round(self.weight / self.step).clamp(-self.most, self.most)

    def below(self) -> Tensor:
        """The level at or below W; the nearest one where nothing is learned."""
        return torch.where(self.fixed, self.nearest(), torch.floor(self.weight / self.step))


def learnable(model: nn.Module, names: list[str], granularity: Granularity) -> list[Layer]:
    """The named layers whose grid in the files is known, in the order in which they compute.

    Not: a layer that computes never or more than once, shares its weight with another, or is inside a module that torch.fx
    does not look into; transposed convolutions in groups; and, with one scale per tensor, a batch norm after a linear
    layer, which ONNX files do not fold, or after a transposed convolution, which not every converter may.
    UserError: the model cannot be traced.
    """
    traced = sites.trace(model)
    modules = dict(traced.named_modules())
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    found = []
    for node in traced.graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or name not in names or calls.count(name) > 1 or len(node.args) != 1:
            continue
        module = model.get_submodule(name)
        if not isinstance(module, sites.LAYERS) or owners[id(module.weight)] > 1:
            continue
        norm_node = sites.batch_norm(traced, node)
        norm = None if norm_node is None else modules[str(norm_node.target)]
        if norm is not None and norm.running_mean is None:  # it never folds: it goes by the batch
            norm_node = norm = None
        transposed = isinstance(module, nn.ConvTranspose2d)
        if transposed and module.groups > 1:
            continue
        if granularity == "tensor" and norm is not None and (transposed or isinstance(module, nn.Linear)):
            continue
        found.append(Layer(name, module, norm, sites.activation(traced, node if norm_node is None else norm_node)))
    return found


def grid(layer: Layer, most: int, granularity: Granularity) -> Grid:
    """The levels of a layer in a file."""
    weight, bias = layer.module.weight.detach().clone(), layer.module.bias
    if layer.norm is not None:
        weight, bias = folded(layer.module, layer.norm)
    step = steps(weight, output_axis(layer.module), most, granularity)
    outermost = weight.abs() / step >= most * (1 - 1e-6)
    exact = weight / step == torch.round(weight / step)
    return Grid(weight, None if bias is None else bias.detach(), step, most, outermost | exact)


def put(module: nn.Module, norm: nn.Module | None, levels: Grid, integers: Tensor) -> None:
    """Give the layer the weight that is `integers` on the grid once its batch norm is folded in; zeros are +0."""
    weight = integers * levels.step
    with torch.no_grad():
        if norm is not None:
            shape = [1] * weight.dim()
            shape[output_axis(module)] = -1
            factor = gain(norm).reshape(shape)
            # what a factor of 0 hides may be anything: it is left as it is
            weight = torch.where(factor == 0, module.weight, weight / factor)
        module.weight.copy_(torch.where(weight == 0, torch.zeros_like(weight), weight))
