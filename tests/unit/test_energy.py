"""Joules from a trace: the integral, the interval, what makes a trace invalid, comparisons."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import report_case as case
from edgecompress_agent import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress import energy, stats
from edgecompress.energy.trace import Readings

S = 10**9
EXACT = dataclasses.replace(case.METER, resolution_w=0.0, gain_error=0.0, offset_error_w=0.0)


def trace(t_s: list[float], watts: list[float], **changes: Any) -> wire.Trace:
    stamps = tuple(round(t * S) for t in t_s)
    return dataclasses.replace(wire.Trace(EXACT, stamps, tuple(round(p * 1e6) for p in watts)), **changes)


def changed(power: wire.Power, **changes: Any) -> wire.Power:
    return dataclasses.replace(power, trace=dataclasses.replace(power.trace, **changes))


def gross(power: wire.Power, **asked: Any) -> stats.Estimate:
    summary = energy.summarise(power, **asked)
    assert summary.gross_j is not None, summary.invalid
    return summary.gross_j


def test_the_trapezoid_uses_the_actual_stamps_and_interpolates_the_edges() -> None:
    readings = Readings.of(trace([0, 1, 1.5, 4], [0, 2, 3, 8]))  # P = 2 t, read at uneven times
    for start, end in ((0, 4), (0.25, 3.5), (1.2, 1.3), (1, 1.5)):
        assert readings.joules(start, end) == pytest.approx(end**2 - start**2, abs=1e-9)


@given(
    st.lists(st.tuples(st.floats(1e-3, 5), st.floats(-10, 100)), min_size=2, max_size=30),
    st.floats(0, 1), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_energies_of_neighbouring_spans_add(pieces: list[tuple[float, float]], a: float, b: float, c: float) -> None:
    stamps = np.cumsum([p[0] for p in pieces]).tolist()
    readings = Readings.of(trace(stamps, [p[1] for p in pieces]))
    end = float(readings.t_s[-1])
    first, middle, last = (end * x for x in sorted((a, b, c)))
    whole = readings.joules(first, last)
    assert readings.joules(first, middle) + readings.joules(middle, last) == pytest.approx(whole, abs=1e-6)
    bound = (last - first) * float(np.abs(readings.power_w).max())
    assert abs(whole) <= bound + 1e-6


def test_time_stamps_of_a_board_that_is_up_for_years_lose_nothing() -> None:
    power = case.power(2.0, 5.0)
    late = 10**17 + 7
    moved = wire.Power(
        dataclasses.replace(power.trace, t_ns=tuple(t + late for t in power.trace.t_ns)),
        tuple(dataclasses.replace(w, start_ns=w.start_ns + late, end_ns=w.end_ns + late) for w in power.windows),
    )
    assert gross(moved) == gross(power)


def test_constant_power_gives_its_energy_and_an_interval_of_the_meters_limits() -> None:
    power = changed(case.power(10.0, 5.0), power_uw=(5_000_000,) * 720)
    summary = energy.summarise(power)
    assert summary.gross_j and summary.budget and summary.dynamic_j
    assert summary.gross_j.value == pytest.approx(0.05)
    limits = 0.01 * 0.05 + (0.01 + 0.004) * 0.01
    assert summary.gross_j.high - 0.05 == pytest.approx(limits) and summary.budget.half_width == pytest.approx(limits)
    assert summary.dynamic_j.value == pytest.approx(0.0, abs=1e-12)
    assert any("less than one step" in w for w in summary.warnings)


def test_the_windows_scatter_is_students_interval_of_their_mean() -> None:
    power = changed(case.power(10.0, 5.0, 3), info=EXACT)
    summary = energy.summarise(power)
    assert summary.budget and summary.gross_j
    joules = np.asarray(summary.window_j)
    assert summary.gross_j.value == pytest.approx(joules.mean())
    assert summary.budget.windows == pytest.approx(2.7764 * joules.std(ddof=1) / math.sqrt(5), rel=1e-3)


def test_the_offset_cancels_over_idle_and_the_gain_does_not() -> None:
    power = case.power(10.0, 5.0)
    plain = energy.summarise(power).dynamic_j
    moved = energy.summarise(changed(power, power_uw=tuple(p + 500_000 for p in power.trace.power_uw))).dynamic_j
    scaled = energy.summarise(changed(power, power_uw=tuple(2 * p for p in power.trace.power_uw))).dynamic_j
    assert plain and moved and scaled
    assert moved.value == pytest.approx(plain.value, rel=1e-6)
    assert scaled.value == pytest.approx(2 * plain.value, rel=1e-5)
    worse = energy.summarise(changed(power, info=dataclasses.replace(case.METER, offset_error_w=1.0))).dynamic_j
    assert worse == plain


def test_a_shifted_clock_widens_by_what_the_power_does_at_the_edges() -> None:
    power = case.power(10.0, 5.0)
    base, shifted = gross(power), gross(changed(power, clock_error_s=0.6))
    assert shifted.value == base.value and shifted.high > base.high, "0.6 s reach the idle before the first window"


def test_each_round_has_its_own_idle() -> None:
    first, second = case.power(10.0, 5.0), case.power(10.0, 5.5, 1, idle_w=3.0)
    later = first.trace.t_ns[-1] + 3600 * S
    joined = wire.Power(
        dataclasses.replace(
            first.trace,
            t_ns=first.trace.t_ns + tuple(t + later for t in second.trace.t_ns),
            power_uw=first.trace.power_uw + second.trace.power_uw,
        ),
        first.windows
        + tuple(dataclasses.replace(w, start_ns=w.start_ns + later, end_ns=w.end_ns + later) for w in second.windows),
    )
    summary = energy.summarise(joined)
    assert summary.invalid == (), "an hour between two rounds is no gap of a window"
    assert summary.windows == 10 and summary.dynamic_j
    assert summary.dynamic_j.value == pytest.approx(0.025, rel=0.01)


INVALID: dict[str, tuple[Callable[[wire.Power], wire.Power], str]] = {
    "overflow": (lambda p: changed(p, overflows=1), "out of the sensor's range"),
    "stale": (lambda p: changed(p, stale=100), "100 of 720 readings repeated"),
    "backwards": (
        lambda p: changed(p, t_ns=(*p.trace.t_ns[:300], p.trace.t_ns[298], *p.trace.t_ns[301:])), "went backwards",
    ),
    "gap": (
        lambda p: changed(
            p, t_ns=p.trace.t_ns[:200] + p.trace.t_ns[206:], power_uw=p.trace.power_uw[:200] + p.trace.power_uw[206:]
        ),
        "window 2 of 5: no reading for 0.7 s",
    ),
    "ended": (
        lambda p: changed(p, t_ns=p.trace.t_ns[:500], power_uw=p.trace.power_uw[:500], ended_reason="unplugged"),
        "before it does: unplugged",
    ),
    "late start": (lambda p: changed(p, t_ns=p.trace.t_ns[100:], power_uw=p.trace.power_uw[100:]), "the readings begin"),
    "no readings": (lambda p: changed(p, t_ns=(), power_uw=(), ended_reason="it died"), "no readings: it died"),
    "no power": (lambda p: changed(p, power_uw=(-1,) * 720), "cannot be"),
    "no window": (lambda p: wire.Power(p.trace, p.windows[:1]), "no window under load"),
    "one window": (lambda p: wire.Power(p.trace, (p.windows[0], p.windows[1], p.windows[-1])), "without two"),
    "no inference": (
        lambda p: wire.Power(p.trace, (p.windows[1], dataclasses.replace(p.windows[2], inferences=0))), "without an inference",
    ),
    "absurd power": (lambda p: changed(p, power_uw=(10**300,) * 720), "megawatt"),
    "absurd clock": (lambda p: changed(p, t_ns=tuple(10**300 + t for t in p.trace.t_ns)), "no clock has"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_a_trace_that_cannot_be_trusted_gives_a_reason_and_no_figure(name: str) -> None:
    spoil, reason = INVALID[name]
    summary = energy.summarise(spoil(case.power(10.0, 5.0)))
    assert reason in "; ".join(summary.invalid)
    assert summary.gross_j is summary.dynamic_j is summary.mean_w is summary.inferences_per_wh is summary.edp_js is None
    assert summary.hours_on_battery(10.0) is None


def test_too_few_readings_are_those_that_the_plan_asks_for() -> None:
    assert (
        "111 readings are too few"
        in energy.summarise(case.power(10.0, 5.0), plan=wire.PowerPlan(min_samples=200)).invalid[0]
    )
    relaxed = energy.summarise(case.power(10.0, 5.0), plan=wire.PowerPlan(min_samples=20))
    assert relaxed.gross_j and any("as few as 20" in w for w in relaxed.warnings)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"throttled": "0x0"}, {"throttled": "0x4"}, "throttled"),
        ({"throttled": "0x0"}, {"throttled": "0x40000"}, "throttled"),
        ({"throttled": "0x50000"}, {"throttled": "0x50000"}, ""),
        ({"throttle_counts": {"core": 3}}, {"throttle_counts": {"core": 4}}, "thermal throttling"),
        ({"governors": ("performance",)}, {"governors": ("powersave",)}, "governor changed"),
        ({"power_mode": "MAXN"}, {"power_mode": "15W"}, "power mode changed"),
        ({"throttled": "nonsense"}, {"throttled": None}, ""),
        ({"boot_id": "a"}, {"boot_id": "b"}, "restarted between two rounds"),
        ({"boot_id": "a"}, {"boot_id": None}, ""),
    ],
)
def test_a_device_that_changed_makes_the_energy_invalid(
    before: dict[str, Any], after: dict[str, Any], reason: str
) -> None:
    conditions = (case.conditions("before", 0, **before), case.conditions("power", S, **after))
    summary = energy.summarise(case.power(10.0, 5.0), conditions=conditions)
    assert (reason in "; ".join(summary.invalid)) if reason else summary.gross_j is not None


def test_a_restart_is_the_reason_and_not_the_clock_that_began_anew_with_it() -> None:
    first, second = case.power(10.0, 5.0), case.power(10.0, 5.0, 1)  # both boots count from the same moment
    joined = wire.Power(
        dataclasses.replace(
            first.trace,
            t_ns=first.trace.t_ns + second.trace.t_ns,
            power_uw=first.trace.power_uw + second.trace.power_uw,
        ),
        first.windows + second.windows,
    )
    boots = tuple(case.conditions("power", S, boot_id=boot) for boot in ("a", "b"))
    (said,) = energy.summarise(joined, conditions=boots).invalid
    assert "restarted" in said and "backwards" not in said


def test_a_sound_trace_gives_no_warning() -> None:
    assert energy.summarise(case.power(10.3, 5.0)).warnings == ()


def test_what_makes_an_energy_less_certain_is_warned_of() -> None:
    power = case.power(10.3, 5.0, windows=3, info=dataclasses.replace(case.METER, replayed=True))
    said = " ".join(energy.summarise(changed(power, late=100, dropped=50, stale=20)).warnings)
    for text in ("replayed", "3 windows only", "came late", "not read in time", "stale"):
        assert text in said
    slow = energy.summarise(changed(power, info=dataclasses.replace(case.METER, interval_s=0.01)))
    assert any("every 0.1 s, not every 0.01 s" in w for w in slow.warnings)
    drifting = [p * (1 + i / 5000) for i, p in enumerate(case.power(10.3, 5.0).trace.power_uw)]
    steady = energy.summarise(changed(case.power(10.3, 5.0), power_uw=tuple(round(p) for p in drifting)))
    assert any("not steady" in w for w in steady.warnings) and any("something else ran" in w for w in steady.warnings)


def test_without_idle_there_is_gross_energy_only() -> None:
    power = case.power(10.3, 5.0)
    for windows in (power.windows[1:], power.windows[:-1], power.windows[1:-1]):
        summary = energy.summarise(wire.Power(power.trace, windows))
        assert summary.gross_j and summary.dynamic_j is None and summary.idle_w is None
        assert any("over idle" in w for w in summary.warnings)
        assert summary.hours_on_battery(10.0, 5.0) is None
    nothing = dataclasses.replace(power.windows[0], end_ns=power.windows[0].start_ns)
    assert energy.summarise(wire.Power(power.trace, (nothing, *power.windows[1:]))).dynamic_j is None


@pytest.mark.parametrize(("ms", "locked"), [(100.0, True), (50.0, True), (1000.0, False), (73.0, False), (10.3, False)])
def test_readings_in_step_with_the_inferences_are_warned_of(ms: float, locked: bool) -> None:
    summary = energy.summarise(case.power(ms, 5.0))
    assert any("same moments" in w for w in summary.warnings) is locked


def test_hours_on_a_battery() -> None:
    summary = energy.summarise(case.power(10.0, 5.0))
    assert summary.hours_on_battery(50.0) == pytest.approx(10.0, rel=0.01)
    assert summary.hours_on_battery(50.0, 50.0) == pytest.approx(50 / 3.75, rel=0.01), (
        "half the time at 5 W, half at 2.5 W"
    )
    for wh, rate in ((0.0, None), (50.0, 0.0), (50.0, 101.0)):
        with pytest.raises(ValueError, match=r"above 0|more than"):
            summary.hours_on_battery(wh, rate)
    module = energy.summarise(case.power(10.0, 5.0, info=dataclasses.replace(case.METER, scope="module")))
    assert module.hours_on_battery(50.0) is None


def test_comparisons_have_direction_interval_and_verdict() -> None:
    more, less = energy.summarise(case.power(10.0, 5.0)), energy.summarise(case.power(10.0, 4.5, 1))
    found = energy.compare(more, less)
    assert found.verdict == "less" and found.ratio
    assert found.ratio.low < 5.0 / 4.5 < found.ratio.high and found.ratio.low > 1.09
    back = energy.compare(less, more)
    assert back.verdict == "more" and back.ratio and back.ratio.value == pytest.approx(1 / found.ratio.value)
    same = energy.compare(more, energy.summarise(case.power(10.0, 5.0, 2)))
    assert same.verdict == stats.NO_DIFFERENCE and same.ratio and same.ratio.low < 1 < same.ratio.high


def test_a_difference_below_one_step_of_the_meter_is_none() -> None:
    coarse = dataclasses.replace(case.METER, resolution_w=0.4)
    a, b = (energy.summarise(case.power(10.0, w, s, info=coarse)) for w, s in ((5.0, 0), (4.7, 1)))
    assert energy.compare(a, b).verdict == stats.NO_DIFFERENCE
    fine = [energy.summarise(case.power(10.0, w, s)) for w, s in ((5.0, 0), (4.7, 1))]
    assert energy.compare(fine[0], fine[1]).verdict == "less"


def test_two_meters_do_not_share_their_errors() -> None:
    a, b = energy.summarise(case.power(10.0, 5.0)), energy.summarise(case.power(10.0, 4.9, 1))
    other = energy.summarise(case.power(10.0, 4.9, 1, info=dataclasses.replace(case.METER, description="another one")))
    one, two = energy.compare(a, b), energy.compare(a, other)
    assert one.verdict == "less" and two.verdict == stats.NO_DIFFERENCE


def test_what_cannot_be_compared_is_refused_with_the_reason() -> None:
    board = energy.summarise(case.power(10.0, 5.0))
    module = energy.summarise(case.power(10.0, 5.0, info=dataclasses.replace(case.METER, scope="module")))
    replayed = energy.summarise(case.power(10.0, 5.0, info=dataclasses.replace(case.METER, replayed=True)))
    broken = energy.summarise(changed(case.power(10.0, 5.0), overflows=1))
    for other, reason in ((module, "different scopes"), (replayed, "recorded trace"), (broken, "no valid energy")):
        found = energy.compare(board, other)
        assert found.ratio is found.verdict is None and reason in str(found.reason)


def test_the_interval_holds_the_truth_of_the_process_as_often_as_it_says() -> None:
    """400 passes of windows that scatter around a known energy; an exact meter, so that only chance is in the interval."""
    held = 0
    for seed in range(400):
        estimate = gross(case.power(10.0, 5.0, seed, info=EXACT))
        held += estimate.low <= 0.05 <= estimate.high
    assert 0.93 * 400 <= held <= 0.99 * 400


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_a_device_sends_gives_figures_or_a_reason(data: st.DataObject) -> None:
    power = case.power(10.0, 5.0, windows=2)
    index = data.draw(st.integers(0, len(power.trace.t_ns) - 1))
    stamp = data.draw(st.integers(-(10**30), 10**30))
    watts = data.draw(st.integers(-(10**30), 10**30))
    t_ns, power_uw = list(power.trace.t_ns), list(power.trace.power_uw)
    t_ns[index], power_uw[index] = stamp, watts
    windows = list(power.windows)
    start = data.draw(st.integers(-(10**20), 10**20))
    windows[1] = dataclasses.replace(
        windows[1],
        start_ns=start,
        end_ns=start + data.draw(st.integers(0, 10**20)),
        inferences=data.draw(st.integers(0, 10**12)),
    )
    spoiled = wire.Power(dataclasses.replace(power.trace, t_ns=tuple(t_ns), power_uw=tuple(power_uw)), tuple(windows))
    summary = energy.summarise(spoiled)
    assert (summary.gross_j is None) == bool(summary.invalid)
    if summary.gross_j:
        assert all(math.isfinite(v) for v in summary.gross_j)
