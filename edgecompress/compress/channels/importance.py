"""How much each unit of a group matters: one number for a channel together with all that is bound to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.compress.channels.coupling import passes_on
from edgecompress.compress.channels.grouping import Group, Slot
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgecompress.data import Dataset

COMPARABLE = ("taylor",)
"""Kinds whose values mean the same in every group: an estimate of the loss. The others are divided by their group's mean."""


def score(
    model: nn.Module,
    groups: Sequence[Group],
    kind: str,
    *,
    reduce: str,
    fold: bool = False,
    in_shape: tuple[int, ...],
    data: Dataset | None,
    images: int,
    seed: int,
) -> list[np.ndarray]:
    """For each group the importance of its units, float64 (size,), not negative; comparable between groups.

    kind: "l1", "l2", "lap", "bn_scale", "taylor", "readers" (Σ |w| of what reads a unit; no choice of reduce). reduce: "mean" or
    "sum" over the coupled layers. fold: for l1 and l2, batch norms folded into the layers before them. in_shape: (C, H, W) of an
    image. UserError: bn_scale for a group without batch norm, taylor without data, lap for a network that cannot be followed.
    """
    if kind == "lap":
        values = _lookahead(model, groups, reduce, in_shape)
    elif kind == "taylor":
        values = _taylor(model, groups, data, images, seed)
    elif kind == "readers":
        values = [_readers(model, group) for group in groups]
    elif kind == "bn_scale":
        values = [_bn_scale(model, group, reduce) for group in groups]
    else:
        values = [_norm(model, group, 1 if kind == "l1" else 2, reduce, fold) for group in groups]
    if kind in COMPARABLE:
        return values
    return [value / max(value.mean(), np.finfo(np.float64).tiny) for value in values]


def _norm(model: nn.Module, group: Group, power: int, reduce: str, fold: bool) -> np.ndarray:
    """Σ |w|^power of each unit's weights, layer by layer: rows of the writers, columns of the readers, batch norm's scale.

    fold: a batch norm is no layer of its own but a factor of the rows before it, γ / √(variance + eps), as in an exported file.
    """
    folded = {layer: norm for norm, layer in group.folds.items()} if fold else {}
    valued = []
    for slot in group.slots:
        weight = getattr(model.get_submodule(slot.module), "weight", None)
        if weight is None or slot.module in folded.values():
            continue
        value = weight.detach().double()
        if slot.side == "out" and slot.module in folded:
            value = value * _factor(model.get_submodule(folded[slot.module])).reshape(-1, *[1] * (value.ndim - 1))
        valued.append((slot, value.abs() ** power))
    return _reduced(_layer_sums(model, group, valued), reduce)


def _readers(model: nn.Module, group: Group) -> np.ndarray:
    """Σ |w| over the columns of all layers that read a unit (AMC's choice of channels); over its rows where none reads it."""
    slots = [s for s in group.slots if not passes_on(model.get_submodule(s.module))]
    weighted = [(s, getattr(model.get_submodule(s.module), "weight", None)) for s in slots]
    for side in ("in", "out"):
        valued = [(s, w.detach().double().abs()) for s, w in weighted if w is not None and s.side == side]
        sums = _layer_sums(model, group, valued)
        if sums:
            return _reduced(sums, "sum")
    return np.ones(group.size)


def _factor(norm: Any) -> Tensor:
    """What a batch norm in eval mode multiplies each channel by, float64 (channels,)."""
    import torch

    scale = torch.ones(norm.num_features, dtype=torch.float64) if norm.weight is None else norm.weight.detach().double()
    return scale if norm.running_var is None else scale / torch.sqrt(norm.running_var.double() + norm.eps)


def _lookahead(model: nn.Module, groups: Sequence[Group], reduce: str, in_shape: tuple[int, ...]) -> list[np.ndarray]:
    """Σ of the lookahead scores (Park et al. 2020) of each unit's weights, layer by layer as for the norms."""
    import torch

    from edgecompress.compress.lookahead import scores
    from edgecompress.evaluate import device_of

    found = scores(model, torch.zeros(1, *in_shape, device=device_of(model)), dtype=torch.float64)
    values = []
    for group in groups:
        valued = [(s, found[f"{s.module}.weight"]) for s in group.slots if f"{s.module}.weight" in found]
        values.append(_reduced(_layer_sums(model, group, valued), reduce))
    return values


def _layer_sums(model: nn.Module, group: Group, valued: Iterable[tuple[Slot, Tensor]]) -> list[np.ndarray]:
    """The values of a group's weights (each in its weight's shape) summed over each unit, layer by layer."""
    layers = []
    for slot, value in valued:
        rows = value
        if slot.side == "in":
            if getattr(model.get_submodule(slot.module), "groups", 1) != 1:
                continue  # the rows of its out side are the same weights
            rows = value.transpose(0, 1)
        layers.append(_by_unit(group, slot, rows.reshape(rows.shape[0], -1).sum(1)))
    return layers


def _reduced(layers: list[np.ndarray], reduce: str) -> np.ndarray:
    total: np.ndarray = np.sum(layers, axis=0)
    return total / len(layers) if reduce == "mean" else total


def _by_unit(group: Group, slot: Slot, per_channel: Tensor) -> np.ndarray:
    """Values of a side's channels summed over each unit."""
    return np.bincount(slot.units, per_channel.cpu().numpy()[slot.channels], minlength=group.size)


def _norms_of(model: nn.Module, group: Group) -> list[tuple[Slot, Any]]:
    """The batch norms of a group that have a scale."""
    from torch import nn

    found = []
    for slot in group.slots:
        module = model.get_submodule(slot.module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            found.append((slot, module))
    return found


def _bn_scale(model: nn.Module, group: Group, reduce: str) -> np.ndarray:
    layers = [_by_unit(group, slot, module.weight.detach().double().abs()) for slot, module in _norms_of(model, group)]
    if not layers:
        raise UserError(
            f"importance bn_scale needs a batch norm at every channel, and {group.name} has none",
            fix=f"Use importance: l2 or taylor, or exclude: [{group.name}].",
        )
    return _reduced(layers, reduce)


def _taylor(
    model: nn.Module, groups: Sequence[Group], data: Dataset | None, images: int, seed: int
) -> list[np.ndarray]:
    """Mean over small batches of (∂L/∂g)², g a gate on the unit: the square of the loss's first-order change when it closes.

    The gate's gradient is read off the weights of the layers that read the unit: Σ w · ∂L/∂w over its columns. (Molchanov et
    al. 2019, equation 8, with the gate behind all that writes the channels.)
    """
    import torch
    from torch.nn.functional import cross_entropy

    from edgecompress.data import batches
    from edgecompress.evaluate import device_of, logits

    if data is None:
        raise UserError("importance taylor needs data", fix="Pass data=… (or --data), or use importance: l2.")
    readers = [
        [slot for slot in group.slots if slot.side == "in" and not passes_on(model.get_submodule(slot.module))]
        for group in groups
    ]
    device, training = device_of(model), model.training
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.eval().requires_grad_(True)
    totals = [np.zeros(group.size) for group in groups]
    seen = 0
    try:
        stream = batches(data, data.train, batch_size=BATCH, shuffle=True, augment=False, seed=seed, epoch=0)
        for pictures, labels in stream:
            if seen >= images:
                break
            seen += len(labels)
            model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                cross_entropy(logits(model, pictures.to(device)), labels.to(device)).backward()
            for number, group in enumerate(groups):
                gate = sum((_gate(model, group, slot) for slot in readers[number]), np.zeros(group.size))
                totals[number] += gate**2 * len(labels)
        stream.close()
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
        model.train(training)
    return [total / seen for total in totals]


BATCH = 16
"""Images whose gradients are averaged before they are squared: few, so that opposite signs do not hide a channel's effect."""


def _gate(model: nn.Module, group: Group, slot: Slot) -> np.ndarray:
    module: Any = model.get_submodule(slot.module)
    weight = getattr(module, "weight", None)
    if weight is None or weight.grad is None:
        return np.zeros(group.size)
    product = weight.detach().double() * weight.grad.double()
    if getattr(module, "groups", 1) == 1:
        product = product.transpose(0, 1)
    elif module.groups != module.in_channels:
        # A group's rows hold its inputs: their sum is the gate of the whole group, which is the unit.
        per_group = product.reshape(module.groups, -1).sum(1)
        share = module.in_channels // module.groups
        return _by_unit(group, slot, per_group.repeat_interleave(share) / share)
    return _by_unit(group, slot, product.reshape(product.shape[0], -1).sum(1))
