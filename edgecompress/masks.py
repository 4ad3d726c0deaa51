"""Pruning masks that stay with their model: one boolean buffer beside each pruned parameter.

The buffer `<parameter>_mask` is not persistent, so `state_dict` keys stay those of the dense model, and it follows
`.to(device)` and `copy.deepcopy`. True keeps a weight, False holds it at exactly zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecompress.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIX = "_mask"


def _owner(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    path, _, leaf = parameter.rpartition(".")
    return model.get_submodule(path), leaf


def get(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model: parameter name → bool tensor of the parameter's shape."""
    parameters = dict(model.named_parameters())
    return {
        name.removesuffix(SUFFIX): buffer
        for name, buffer in model.named_buffers()
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in parameters
    }


def put(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Set (or replace) masks and zero what they drop. UserError when a name or shape is not of this model."""
    import torch

    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise UserError(
                f"the mask for {name!r} fits no parameter of this model", fix="Use a mask made for this model."
            )
        parameter = parameters[name]
        if parameter.shape != mask.shape:
            raise UserError(
                f"the mask for {name!r} has shape {tuple(mask.shape)}, the parameter {tuple(parameter.shape)}",
                fix="Use a mask made for this model.",
            )
        owner, leaf = _owner(model, name)
        owner.register_buffer(leaf + SUFFIX, mask.to(parameter.device, torch.bool), persistent=False)
    apply(model)


def dropped(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """(parameter, bool tensor, True where the weight is dropped) of every masked parameter: what a training loop holds on to."""
    parameters = dict(model.named_parameters())
    return [(parameters[name], ~mask) for name, mask in get(model).items()]


def apply(model: nn.Module) -> None:
    """Write exact zeros where the masks drop. Idempotent; called after every optimiser step."""
    import torch

    with torch.no_grad():
        for parameter, drop in dropped(model):
            # masked_fill, not a product: 0 · nan is nan and 0 · -1 is -0.0
            parameter.masked_fill_(drop, 0.0)


def keep_highest(scores: Tensor, keep: int, alive: Tensor | None = None) -> Tensor:
    """The mask (bool, shape of `scores`) that keeps the `keep` highest scores among the alive ones (default: all are).

    Of equal scores at the cut-off the first in memory order are kept, so the count is exact and the choice repeatable.
    Linear time, no sort. ValueError when more are to be kept than are alive.
    """
    import torch

    flat = scores.detach().reshape(-1)
    living = torch.ones_like(flat, dtype=torch.bool) if alive is None else alive.reshape(-1).to(torch.bool)
    candidates = flat[living]
    if not 0 <= keep <= candidates.numel():
        raise ValueError(f"cannot keep {keep} of {candidates.numel()} weights")
    if keep == candidates.numel():
        return living.clone().reshape(scores.shape)
    mask = torch.zeros_like(living)
    if keep:
        cut = torch.kthvalue(candidates, candidates.numel() - keep + 1).values
        mask = living & (flat > cut)
        ties = torch.nonzero(living & (flat == cut)).reshape(-1)
        mask[ties[: keep - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def strip(model: nn.Module) -> nn.Module:
    """Remove the mask buffers in place (the zeros stay) and return the model: what an exporter sees is a plain network."""
    for name in get(model):
        owner, leaf = _owner(model, name)
        delattr(owner, leaf + SUFFIX)
    return model
