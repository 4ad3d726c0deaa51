"""Whether a power trace can be believed: what makes a trace invalid, what is only warned of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from edgecompress_agent import wire
from numpy.typing import NDArray

from edgecompress.energy.trace import Readings

GAP_INTERVALS = 3.0
STALE_LIMIT, STALE_WARNING = 0.10, 0.01
LATE_WARNING = 0.05
MIN_WINDOWS = 5
SHORT_WINDOW_S = 10.0
WINDOW_SPREAD = 0.05
IDLE_CHANGE = 0.05
SLOW_SENSOR = 1.5
MAX_POWER_UW = 10**12
LOCKED = 0.5
"""Resultant of the readings' phases within an inference (0: spread evenly, 1: always the same moment) from which it is said."""
SENSOR_COST = 1.05
"""Latency with the sensor over latency without it from which it is said."""

_PI_THROTTLED_NOW, _PI_THROTTLED_SINCE = 0xF, 0xF0000


def impossible(power: wire.Power) -> str | None:
    """Numbers that no sensor and no clock has: what a device sends is checked before it is computed with."""
    stamps = (*power.trace.t_ns, *(t for w in power.windows for t in (w.start_ns, w.end_ns)))
    if any(abs(t) >= 2**63 for t in stamps):
        return "a time stamp that no clock has"
    if any(abs(p) > MAX_POWER_UW for p in power.trace.power_uw):
        return "a power of more than a megawatt"
    return None


def reasons(
    power: wire.Power, readings: Readings, conditions: Sequence[wire.Conditions], plan: wire.PowerPlan
) -> tuple[str, ...]:
    """Why the trace gives no energy; empty: it does."""
    trace, found = power.trace, []
    active = [w for w in power.windows if w.kind == "power"]
    if len(active) < 2:
        found.append(f"{len(active) or 'no'} window under load: without two there is no interval")
    if any(w.inferences == 0 or w.end_ns == w.start_ns for w in active):
        found.append("a window under load without an inference")
    if readings.count < 2:
        found.append("the sensor gave no readings" + (f": {trace.ended_reason}" if trace.ended_reason else ""))
        return tuple(found)
    if len({c.boot_id for c in conditions if c.boot_id is not None}) > 1:
        found.append(
            "the device was restarted between two rounds: its clock began anew, and their traces do not fit together"
        )
        return tuple(found)
    backwards = int((np.diff(readings.t_s) <= 0).sum())
    if backwards:
        found.append(f"the clock of the readings stood still or went backwards {backwards} times")
        return tuple(found)
    if trace.overflows:
        found.append(f"{trace.overflows} readings were out of the sensor's range (overflow)")
    if trace.stale > STALE_LIMIT * readings.count:
        found.append(f"{trace.stale} of {readings.count} readings repeated the one before (stale)")
    for number, window in enumerate(active, 1):
        missing = uncovered(window, readings)
        if missing is not None:
            ended = f": {trace.ended_reason}" if trace.ended_reason and missing.startswith("the readings end") else ""
            found.append(f"window {number} of {len(active)}: {missing}{ended}")
            break
        count = readings.between(*readings.seconds(window))
        if count < max(plan.min_samples, 3):
            found.append(
                f"window {number} of {len(active)}: {count} readings are too few (at least {max(plan.min_samples, 3)})"
            )
            break
    return (*found, *_device_reasons(conditions))


def uncovered(window: wire.Window, readings: Readings) -> str | None:
    """Where the readings leave a window uncovered: at its ends by more than one interval, within by more than three."""
    start, end = readings.seconds(window)
    reach = SLOW_SENSOR * readings.interval_s
    if readings.t_s[0] > start + reach:
        return f"the readings begin {readings.t_s[0] - start:.3g} s after it"
    if readings.t_s[-1] < end - reach:
        return f"the readings end {end - readings.t_s[-1]:.3g} s before it does"
    first = max(0, int(np.searchsorted(readings.t_s, start, side="right")) - 1)
    last = int(np.searchsorted(readings.t_s, end, side="left")) + 1
    steps = np.diff(readings.t_s[first:last])
    longest = float(steps.max()) if steps.size else 0.0
    if longest > GAP_INTERVALS * readings.interval_s:
        return f"no reading for {longest:.3g} s, more than {GAP_INTERVALS:g} intervals of {readings.interval_s:.3g} s"
    return None


def _device_reasons(conditions: Sequence[wire.Conditions]) -> list[str]:
    """Throttling and a change of governor or power mode: the windows are then of two different devices."""
    if not conditions:
        return []
    found, first, last = [], conditions[0], conditions[-1]
    bits = [b for b in (_bits(c.throttled) for c in conditions) if b is not None]
    if bits and (any(b & _PI_THROTTLED_NOW for b in bits) or (bits[-1] & ~bits[0]) & _PI_THROTTLED_SINCE):
        found.append("the device was throttled during the measurement")
    before, after = first.throttle_counts or {}, last.throttle_counts or {}
    if any(after[name] > before[name] for name in after.keys() & before.keys()):
        found.append("the kernel counted thermal throttling during the measurement")
    for what in ("governors", "power_mode"):
        values = {str(getattr(c, what)) for c in conditions if getattr(c, what) is not None}
        if len(values) > 1:
            found.append(f"the {what.rstrip('s').replace('_', ' ')} changed during the measurement")
    return found


def _bits(throttled: str | None) -> int | None:
    try:
        return None if throttled is None else int(throttled, 16)
    except ValueError:
        return None


def warnings(
    power: wire.Power, readings: Readings, plan: wire.PowerPlan, window_j: NDArray[np.float64]
) -> tuple[str, ...]:
    """What makes a valid energy less certain than its interval says."""
    trace, found = power.trace, []
    active = [w for w in power.windows if w.kind == "power"]
    if trace.info.replayed:
        found.append("the power is a recorded trace that was replayed, not this device's")
    if len(active) < MIN_WINDOWS:
        found.append(f"energy from {len(active)} windows only: its interval is wide or too narrow")
    shortest = min((w.end_ns - w.start_ns) / 1e9 for w in active)
    if shortest < SHORT_WINDOW_S * 0.99:
        found.append(f"windows of {shortest:.2g} s: shorter than the {SHORT_WINDOW_S:g} s that are asked of an energy")
    if plan.min_samples < wire.PowerPlan().min_samples:
        found.append(f"a window may have as few as {plan.min_samples} readings of the sensor")
    if trace.stale > STALE_WARNING * readings.count:
        found.append(f"{trace.stale} of {readings.count} readings repeated the one before (stale)")
    if trace.late > LATE_WARNING * readings.count:
        found.append(f"{trace.late} of {readings.count} readings came late: something else used the device or its bus")
    if trace.dropped > STALE_WARNING * readings.count:
        found.append(f"{trace.dropped} values of the sensor were not read in time")
    if readings.interval_s > SLOW_SENSOR * trace.info.interval_s:
        found.append(
            f"the sensor gave a value every {readings.interval_s:.3g} s, not every {trace.info.interval_s:.3g} s"
        )
    spread = float((window_j.max() - window_j.min()) / np.median(window_j))
    if spread > WINDOW_SPREAD:
        found.append(f"not steady: the energies of the windows lie {100 * spread:.0f} % apart")
    if _locked(active, readings):
        found.append(
            "the sensor's readings fall on the same moments of every inference: what lies between them was not seen, and the "
            "interval does not know of it; another sampling interval mends it"
        )
    return tuple(found)


def _locked(active: Sequence[wire.Window], readings: Readings) -> bool:
    """Whether the readings' phases within an inference cluster, on one moment or on two opposite ones.

    The jitter of an inference that is much shorter than the interval spreads the phases.
    """
    resultants = []
    for window in active:
        start, end = readings.seconds(window)
        period = (end - start) / window.inferences
        t = readings.t_s[(readings.t_s >= start) & (readings.t_s <= end)]
        if t.size < 10 or period < readings.interval_s / 100:
            continue
        turns = (t - start) / period
        resultants.append(max(abs(complex(np.exp(2j * np.pi * k * turns).mean())) for k in (1, 2)))
    return bool(resultants) and float(np.median(resultants)) > LOCKED


def idle_warnings(before_w: float, after_w: float, error_w: float, mean_w: float, step_w: float) -> tuple[str, ...]:
    """What keeps the energy over idle from meaning much. error_w: standard error of the idle power; step_w: of the meter."""
    found, middle = [], (before_w + after_w) / 2
    if abs(after_w - before_w) > max(step_w, IDLE_CHANGE * abs(middle), 2 * error_w):
        found.append(
            f"the idle device drew {before_w:.3g} W before and {after_w:.3g} W after: something else ran, or it warmed up"
        )
    if mean_w - middle < step_w:
        found.append(
            "under load the device draws less than one step of the meter more than idle: the energy over idle is noise"
        )
    return tuple(found)


def sensor_cost(result: wire.Result) -> float | None:
    """Median latency of the power pass, with the sensor on, over that of the timing; None where one of the two was not timed."""
    beside = [w.latency_ns_p50 for w in result.power.windows if w.latency_ns_p50] if result.power else []
    alone = [ns for block in result.blocks for ns in block.latencies_ns]
    return statistics.median(beside) / statistics.median(alone) if beside and alone else None


def sensor_warnings(cost: float | None) -> tuple[str, ...]:
    """What the sensor itself adds to the energy. cost: of `sensor_cost`."""
    if cost is None or cost < SENSOR_COST:
        return ()
    return (f"with the sensor on, an inference takes {100 * (cost - 1):.0f} % longer: the energy holds that, too",)
