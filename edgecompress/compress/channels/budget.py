"""How many channels each group keeps, so that a budget is met: MACs, parameters or a latency, or ratios layer by layer."""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.compress.channels.grouping import Group

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 0.02
"""A budget is met when what is left is within this fraction of it."""


@dataclass(frozen=True)
class Layer:
    """Of one layer: channels, weights for each pair of (out channel, in channel of its group), positions it is applied at.

    per_out: parameters of an out channel beside the weights; stored_bytes: of an out channel's running statistics.
    """

    out: int
    into: int
    groups: int
    kernel: int
    positions: int
    per_out: int
    stored_bytes: int = 0

    @property
    def macs(self) -> int:
        """Of the whole layer."""
        return self.out * (self.into // max(1, self.groups)) * self.kernel * self.positions


class Prices:
    """MACs and parameters of a network after any cut, reckoned without making it: the same that `edgecompress.cost` counts."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], in_shape: tuple[int, ...]) -> None:
        from edgecompress import cost

        self._layers = layers(model, in_shape)
        self._owned: dict[str, dict[str, list[tuple[int, int]]]] = {
            name: {"in": [], "out": []} for name in self._layers
        }
        for number, group in enumerate(groups):
            for slot in group.slots:
                if slot.module in self._owned:
                    self._owned[slot.module][slot.side].append((number, slot.per_unit))
        whole = cost.count(model, in_shape)
        macs, params = self._sums([0] * len(groups))
        # What no layer owns (a functional product with weights, bare parameters) is there before and after.
        self._other = (whole.macs - macs, whole.params - params)
        self._other_bytes = cost.weight_bytes(model) - self._stored([0] * len(groups)) - 4 * params

    def after(self, removed: Sequence[float]) -> tuple[float, float]:
        """(MACs, parameters) with this many units removed of each group; whole numbers of units give whole numbers."""
        macs, params = self._sums(removed)
        return macs + self._other[0], params + self._other[1]

    def bytes_after(self, removed: Sequence[float]) -> float:
        """Bytes of the network's state (`cost.weight_bytes`), its parameters in float32."""
        return 4 * self._sums(removed)[1] + self._stored(removed) + self._other_bytes

    def sides(self, name: str, removed: Sequence[float]) -> tuple[float, float]:
        """(in, out) channels that a layer then has."""
        layer, owned = self._layers[name], self._owned[name]
        into = layer.into - sum(removed[g] * n for g, n in owned["in"])
        return into, layer.out - sum(removed[g] * n for g, n in owned["out"])

    @property
    def squares(self) -> bool:
        """Whether a layer both reads and writes channels of one group: its weights then fall with the square of what is left."""
        return any(
            {g for g, _ in owned["in"]} & {g for g, _ in owned["out"]}
            for name, owned in self._owned.items()
            if self._layers[name].groups == 1
        )

    def _stored(self, removed: Sequence[float]) -> float:
        return sum(
            layer.stored_bytes * (layer.out - sum(removed[g] * n for g, n in self._owned[name]["out"]))
            for name, layer in self._layers.items()
            if layer.stored_bytes
        )

    def _sums(self, removed: Sequence[float]) -> tuple[float, float]:
        macs: float = 0
        params: float = 0
        for name, layer in self._layers.items():
            into, out = self.sides(name, removed)
            if layer.groups > 1 or not layer.into:
                into = layer.into // max(1, layer.groups)
            weights = out * into * layer.kernel
            macs += weights * layer.positions
            params += weights + out * layer.per_out
        return macs, params


def layers(model: nn.Module, in_shape: tuple[int, ...]) -> dict[str, Layer]:
    """The layers whose channels can be cut, by name, as one image of (C, H, W) finds them."""
    import torch

    from edgecompress.evaluate import device_of
    from edgecompress.models import kept
    from edgecompress.watching import watch

    positions: dict[str, int] = {}

    def count(name: str, channels: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            positions[name] = positions.get(name, 0) + output.numel() // channels

        return hook

    modules = {n: m for n, m in model.named_modules() if isinstance(m, (*kept.WEIGHTED, *kept.PER_CHANNEL))}
    weighted = {n: m for n, m in modules.items() if isinstance(m, kept.WEIGHTED)}
    looks = [(m, count(n, kept.width(m, "out") or 1)) for n, m in weighted.items()]
    watch(model, [torch.zeros(1, *in_shape, device=device_of(model))], looks)
    found = {}
    for name, module in modules.items():
        out, into = kept.width(module, "out") or 0, kept.width(module, "in") or 0
        if isinstance(module, kept.WEIGHTED):
            groups = getattr(module, "groups", 1)
            kernel = module.weight.numel() * groups // (out * into)
            found[name] = Layer(out, into, groups, kernel, positions.get(name, 0), int(module.bias is not None))
        else:
            values = sum(p.numel() for p in module.parameters(recurse=False))
            statistics = (getattr(module, leaf, None) for leaf in ("running_mean", "running_var"))
            stored = sum(s.element_size() for s in statistics if s is not None)
            if (values or stored) and values % out == 0:
                found[name] = Layer(out, 0, 1, 0, 0, values // out, stored)
    return found


@dataclass(frozen=True)
class Block:
    """A removal: the next `units` least important units of a group, at the importance `score`."""

    group: int
    units: int
    score: float


def blocks(
    groups: Sequence[Group], importance: Sequence[np.ndarray], *, multiple: int, min_keep: float, scope: str
) -> list[Block]:
    """Every removal that rounding to the multiple and `min_keep` allow, in the order in which they are made.

    importance: for each group its units' (size,). scope "global": by the mean importance of the block's units, least first
    (never before an earlier block of its group); "layer": so that all groups lose the same fraction.
    """
    pending = []
    for number, group in enumerate(groups):
        ascending = np.sort(importance[number])
        levels = _levels(group, multiple, min_keep)
        floor, chain = -math.inf, []
        for more, fewer in itertools.pairwise(levels):
            lost = ascending[group.size - more : group.size - fewer]
            score = float(lost.mean()) if scope == "global" else 1 - fewer / group.size
            floor = max(floor, score)
            chain.append(Block(number, more - fewer, floor))
        pending.append(chain)
    heap = [(chain[0].score, number, 0) for number, chain in enumerate(pending) if chain]
    heapq.heapify(heap)
    order = []
    while heap:
        _, number, place = heapq.heappop(heap)
        order.append(pending[number][place])
        if place + 1 < len(pending[number]):
            heapq.heappush(heap, (pending[number][place + 1].score, number, place + 1))
    return order


def _levels(group: Group, multiple: int, min_keep: float) -> list[int]:
    """Numbers of units that a group may keep, from all of them downwards."""
    least = max(1, math.ceil(min_keep * group.size))
    return [group.size] + [
        units for units in range(group.size - 1, least - 1, -1) if units * group.per_unit % multiple == 0
    ]


def rounded(group: Group, ratio: float, multiple: int) -> int:
    """The number of units to keep that is nearest to `ratio` of the group's and allowed by the multiple; of two, the larger."""
    return min(_levels(group, multiple, 0.0), key=lambda units: (abs(units - ratio * group.size), -units))


def removed_by(order: Sequence[Block], count: int) -> list[list[int]]:
    """Units removed of each of `count` groups by the first n blocks, for n from 0 to all of them."""
    removed = [0] * count
    found = [list(removed)]
    for block in order:
        removed[block.group] += block.units
        found.append(list(removed))
    return found


def meet(order: Sequence[Block], count: int, target: float, value: Callable[[list[int]], float]) -> list[int]:
    """Units to remove of each group so that `value` of them comes to `target` or just below.

    The first blocks of `order` that bring it to the target; where the last of them overshoots by more than the tolerance,
    blocks at the edge are exchanged for others, pair by pair. The nearest that was found where none is in tolerance.
    count: groups. ValueError when all blocks together do not reach the target's tolerance.
    """

    prefixes = removed_by(order, count)
    if value(prefixes[-1]) > target * (1 + TOLERANCE):
        raise ValueError("the target is out of reach")
    length = bisect.bisect_left(range(len(order) + 1), True, key=lambda n: value(prefixes[n]) <= target)
    length = min(length, len(order))
    # Each group's blocks, and how many of them are removed now.
    chains: list[list[Block]] = [[] for _ in range(count)]
    taken = [0] * count
    for place, block in enumerate(order):
        chains[block.group].append(block)
        taken[block.group] += place < length

    def miss(state: list[int]) -> tuple[int, float]:
        removed = [sum(b.units for b in chain[:n]) for chain, n in zip(chains, state, strict=True)]
        return _miss(value(removed), target)

    best, least = taken, miss(taken)
    for _ in range(ROUNDS):
        if least[0] == 0:
            break
        nearest = min(_neighbours(best, chains), key=miss, default=best)
        if miss(nearest) >= least:
            break
        best, least = nearest, miss(nearest)
    return [sum(b.units for b in chain[:n]) for chain, n in zip(chains, best, strict=True)]


ROUNDS = 4
"""Exchanges that are tried, one after the other."""
EDGE = 24
"""Groups whose last or next block an exchange may put back or take: those nearest to the cut-off."""


def _miss(value: float, target: float) -> tuple[int, float]:
    """Order of preference: in tolerance and not above the target, in tolerance, the nearest."""
    off = value / target - 1
    return (0 if -TOLERANCE <= off <= 0 else 1 if abs(off) <= TOLERANCE else 2, abs(off))


def _neighbours(state: list[int], chains: list[list[Block]]) -> list[list[int]]:
    """Blocks of one group put back, more of another taken, or one of the two; several at once where there are few groups."""
    back = [g for g, n in enumerate(state) if n > 0]
    more = [g for g, n in enumerate(state) if n < len(chains[g])]
    back = sorted(back, key=lambda g: -chains[g][state[g] - 1].score)[:EDGE]
    more = sorted(more, key=lambda g: chains[g][state[g]].score)[:EDGE]
    reach = range(1, 4 if len(chains) <= 8 else 2)
    puts = [(None, 0), *itertools.product(back, reach)]
    takes = [(None, 0), *itertools.product(more, reach)]
    found = []
    for (put, fewer), (take, further) in itertools.product(puts, takes):
        if put != take:
            changed = list(state)
            if put is not None:
                changed[put] = max(0, changed[put] - fewer)
            if take is not None:
                changed[take] = min(len(chains[take]), changed[take] + further)
            found.append(changed)
    return found
