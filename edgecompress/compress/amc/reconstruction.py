"""The layer behind removed channels is fitted anew: least squares between what it gave before and what the kept channels can give.

Y = X·Wᵀ is a layer's output without its bias, at random points of training images, X its inputs there as the dense network has
them (a k×k convolution's unrolled into c·k² columns). Of the columns S that are kept, W' = argmin ‖Y − X_S·W'ᵀ‖². All that is
needed of the images is XᵀX, so that it is looked at once and every candidate costs the solution of a small system.
(He et al. 2018 after He et al. 2017, arXiv:1707.06168; no intercept.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from edgecompress import codebooks, masks
from edgecompress.watching import watch

POINTS = 10
"""Random points of each image, the same ones for all images of a batch."""
RIDGE = 1e-6
"""Of the mean of the diagonal, added to it: a channel that is always zero would leave the system without a solution."""


def fits(module: nn.Module) -> bool:
    """Whether a layer can be fitted: an ordinary convolution over images or a linear layer, of the plainest kind of padding."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"


class Products:
    """XᵀX of layers of a dense network, float64 (c·k², c·k²) each, on the CPU."""

    def __init__(self, model: nn.Module, names: Iterable[str], batches: Sequence[Tensor], seed: int) -> None:
        """names: layers; those that cannot be fitted, and those whose weights a mask or codes hold, are left out (`left_out`).
        batches: normalised images (N, C, H, W). Memory: 8·(c·k²)² bytes for each layer."""
        held = {name.rpartition(".")[0] for found in (masks.get(model), codebooks.get(model)) for name in found}
        modules = {name: model.get_submodule(name) for name in names}
        self._products = {n: _zeros(m) for n, m in modules.items() if fits(m) and n not in held}
        self.left_out = sorted(set(modules) - set(self._products))
        generator = torch.Generator().manual_seed(seed)

        def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                rows = _rows(module, inputs[0], output, generator)
                self._products[name] += (rows.T @ rows).cpu()

            return hook

        watch(model, batches, [(modules[name], look(name)) for name in self._products])

    def __contains__(self, name: str) -> bool:
        return name in self._products

    def fitted(self, name: str, weight: Tensor, kept: Sequence[int]) -> Tensor:
        """The layer's weight (n, c, …) with the input channels `kept` fitted for all of them; the others as they were."""
        product, flat = self._products[name], weight.detach().double().cpu().flatten(1)
        per_channel = flat.shape[1] // weight.shape[1]
        chosen = torch.zeros(weight.shape[1], dtype=torch.bool)
        chosen[list(kept)] = True
        columns = chosen.repeat_interleave(per_channel)
        if bool(columns.all()):
            return weight.detach().clone()
        own = product[columns][:, columns]
        own = own + RIDGE * own.diagonal().mean().clamp(min=1e-12) * torch.eye(len(own), dtype=own.dtype)
        # The fit is written as a change of what is there, so that the ridge holds on to the weights and not to zero.
        change = torch.linalg.solve(own, product[columns][:, ~columns] @ flat[:, ~columns].T)
        fitted = flat.clone()
        fitted[:, columns] += change.T
        return fitted.reshape(weight.shape).to(weight)


def _zeros(module: Any) -> Tensor:
    width = module.weight[0].numel()
    return torch.zeros(width, width, dtype=torch.float64)


def _rows(module: Any, images: Tensor, output: Tensor, generator: torch.Generator) -> Tensor:
    """Inputs of a layer at random points, float64 (points, c·k²)."""
    if isinstance(module, nn.Linear):
        return images.reshape(-1, images.shape[-1]).double()
    if isinstance(module.padding, str):
        # "same" or "valid": an odd number of pixels goes behind, as in the layer itself.
        images = nn.functional.pad(images, module._reversed_padding_repeated_twice)
        padding: Any = 0
    else:
        padding = module.padding
    places = torch.randint(output.shape[2] * output.shape[3], (POINTS,), generator=generator)
    unrolled = unfold(images, module.kernel_size, module.dilation, padding, module.stride)
    return unrolled[:, :, places.to(images.device)].transpose(1, 2).reshape(-1, unrolled.shape[1]).double()
