"""From a power trace to joules per inference, with the interval that meter, sampling and device leave.

One clock stamps trace and windows. The energy of a window is the trapezoid over the actual stamps, interpolated at its edges.
Gross is all that was drawn; dynamic is what was drawn over the idle device. Whether a trace can be trusted at all is asked
first (`validity`): one that cannot gives a reason and no figure. docs/measuring.md explains every part of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from edgecompress_agent import wire
from numpy.typing import NDArray

from edgecompress.energy import validity
from edgecompress.energy.trace import Readings
from edgecompress.stats import CONFIDENCE, Estimate, student_quantile

IDLE_PARTS = 4
"""Parts of an idle window from whose scatter the noise of its mean is taken."""
JOULES_PER_WH = 3600.0
NO_IDLE = "no energy over idle: the power of the idle device before and after was not measured"
BATTERY_SCOPES = ("board", "usb-input")
"""Scopes that are what a battery would have to supply. A module's power leaves its carrier board out."""


@dataclass(frozen=True)
class Budget:
    """What the interval of the gross energy is made of: half-widths in J per inference.

    windows: scatter between the windows (Student). edges: the trapezoid at the windows' ends. Both are chance and add as
    squares. gain, offset, step, clock: the meter's limits, which stay the same in all windows; they add as they are.
    """

    windows: float
    edges: float
    gain: float
    offset: float
    step: float
    clock: float

    @property
    def half_width(self) -> float:
        return math.hypot(self.windows, self.edges) + self.gain + self.offset + self.step + self.clock


@dataclass(frozen=True)
class EnergySummary:
    """What the power pass of one variant amounts to. Powers in W, energies in J per inference, intervals of 95 %.

    invalid: why there is no figure; every figure is then None. dynamic_j, idle_*: None without idle windows.
    window_j: gross energy per inference of each window. seconds_per_inference: of the power pass, sensor on.
    standard_error_j: of gross_j, from the windows and edges; freedom: its degrees of freedom.
    """

    sensor: wire.SensorInfo
    samples: int
    windows: int
    inferences: int
    invalid: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    gross_j: Estimate | None = None
    dynamic_j: Estimate | None = None
    mean_w: float | None = None
    peak_w: float | None = None
    idle_w: float | None = None
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    seconds_per_inference: float | None = None
    window_j: tuple[float, ...] = ()
    budget: Budget | None = None
    standard_error_j: float = 0.0
    freedom: int = 0

    @property
    def scope(self) -> str:
        return self.sensor.scope

    @property
    def edp_js(self) -> float | None:
        """Energy-delay product of one inference, J·s."""
        if self.gross_j is None or self.seconds_per_inference is None:
            return None
        return self.gross_j.value * self.seconds_per_inference

    @property
    def inferences_per_wh(self) -> float | None:
        return None if self.gross_j is None else JOULES_PER_WH / self.gross_j.value

    def hours_on_battery(self, battery_wh: float, inferences_per_s: float | None = None) -> float | None:
        """Hours that a battery lasts with inferences back to back, or at a rate and idle between them.

        None where the figures for it are not there, or where the scope is not what a battery supplies. ValueError for a
        battery or a rate that is not above 0, or a rate above what the device can do.
        """
        if battery_wh <= 0 or (inferences_per_s is not None and inferences_per_s <= 0):
            raise ValueError("the battery's Wh and the inferences per second have to be above 0")
        if self.mean_w is None or self.seconds_per_inference is None or self.scope not in BATTERY_SCOPES:
            return None
        if inferences_per_s is None:
            return battery_wh / self.mean_w
        if inferences_per_s * self.seconds_per_inference > 1:
            raise ValueError(
                f"{inferences_per_s:g} inferences per second are more than {1 / self.seconds_per_inference:.4g}, "
                "which the device does back to back"
            )
        if self.dynamic_j is None or self.idle_w is None:
            return None
        mean_w = self.idle_w + self.dynamic_j.value * inferences_per_s
        return battery_wh / mean_w if mean_w > 0 else None


@dataclass(frozen=True)
class _Windows:
    """Arrays over the power windows: energy in J, length in s, inferences, idle power of the same round in W (NaN: none),
    standard deviation of the edges' error and limit of the clock's, in J."""

    joules: NDArray[np.float64]
    seconds: NDArray[np.float64]
    counts: NDArray[np.float64]
    idle_w: NDArray[np.float64]
    edge_sd: NDArray[np.float64]
    clock: NDArray[np.float64]


@dataclass(frozen=True)
class _Idle:
    """Idle power before and after in W, standard error and degrees of freedom of their mean."""

    before_w: float
    after_w: float
    error_w: float
    freedom: int


def summarise(
    power: wire.Power, *, conditions: Sequence[wire.Conditions] = (), plan: wire.PowerPlan | None = None
) -> EnergySummary:
    """All figures of a power pass. conditions: of the same measurement; plan: what was asked for (None: the defaults)."""
    asked = plan or wire.PowerPlan()
    active = [w for w in power.windows if w.kind == "power"]
    blank = EnergySummary(power.trace.info, len(power.trace.t_ns), len(active), sum(w.inferences for w in active))
    impossible = validity.impossible(power)
    if impossible:
        return replace(blank, invalid=(impossible,))
    readings = Readings.of(power.trace)
    invalid = validity.reasons(power, readings, conditions, asked)
    if invalid:
        return replace(blank, invalid=invalid)
    windows = _integrate(power, readings, active)
    info, inferences, seconds = power.trace.info, windows.counts.sum(), windows.seconds.sum()
    gross, mean_w = windows.joules.sum() / inferences, windows.joules.sum() / seconds
    if mean_w <= 0:
        return replace(blank, invalid=(f"the sensor said {mean_w:.3g} W on average under load, which cannot be",))
    scatter, freedom = _standard_error(windows.joules, windows.counts), len(active) - 1
    edges = math.sqrt(np.square(windows.edge_sd).sum()) / inferences
    per_inference_s = float(seconds / inferences)
    budget = Budget(
        windows=student_quantile((1 + CONFIDENCE) / 2, freedom) * scatter,
        edges=_normal() * edges,
        gain=info.gain_error * float(gross),
        offset=info.offset_error_w * per_inference_s,
        step=info.resolution_w * per_inference_s,
        clock=float(windows.clock.sum() / inferences),
    )
    idle = _idle(power, readings)
    dynamic = None if idle is None else _dynamic(windows, idle, budget, edges, info)
    warnings = validity.warnings(power, readings, asked, windows.joules / windows.counts)
    if idle is None or dynamic is None:
        warnings += (NO_IDLE,)
    else:
        warnings += validity.idle_warnings(idle.before_w, idle.after_w, idle.error_w, float(mean_w), info.resolution_w)
    half = budget.half_width
    inside = readings.inside(active)
    return replace(
        blank,
        warnings=warnings,
        gross_j=Estimate(float(gross), max(0.0, float(gross - half)), float(gross + half)),
        dynamic_j=dynamic,
        mean_w=float(mean_w),
        peak_w=float(readings.power_w[inside].max()),
        idle_w=None if idle is None else (idle.before_w + idle.after_w) / 2,
        idle_before_w=None if idle is None else idle.before_w,
        idle_after_w=None if idle is None else idle.after_w,
        seconds_per_inference=per_inference_s,
        window_j=tuple(float(j) for j in windows.joules / windows.counts),
        budget=budget,
        standard_error_j=math.hypot(scatter, edges),
        freedom=freedom,
    )


def _integrate(power: wire.Power, readings: Readings, active: Sequence[wire.Window]) -> _Windows:
    idle = [w for w in power.windows if w.kind != "power" and w.end_ns > w.start_ns]
    rows: list[tuple[float, ...]] = []
    for window in active:
        start, end = readings.seconds(window)
        spans = [readings.local_range(edge, power.trace.clock_error_s) for edge in (start, end)]
        # the error of one edge is anything within half an interval times what the power can change there: uniform
        at_edges = readings.interval_s / 2 * math.hypot(*spans) / math.sqrt(3)
        clock = power.trace.clock_error_s * sum(spans)
        rows.append(
            (
                readings.joules(start, end),
                end - start,
                window.inferences,
                at_edges,
                clock,
                _idle_of(window, idle, readings),
            )
        )
    joules, seconds, counts, edge_sd, clock_j, idle_w = (
        np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    return _Windows(joules, seconds, counts, idle_w, edge_sd, clock_j)


def _idle_of(window: wire.Window, idle: Sequence[wire.Window], readings: Readings) -> float:
    """Idle power of the window's own round: the nearest idle window before it and the nearest after it. NaN without both."""
    before = [w for w in idle if w.kind == "idle-before" and w.end_ns <= window.start_ns]
    after = [w for w in idle if w.kind == "idle-after" and w.start_ns >= window.end_ns]
    if not before or not after:
        return math.nan
    nearest = (max(before, key=lambda w: w.end_ns), min(after, key=lambda w: w.start_ns))
    return float(np.mean([readings.mean_w(*readings.seconds(w)) for w in nearest]))


def _standard_error(joules: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Of ΣE/ΣN over windows: the standard error that a bootstrap over the windows has, in closed form, ×√(n/(n−1))."""
    n = len(joules)
    residuals = joules - joules.sum() / counts.sum() * counts
    return math.sqrt(n / (n - 1) * np.square(residuals).sum()) / float(counts.sum())


def _idle(power: wire.Power, readings: Readings) -> _Idle | None:
    """Idle power over all rounds; None where an idle window is missing, too short or not covered by the trace."""
    means: dict[str, list[float]] = {"idle-before": [], "idle-after": []}
    variance, freedom = 0.0, 0
    for window in power.windows:
        if window.kind == "power":
            continue
        start, end = readings.seconds(window)
        if readings.between(start, end) < 2 * IDLE_PARTS or validity.uncovered(window, readings) is not None:
            return None
        edges = np.linspace(start, end, IDLE_PARTS + 1)
        parts = [readings.mean_w(a, b) for a, b in pairwise(edges)]
        spans = [readings.local_range(edge, 0.0) for edge in (start, end)]
        edge_sd = readings.interval_s / 2 * math.hypot(*spans) / math.sqrt(3) / (end - start)
        means[window.kind].append(readings.mean_w(start, end))
        variance += float(np.var(parts, ddof=1)) / IDLE_PARTS + edge_sd**2
        freedom += IDLE_PARTS - 1
    before, after = means["idle-before"], means["idle-after"]
    if not before or not after:
        return None
    count = len(before) + len(after)
    return _Idle(float(np.mean(before)), float(np.mean(after)), math.sqrt(variance) / count, freedom)


def _dynamic(windows: _Windows, idle: _Idle, budget: Budget, edges: float, info: wire.SensorInfo) -> Estimate | None:
    """Energy over idle. The meter's offset is in both and cancels; what the idle power changed by may be anywhere between."""
    if np.isnan(windows.idle_w).any():
        return None
    joules = windows.joules - windows.idle_w * windows.seconds
    value, freedom = joules.sum() / windows.counts.sum(), len(joules) - 1
    per_inference_s = float(windows.seconds.sum() / windows.counts.sum())
    scatter = student_quantile((1 + CONFIDENCE) / 2, freedom) * _standard_error(joules, windows.counts)
    noise = student_quantile((1 + CONFIDENCE) / 2, idle.freedom) * idle.error_w * per_inference_s
    drift = abs(idle.after_w - idle.before_w) / 2 * per_inference_s
    chance = math.sqrt(scatter**2 + (_normal() * edges) ** 2 + noise**2)
    half = chance + drift + abs(value) * info.gain_error + budget.step + budget.clock
    return Estimate(float(value), float(value - half), float(value + half))


def _normal() -> float:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
