"""Pruning masks that stay with their model: one boolean buffer beside each pruned parameter.

The buffer `<parameter>_mask` is not persistent, so `state_dict` keys stay those of the dense model, and it follows
`.to(device)` and `copy.deepcopy`. True keeps a weight, False holds it at exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    Linear time, no sort, and no copy of the scores where there are many. ValueError when more are to be kept than are alive.
    """
    import torch

    flat = scores.detach().reshape(-1)
    living = None if alive is None else alive.reshape(-1).to(torch.bool)
    count = flat.numel() if living is None else int(torch.count_nonzero(living))
    if not 0 <= keep <= count:
        raise ValueError(f"cannot keep {keep} of {count} weights")
    if keep == count:
        mask = torch.ones_like(flat, dtype=torch.bool) if living is None else living.clone()
    elif keep == 0:
        mask = torch.zeros_like(flat, dtype=torch.bool)
    else:
        cut = _cut(flat, living, keep, count)
        mask = flat > cut
        if living is not None:
            mask &= living
        _add_ties(mask, flat, living, cut, keep - int(torch.count_nonzero(mask)))
    return mask.reshape(scores.shape)


_SAMPLE = 1 << 16
_STRIDE = 2_654_435_761
_PIECE = 1 << 20


def _cut(flat: Tensor, living: Tensor | None, keep: int, count: int) -> Tensor:
    """The `keep`-th highest of the living scores (0-dimensional).

    Many: two bounds from a sample enclose it, and only what lies between them is looked at closely (Floyd and Rivest 1975).
    """
    import torch

    if count > 4 * _SAMPLE:
        # A prime stride goes evenly through rows and columns of any length, which a short one may not.
        places = torch.arange(_SAMPLE, device=flat.device) * _STRIDE % flat.numel()
        sample = flat[places] if living is None else flat[places][living[places]]
        if len(sample):
            ordered = sample.sort().values
            at, spread = len(ordered) * (1 - keep / count), 4 * math.sqrt(len(ordered)) + 16
            low, high = (ordered[min(max(int(i), 0), len(ordered) - 1)] for i in (at - spread, at + spread))
            found = _between(flat, living, keep, low, high)
            if found is not None:
                return found
    candidates = flat if living is None else flat[living]
    return torch.kthvalue(candidates, candidates.numel() - keep + 1).values


def _between(flat: Tensor, living: Tensor | None, keep: int, low: Tensor, high: Tensor) -> Tensor | None:
    """The `keep`-th highest score if it is in [low, high], else None."""
    import torch

    above_low = from_high = 0
    inside = []
    for piece in _pieces(flat, living):
        above, from_ = piece > low, piece >= high
        above_low += int(torch.count_nonzero(above))
        from_high += int(torch.count_nonzero(from_))
        inside.append(piece[above & ~from_])
    if from_high < keep <= above_low:
        candidates = torch.cat(inside)
        return torch.kthvalue(candidates, candidates.numel() - (keep - from_high) + 1).values
    # Many may be equal to a bound.
    bound, fewer = (high, 0) if keep <= from_high else (low, above_low)
    if bound is high:
        fewer = sum(int(torch.count_nonzero(piece > high)) for piece in _pieces(flat, living))
    equal = sum(int(torch.count_nonzero(piece == bound)) for piece in _pieces(flat, living))
    return bound if fewer < keep <= fewer + equal else None


def _pieces(flat: Tensor, living: Tensor | None) -> Iterator[Tensor]:
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE]
        yield piece if living is None else piece[living[start : start + _PIECE]]


def _add_ties(mask: Tensor, flat: Tensor, living: Tensor | None, cut: Tensor, missing: int) -> None:
    """Set the first `missing` of the living scores that equal the cut-off."""
    import torch

    for start in range(0, flat.numel(), _PIECE):
        if missing == 0:
            return
        tied = flat[start : start + _PIECE] == cut
        if living is not None:
            tied &= living[start : start + _PIECE]
        places = torch.nonzero(tied).reshape(-1)[:missing]
        mask[start + places] = True
        missing -= len(places)


def strip(model: nn.Module) -> nn.Module:
    """Remove the mask buffers in place (the zeros stay) and return the model: what an exporter sees is a plain network."""
    for name in get(model):
        owner, leaf = _owner(model, name)
        delattr(owner, leaf + SUFFIX)
    return model
