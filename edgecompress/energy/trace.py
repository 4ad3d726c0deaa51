"""A power trace as arrays, and its integral."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from edgecompress_agent import wire
from numpy.typing import NDArray


@dataclass(frozen=True)
class Readings:
    """A trace as arrays. t_s: seconds since the first reading; power_w; energy_j: up to each reading (trapezoid).

    interval_s: the nominal one, or what the readings really kept if that was longer.
    """

    origin_ns: int
    t_s: NDArray[np.float64]
    power_w: NDArray[np.float64]
    energy_j: NDArray[np.float64]
    interval_s: float

    @staticmethod
    def of(trace: wire.Trace) -> Readings:
        origin = trace.t_ns[0] if trace.t_ns else 0
        # the differences are small whole numbers: a float64 of the stamps themselves would lose 100 ns
        t_s = np.asarray([t - origin for t in trace.t_ns], dtype=np.float64) / 1e9
        power_w = np.asarray(trace.power_uw, dtype=np.float64) / 1e6
        steps = np.diff(t_s)
        energy_j = np.concatenate(([0.0], np.cumsum(steps * (power_w[1:] + power_w[:-1]) / 2)))
        median = float(np.median(steps)) if steps.size else 0.0
        return Readings(origin, t_s, power_w, energy_j[: t_s.size], max(trace.info.interval_s, median))

    @property
    def count(self) -> int:
        return int(self.t_s.size)

    def seconds(self, window: wire.Window) -> tuple[float, float]:
        return (window.start_ns - self.origin_ns) / 1e9, (window.end_ns - self.origin_ns) / 1e9

    def between(self, start: float, end: float) -> int:
        """How many readings lie in [start, end]."""
        return int(np.searchsorted(self.t_s, end, side="right") - np.searchsorted(self.t_s, start, side="left"))

    def inside(self, windows: Sequence[wire.Window]) -> NDArray[np.bool_]:
        """Which readings lie in any of the windows."""
        mask: NDArray[np.bool_] = np.zeros(self.count, dtype=np.bool_)
        for window in windows:
            start, end = self.seconds(window)
            mask |= (self.t_s >= start) & (self.t_s <= end)
        return mask

    def joules(self, start: float, end: float) -> float:
        """∫ P dt from start to end: trapezoid over the actual stamps, the power at both edges interpolated."""
        return self._up_to(end) - self._up_to(start)

    def mean_w(self, start: float, end: float) -> float:
        return self.joules(start, end) / (end - start)

    def _up_to(self, t: float) -> float:
        at = float(np.interp(t, self.t_s, self.power_w))
        i = int(np.clip(np.searchsorted(self.t_s, t, side="right") - 1, 0, self.count - 1))
        return float(self.energy_j[i]) + (t - float(self.t_s[i])) * (float(self.power_w[i]) + at) / 2

    def local_range(self, t: float, reach_s: float) -> float:
        """By how much the power may differ around t: largest minus smallest of the two readings on either side, and of all
        within reach_s."""
        first = min(int(np.searchsorted(self.t_s, t)) - 2, int(np.searchsorted(self.t_s, t - reach_s)))
        last = max(int(np.searchsorted(self.t_s, t)) + 2, int(np.searchsorted(self.t_s, t + reach_s)))
        near = self.power_w[max(0, first) : last]
        return float(near.max() - near.min()) if near.size else 0.0
