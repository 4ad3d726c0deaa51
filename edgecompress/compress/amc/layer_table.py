"""What a network costs on a device, from what its layers cost alone: a grid of widths for each layer, interpolated.

Pure: what measures is elsewhere. A layer that is used by several names (the same shape) is one grid. What no layer is (additions,
pooling, moving data between layers) and what an engine saves by fusing are not in the sum; a line through the whole network, whose
slope is found on cut networks, stands for them, and beyond these networks one to the least network, as it was measured.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgecompress.compress.amc.environment import SLACK

POINTS = 4
"""Widths of a side that are measured, from the least to the whole."""
TOLERANCE = 0.02
"""A measured network that is above its budget by this fraction at most keeps to it: what a measurement can tell."""
RECENT = 3
"""The slope is the median over the last so many measured networks."""
_LEAST_FALL = 0.02
"""A network whose sum is less than this below the whole network's says nothing about the slope."""


def widths(whole: int, least: int, step: int = 1) -> tuple[int, ...]:
    """At most POINTS widths from `least` to `whole`, evenly, in multiples of `step` where that leaves them between."""
    if least >= whole:
        return (whole,)
    raw = [least + (whole - least) * k / (POINTS - 1) for k in range(POINTS)]
    inner = [step * round(w / step) for w in raw[1:-1]]
    return tuple(sorted({least, whole, *(w for w in inner if least < w < whole)}))


@dataclass(frozen=True)
class Grid:
    """Cost at (into[i], out[j]) is values[i][j], any unit; between them on straight lines, beyond them the nearest.

    Of a layer that has one width (depth-wise, grouped) into is (1,) and does not count.
    """

    into: tuple[int, ...]
    out: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]

    def at(self, into: float, out: float) -> float:
        i, part_i = _place(self.into, into)
        j, part_j = _place(self.out, out)
        low = _between(self.values[i], j, part_j)
        return low if part_i == 0 else low + part_i * (_between(self.values[i + 1], j, part_j) - low)


def _place(points: Sequence[int], value: float) -> tuple[int, float]:
    """(index of the point at or below the value, how far on the way to the next one it is)."""
    if value <= points[0]:
        return 0, 0.0
    if value >= points[-1]:
        return len(points) - 1, 0.0
    index = bisect.bisect_right(points, value) - 1
    return index, (value - points[index]) / (points[index + 1] - points[index])


def _between(row: Sequence[float], index: int, part: float) -> float:
    return row[index] if part == 0 else row[index] + part * (row[index + 1] - row[index])


@dataclass(frozen=True)
class Seen:
    """A whole network that was measured. predicted, measured: its cost over the uncut network's, the sum's and the device's.

    evaluation: after so many of the agent's policies; 0: before the search.
    """

    units: tuple[int, ...]
    predicted: float
    measured: float
    evaluation: int


@dataclass
class DeviceCost:
    """Keep ratios → cost over the whole network's: what the sum over its layers comes to on the line; of a network that was
    measured, what was measured."""

    grids: Mapping[str, Grid]
    sides: Callable[[Sequence[float]], Callable[[str], tuple[float, float]]]
    """Keep ratios → layer → its (in, out) channels."""
    sizes: tuple[int, ...]
    """Units of each choice."""
    budget: float = 1.0
    seen: list[Seen] = field(default_factory=list)
    least: tuple[int, ...] = ()
    """Units of the network that keeps the least of everything."""

    def __post_init__(self) -> None:
        self._whole = self._sum([1.0] * len(self.sizes))
        self._measured = {self._key(s.units): s.measured for s in self.seen}

    def _key(self, units: Sequence[int]) -> tuple[int, ...]:
        return tuple(units)

    def _sum(self, keep: Sequence[float]) -> float:
        sides = self.sides(keep)
        return sum(grid.at(*sides(name)) for name, grid in self.grids.items())

    def predicted(self, keep: Sequence[float]) -> float:
        """The sum over the layers alone."""
        return self._sum(keep) / self._whole

    @property
    def slope(self) -> float:
        """The part of the whole network's cost that its layers' sum stands for; the rest stays however much is cut.

        Median over the networks that were measured last of how far the cost fell over how far the sum did; 1 before any was,
        more than 1 where the sum holds more than the network does (what an engine saves by fusing).
        """
        slopes = [(1 - s.measured) / (1 - s.predicted) for s in self._recent()]
        return max(0.0, statistics.median(slopes)) if slopes else 1.0

    def _recent(self) -> list[Seen]:
        return [s for s in self.seen if 1 - s.predicted >= _LEAST_FALL and s.units != self.least][-RECENT:]

    def _on_the_line(self, predicted: float) -> float:
        """What a sum over the whole network's comes to. Where cuts near the whole network save little (latency that goes in steps),
        the slope says nothing of far deeper ones: below the networks that it was found on, the line goes to the least one."""
        line = max(0.0, 1 - self.slope * (1 - predicted))
        least = next((s for s in self.seen if s.units == self.least), None)
        if least is None:
            return line
        recent = self._recent()
        knee = statistics.median(s.predicted for s in recent) if recent else 1.0
        if predicted >= knee or knee <= least.predicted:
            return max(line, least.measured)
        part = max(0.0, (predicted - least.predicted) / (knee - least.predicted))
        top = max(1 - self.slope * (1 - knee), least.measured)
        return least.measured + part * (top - least.measured)

    def __call__(self, keep: Sequence[float]) -> float:
        units = tuple(round(k * n) for k, n in zip(keep, self.sizes, strict=True))
        measured = self._measured.get(units)
        if measured is not None and all(
            abs(k * n - u) < SLACK * n for k, n, u in zip(keep, self.sizes, units, strict=True)
        ):
            # Within what a measurement can tell it keeps to the budget.
            return self.budget if self.budget < measured <= self.budget * (1 + TOLERANCE) else measured
        return self._on_the_line(self.predicted(keep))

    def add(self, units: Sequence[int], measured: float, evaluation: int) -> None:
        """A whole network's measured cost, over the uncut network's."""
        keep = [n / whole for n, whole in zip(units, self.sizes, strict=True)]
        self.seen.append(Seen(tuple(units), self.predicted(keep), measured, evaluation))
        self._measured[self._key(units)] = measured

    def errors(self) -> list[float]:
        """Of every network that was measured before the search: the sum's prediction over measurement, less 1."""
        return [s.predicted / s.measured - 1 for s in self.seen if s.evaluation == 0]
