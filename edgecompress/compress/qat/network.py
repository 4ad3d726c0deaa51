"""The network that is trained: the model's own modules, with rounding put between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from edgecompress import histograms, quantization, sites
from edgecompress.compress.quantize.rounding import limit, rounded, rounded_weight

if TYPE_CHECKING:
    from edgecompress.compress.qat import Params
    from edgecompress.data import Dataset

_LEVELS = 256
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_MOMENTUM = 0.01
"""Weight of the newest batch in an observed range."""


class _Rounded(torch.autograd.Function):
    """Rounding in one pass over the values: half of the time of a training with rounding would go into five passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor) -> Tensor:
        low, high = ends.tolist()
        scale = (high - low) / (_LEVELS - 1)
        out, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(
            x, scale, round(-low / scale), 0, _LEVELS - 1
        )
        ctx.save_for_backward(inside, out)
        ctx.middle = (low + high) / 2
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        inside, out = ctx.saved_tensors
        (gradient,) = gradients
        passed = gradient * inside
        if not ctx.needs_input_grad[1]:
            return passed, None
        clipped = gradient - passed
        above = (clipped * (out > ctx.middle)).sum()
        return passed, torch.stack([clipped.sum() - above, above])


class Rounding(nn.Module):
    """Rounds a tensor to 256 levels between `low` ≤ 0 and `high` ≥ 0, 0 among them; gradients pass where it is not clipped.

    Learned: the ends are parameters, and a clipped value's gradient goes to the end that clipped it.
    """

    def __init__(self, low: float, high: float, *, learned: bool) -> None:
        super().__init__()
        self.learned = learned
        ends = torch.tensor([low, high])
        if learned:
            self.ends = nn.Parameter(ends)
        else:
            self.register_buffer("ends", ends)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.learned:
            with torch.no_grad():
                least, most = x.detach().aminmax()
                seen = torch.stack([least.clamp(max=0), most.clamp(min=0)]).to(self.ends)
                self.ends.lerp_(seen, _MOMENTUM)
        low, high = self.ends[0].clamp(max=0), self.ends[1].clamp(min=0)
        if high <= low:
            return x
        if not self.training:
            return rounded(x, low, high)
        # 16 bits of mixed precision do not hold 256 levels
        result: Tensor = _Rounded.apply(x.float(), torch.stack([low, high]))
        return result


class QuantisedTraining:
    """`module`: the trace of the model with a `Rounding` behind every site. It shares the model's modules, so that training it
    trains the model. The rounding of weights holds inside `rounding()` only."""

    def __init__(self, model: nn.Module, params: Params, data: Dataset) -> None:
        from edgecompress.data import calibration_images

        self._model, self._bits, self._fixed = model, params.weight_bits, params.batch_norm == "fixed"
        images = torch.from_numpy(calibration_images(data))
        model.eval()
        starts = _starting_ranges(model, images, quantization.Quantization(params.calibration))
        self.module = sites.trace(model)
        self._sites = sites.find(self.module)
        self._roundings: dict[str, Rounding] = {}
        nodes = {node.name: node for node in self.module.graph.nodes}
        for site in self._sites:
            if site.like not in self._roundings:
                name = f"rounding_{site.like}"
                self._roundings[site.like] = Rounding(*starts[site.like], learned=params.ranges == "learned")
                self.module.add_submodule(name, self._roundings[site.like])
            _insert(self.module, nodes[site.node], f"rounding_{site.like}")
        self.module.recompile()
        self.module.train()

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Inside, every layer computes with its weight rounded per output channel, and batch norms as in the file if so asked."""
        forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        for module in self._model.modules():
            if isinstance(module, sites.LAYERS):
                forwards[module] = _rounded_forward(module, self._bits)
            elif isinstance(module, _NORMS) and module.running_mean is not None and self._fixed:
                forwards[module] = _fixed_forward(module)
        for module, forward in forwards.items():
            module.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in forwards:
                del module.forward  # the class's own again

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Site → (low, high), as trained."""
        found = {}
        for site in self._sites:
            low, high = (float(end) for end in self._roundings[site.like].ends.detach())
            found[site.node] = (min(low, 0.0), max(high, 0.0))
        return found


def simulated(model: nn.Module, bits: int = 8) -> nn.Module:
    """What an int8 file of a trained model computes, in floating point: for comparison with the engines, not for training.

    Batch norms are folded, weights and biases rounded to the scales of the file (a bias to input scale times weight scale,
    in 32 bits), activations at every site. `model` is left as it was. ValueError: it was not trained by method qat.
    """
    ranges = quantization.get(model).ranges
    if not ranges:
        raise ValueError("the model has no trained ranges: method qat gives them")
    traced = sites.trace(copy.deepcopy(model).eval())
    found, likes = sites.find(traced), sites.scales(traced)
    modules = dict(traced.named_modules())
    nodes = {node.name: node for node in traced.graph.nodes}
    with torch.no_grad():
        for node in nodes.values():
            layer = modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, sites.LAYERS):
                norm = sites.batch_norm(traced, node)
                if norm is not None:
                    _fold(layer, modules[str(norm.target)])
                    traced.set_submodule(str(norm.target), nn.Identity())
                low, high = ranges[likes[node.args[0].name]]
                _round_layer(layer, (high - low) / 255, bits)
    for site in found:
        low, high = ranges[site.node]
        traced.add_submodule(f"rounding_{site.node}", Rounding(low, high, learned=False))
        _insert(traced, nodes[site.node], f"rounding_{site.node}")
    traced.recompile()
    return traced.eval()


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    more = () if isinstance(layer, nn.Linear) else (isinstance(layer, nn.ConvTranspose2d),)
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, *more
    )


def _round_layer(layer: nn.Module, input_step: float, bits: int) -> None:
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    steps = layer.weight.abs().amax([k for k in range(layer.weight.dim()) if k != axis]) / limit(bits) * input_step
    layer.weight.copy_(rounded_weight(layer, bits, "channel"))
    if layer.bias is not None:
        whole = torch.where(
            steps > 0, torch.round(layer.bias.double() / steps.double()) * steps.double(), layer.bias.double()
        )
        layer.bias.copy_(whole)


def _starting_ranges(
    model: nn.Module, images: Tensor, settings: quantization.Quantization
) -> dict[str, tuple[float, float]]:
    def feed() -> Iterator[dict[str, Any]]:
        for batch in images.split(32):
            yield {name: value.numpy() for name, value in sites.values(model, batch).items()}

    kept = histograms.collect(feed)
    return {name: histograms.covered(histogram, settings) for name, histogram in kept.items()}


def _insert(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    readers = list(node.users)
    with module.graph.inserting_after(node):
        new = module.graph.call_module(name, (node,))
    for reader in readers:
        reader.replace_input_with(node, new)


def _rounded_forward(layer: nn.Module, bits: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight = layer.weight + (rounded_weight(layer, bits, "channel") - layer.weight).detach()
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, layer.bias)
        if isinstance(layer, nn.ConvTranspose2d):
            return functional.conv_transpose2d(
                x, weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
            )
        return layer._conv_forward(x, weight, layer.bias)

    return forward


def _fixed_forward(norm: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    return forward
