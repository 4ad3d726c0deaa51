"""Which channels of its base a cut network still has: cutting them out, and the record from which it is rebuilt.

A structurally pruned network is its base with fewer channels: the same modules and keys, narrower tensors. The record says
for every narrowed module which channels of the *base* it kept, `{"layer1.0.conv1": {"out": (0, 3, …)}}`; a further cut
composes with it. It travels with the model (a deep copy keeps it) and stands in `model.json`, so that a saved model is
base + kept channels + weights and no code is read from disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgecompress.errors import UserError
from edgecompress.evaluate import device_of
from edgecompress.models.resnet import Shortcut

Sides = dict[str, tuple[int, ...]]
"""Indices kept of a module's channels, by side: "in", "out". A side that is whole is left out."""

_ATTRIBUTE = "edgecompress_kept"

PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)
"""Modules whose channels go through one by one: they have an out side only."""
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def get(model: nn.Module) -> dict[str, Sides]:
    """Module name → the channels of its base that it kept; empty for a network that was never cut."""
    found: Any = model.__dict__.get(_ATTRIBUTE)
    return {name: dict(sides) for name, sides in found.items()} if found else {}


def width(module: nn.Module, side: str) -> int | None:
    """Channels on a side ("in", "out") of a module that can be cut; None for one that cannot be."""
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, WEIGHTED):
        return int(module.out_channels if side == "out" else module.in_channels)
    if isinstance(module, Shortcut):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, PER_CHANNEL) and side == "out":
        return int(module.num_parameters if isinstance(module, nn.PReLU) else module.num_features)
    return None


def cut(model: nn.Module, keep: Mapping[str, Mapping[Any, Sequence[int]]]) -> nn.Module:
    """Leave only the channels of `keep` (module name → side → indices of its *present* channels, in order), in place.

    Masks, codebooks and whatever else lies beside a parameter in its shape are cut with it. The model is returned, with the
    record of what is kept of its base brought up to date. UserError when a name, a side or an index fits no module of the
    model, or would leave a module without channels; then nothing is changed.
    """
    modules = dict(model.named_modules())
    for name, sides in keep.items():
        _check(name, modules.get(name), sides)
    record = get(model)
    for name, sides in keep.items():
        index = {side: torch.tensor(list(kept), dtype=torch.long) for side, kept in sides.items()}
        _narrow(modules[name], index, device_of(model))
        before = record.setdefault(name, {})
        for side, kept in sides.items():
            before[side] = tuple(before[side][i] for i in kept) if side in before else tuple(int(i) for i in kept)
    model.__dict__[_ATTRIBUTE] = record
    return model


def _check(name: str, module: nn.Module | None, sides: Mapping[str, Sequence[int]]) -> None:
    fix = "Use the channels of a cut of this very model."
    if module is None:
        raise UserError(f"kept channels name {name!r}, which this model does not have", fix=fix)
    for side, index in sides.items():
        present = width(module, side) if side in ("in", "out") else None
        if present is None:
            raise UserError(f"{name}, a {type(module).__name__}, has no side {side!r} that can be cut", fix=fix)
        if not index or min(index) < 0 or max(index) >= present or len(set(index)) != len(index):
            raise UserError(f"the channels kept of {name} ({side}) are none of its {present}", fix=fix)
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        whole = set(sides) == {"in", "out"} and module.groups * len(sides["in"]) % module.in_channels == 0
        if not whole or len(sides["out"]) * module.in_channels != len(sides["in"]) * module.out_channels:
            raise UserError(f"{name} has {module.groups} groups, which are kept or cut as a whole", fix=fix)


def _narrow(module: nn.Module, index: dict[str, Tensor], device: torch.device) -> None:
    if isinstance(module, Shortcut):
        module.narrow(index.get("in"), index.get("out"), device)
        return
    out, into = index.get("out"), index.get("in")
    if out is not None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            _select(module, leaf, 0, out)
    target: Any = module
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        # Whole groups go: each row of the weight already holds its own group's inputs only.
        assert out is not None and into is not None
        target.groups = module.groups * len(into) // module.in_channels
        target.in_channels = len(into)
    elif into is not None:
        _select(module, "weight", 1, into)
        setattr(target, "in_features" if isinstance(module, nn.Linear) else "in_channels", len(into))
    if out is not None:
        for attribute in ("out_features", "out_channels", "num_features", "num_parameters"):
            if hasattr(module, attribute):
                setattr(target, attribute, len(out))


def _select(module: nn.Module, leaf: str, dim: int, index: Tensor) -> None:
    """Narrow a parameter or buffer of a module, and the buffers of its shape that are named after it (its mask)."""
    old = getattr(module, leaf, None)
    if old is None:
        return
    here = index.to(old.device)
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and (name == leaf or (name.startswith(f"{leaf}_") and buffer.shape == old.shape)):
            module._buffers[name] = buffer.index_select(dim, here)
    if isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(old.detach().index_select(dim, here), requires_grad=old.requires_grad))
