"""That a cut network computes what it must: the same as the whole one with the removed channels at zero.

The dependency graph takes every operation it does not know for an element-wise one. A forward that mixes channels (a shuffle)
or counts them would be cut wrongly; what is cut is therefore compared, and groups that do not stand it are locked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.compress.channels.grouping import Group, keep_of
from edgecompress.errors import StepFailed
from edgecompress.models import kept

if TYPE_CHECKING:
    from torch import nn

EXACT = 1e-3
"""How far the cut network's outputs may be from those of the whole one with the same channels at zero, relative to the largest."""

Keep = Mapping[str, Mapping[str, Sequence[int]]]


def unsafe(model: nn.Module, groups: Sequence[Group], in_shape: tuple[int, ...]) -> dict[str, str]:
    """Group name → why it cannot be cut, of those whose units are not what the graph takes them for.

    One unit of each is cut, all at once; only where that goes wrong each group is looked at alone.
    """
    wide = [group for group in groups if group.size > 1]
    order = [np.arange(group.size) for group in wide]
    if differs(model, keep_of(model, wide, order, [1] * len(wide)), in_shape) is None:
        return {}
    found = {}
    for group, value in zip(wide, order, strict=True):
        reason = differs(model, keep_of(model, [group], [value], [1]), in_shape)
        if reason is not None:
            found[group.name] = reason
    return found


def differs(model: nn.Module, keep: Keep, in_shape: tuple[int, ...]) -> str | None:
    """Why the model with its channels cut to `keep` is not the model with the others at zero; None: it is. Left as it was."""
    import torch

    from edgecompress.evaluate import device_of

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, *in_shape, generator=generator).to(device_of(model))
    try:
        with torch.no_grad():
            narrow = kept.cut(copy.deepcopy(model), keep).eval()(images)
            wide = silenced(copy.deepcopy(model), keep).eval()(images)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        return f"the network does not run without these channels ({reason})"
    if not bool(torch.isfinite(wide).all()):
        raise StepFailed("the network's outputs for noise are not finite: nothing can be told of its channels")
    scale = max(float(wide.abs().max()), 1e-12)
    if narrow.shape == wide.shape and float((narrow - wide).abs().max()) <= EXACT * scale:
        return None
    return "an operation in the network's forward mixes or counts these channels"


def silenced(model: nn.Module, keep: Keep) -> nn.Module:
    """The model (changed in place) with all that was removed at zero, on the writing and on the reading side."""
    import torch

    from edgecompress.evaluate import device_of
    from edgecompress.models.resnet import Shortcut

    with torch.no_grad():
        for name, sides in keep.items():
            module: Any = model.get_submodule(name)
            if isinstance(module, Shortcut):
                into, out = (list(sides.get(side, range(kept.width(module, side) or 0))) for side in ("in", "out"))
                module.silence(into, out, device_of(model))
                continue
            for side, index in sides.items():
                weight = getattr(module, "weight", None)
                if weight is None or (side == "in" and getattr(module, "groups", 1) > 1):
                    continue
                drop = torch.ones(kept.width(module, side) or 0, dtype=torch.bool, device=weight.device)
                drop[index] = False
                if side == "in":
                    weight[:, drop] = 0
                else:
                    weight[drop] = 0
                    if getattr(module, "bias", None) is not None:
                        module.bias[drop] = 0
    return model
