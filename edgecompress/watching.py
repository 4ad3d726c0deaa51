"""Look at what passes through a network's modules, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Look = Callable[["nn.Module", Any, Any], None]
"""(module, its positional inputs, its output)."""


def watch(model: nn.Module, batches: Iterable[Tensor], looks: Iterable[tuple[nn.Module, Look]]) -> None:
    """Run the batches through the network in eval mode, without gradients; each module's look sees every call of it.

    The modes and hooks of the network are afterwards what they were.
    """
    import torch

    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_hook(look) for module, look in looks]
    try:
        with torch.no_grad():
            model.eval()
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
