"""Which channels can only go together: groups out of Torch-Pruning's dependency graph (Fang et al. 2023, "DepGraph").

A **unit** is the least that can be cut: a channel of a layer with everything that is bound to it (its batch norm, the
columns of each layer that reads it, the same channel of every layer that is added to it). A **group** is the units that
belong to the same layers. What the graph takes for granted and need not be so is looked at here: a group that an operation
other than per-channel ones touches, whose layers are used twice, or that ends in the network's output, is locked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.compress.channels.coupling import Element, Links, couple, passes_on, writes
from edgecompress.models import kept

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Slot:
    """One side of a module that a group owns channels of: `channels[i]` belongs to the unit `units[i]`, all int64."""

    module: str
    side: str
    channels: np.ndarray
    units: np.ndarray

    @property
    def per_unit(self) -> int:
        """Channels of this side that go with each unit."""
        return len(self.channels) // max(1, len(set(self.units.tolist())))


@dataclass(frozen=True, eq=False)
class Group:
    """Units 0 … size − 1 that are cut one by one out of the slots. writers: the layers whose output channels they are.

    stream: several writers are added up into these channels (a residual stream); else they are inner channels of one layer.
    folds: batch norm → the layer of the group that it follows at once. locked: why none of it can be cut; None when it can.
    """

    writers: tuple[str, ...]
    size: int
    slots: tuple[Slot, ...]
    stream: bool
    folds: Mapping[str, str]
    locked: str | None = None

    @property
    def name(self) -> str:
        return self.writers[0]

    @property
    def per_unit(self) -> int:
        """Output channels of the writers in one unit (more than 1: whole groups of a grouped convolution)."""
        return next(slot.per_unit for slot in self.slots if slot.module == self.name and slot.side == "out")


def find_groups(model: nn.Module, in_shape: tuple[int, ...]) -> list[Group]:
    """The groups of a network, locked ones among them, in the order of its modules. UserError when it cannot be traced."""
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    return sorted(_assemble(model, couple(model, in_shape)), key=lambda group: order[group.name])


def _assemble(model: nn.Module, links: Links) -> list[Group]:
    """Groups out of the joined channels: units that touch the same modules, in the same way."""
    modules = dict(model.named_modules())
    units: dict[Element, list[Element]] = defaultdict(list)
    for element in links.parent:
        units[links.root(element)].append(element)
    locks = {links.root(element): reason for element, reason in links.locks.items()}
    added = {links.root(element) for element in links.added}
    alike: dict[tuple[Any, ...], list[Element]] = defaultdict(list)
    for root, elements in units.items():
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for name, side, _ in elements:
            counts[name, side] += 1
        if any(writes(modules[name]) and side == "out" for name, side in counts):
            alike[(locks.get(root), root in added, *sorted(counts.items()))].append(root)
    groups = []
    for key, roots in alike.items():
        reason, is_added, *_ = key
        owned: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for unit, root in enumerate(sorted(roots, key=lambda r: min(units[r]))):
            for name, side, channel in units[root]:
                owned[name, side].append((channel, unit))
        slots = tuple(
            Slot(name, side, *(np.array(column, np.int64) for column in zip(*sorted(pairs), strict=True)))
            for (name, side), pairs in owned.items()
        )
        order = {name: number for number, name in enumerate(modules)}
        writers = sorted(
            {s.module for s in slots if s.side == "out" and writes(modules[s.module])}, key=order.__getitem__
        )
        shortcuts = [
            s for s in slots if s.side == "out" and not writes(modules[s.module]) and not passes_on(modules[s.module])
        ]
        stream = bool(is_added) and len(writers) + len(shortcuts) > 1
        folds = {s.module: links.folds[s.module] for s in slots if s.module in links.folds}
        groups.append(Group(tuple(writers), len(roots), slots, stream, folds, reason))
    return groups


def keep_of(
    model: nn.Module, groups: Sequence[Group], values: Sequence[np.ndarray], removed: Sequence[int]
) -> dict[str, dict[str, list[int]]]:
    """For `kept.cut`: what stays of each module when the `removed` least important units of each group go.

    Of equal importance the later unit goes first.
    """
    gone: dict[str, dict[str, set[int]]] = {}
    for group, value, count in zip(groups, values, removed, strict=True):
        if not count:
            continue
        order = np.lexsort((-np.arange(group.size), value))
        out = set(order[:count].tolist())
        for slot in group.slots:
            lost = slot.channels[np.isin(slot.units, list(out))].tolist()
            gone.setdefault(slot.module, {}).setdefault(slot.side, set()).update(lost)
    keep: dict[str, dict[str, list[int]]] = {}
    for name, sides in gone.items():
        module = model.get_submodule(name)
        for side, lost in sides.items():
            if side == "in" and kept.width(module, "in") is None:
                continue
            width = kept.width(module, side) or 0
            keep.setdefault(name, {})[side] = [k for k in range(width) if k not in lost]
    return keep
