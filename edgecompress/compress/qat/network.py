"""The network that is trained: the model's own modules, with rounding put between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecompress import quantization, sites
from edgecompress.compress.quantize.folding import compute
from edgecompress.compress.quantize.integers import insert
from edgecompress.compress.quantize.rounding import rounded, rounded_weight
from edgecompress.compress.quantize.simulation import calibrated

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
        starts = calibrated(model, images, quantization.Quantization(params.calibration))
        self.module = sites.trace(model)
        self._sites = sites.find(self.module)
        self._roundings: dict[str, Rounding] = {}
        nodes = {node.name: node for node in self.module.graph.nodes}
        for site in self._sites:
            if site.like not in self._roundings:
                name = f"rounding_{site.like}"
                self._roundings[site.like] = Rounding(*starts[site.like], learned=params.ranges == "learned")
                self.module.add_submodule(name, self._roundings[site.like])
            insert(self.module, nodes[site.node], f"rounding_{site.like}")
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
            module.forward = forward
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


def _rounded_forward(layer: nn.Module, bits: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight = layer.weight + (rounded_weight(layer, bits, "channel") - layer.weight).detach()
        return compute(layer, x, weight, layer.bias)

    return forward


def _fixed_forward(norm: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    return forward
