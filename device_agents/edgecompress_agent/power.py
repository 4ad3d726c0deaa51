"""The power pass: idle, windows of back-to-back inferences, idle; meanwhile the sampler reads the sensor.

It comes after the timing, which has no sensor beside it, so that the latencies are free of it; the median latency of each
window here tells what the sensor costs.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from array import array
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from edgecompress_agent import sensors, wire
from edgecompress_agent.engines import Engine
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sampler import Sampler

_LATENCIES = 1 << 16
"""That a window keeps for its median: the last ones."""
_IDLE_SAMPLES = 10
"""That an idle window has at least, however slow the sensor."""
_EDGES = 2
"""Readings kept during a window whose stamps may lie just outside of it."""
_MARGIN = 1.1
"""More than the nominal time for the samples that a window needs, so that a slow reading or two do not prolong it."""


class Outcome(NamedTuple):
    """What the pass gives: see `wire.Result`."""

    power: Optional[wire.Power] = None
    reason: Optional[str] = None
    windows: Tuple[wire.Window, ...] = ()


def wanted(job: wire.Job) -> bool:
    """Whether the job has a power pass at all."""
    return job.power is not None and (job.sensor != "none" or job.power.host_interval_s is not None)


def refuse_unknown(job: wire.Job) -> None:
    """AgentError when the job asks for a sensor or an option that this agent does not have: before anything is measured."""
    sensors.check_options(job.sensor, job.sensor_options, sensors.find(job.sensor).OPTIONS)


def measure(
    engine: Engine,
    feeds: Sequence[Any],
    job: wire.Job,
    *,
    cpus: Optional[Sequence[int]],
    begin: Callable[[float], None],
    keep: Callable[[wire.Power], None] = lambda power: None,
) -> Outcome:
    """Run the pass. cpus: where the sampler may run. begin: told how long it will take, in s. keep: given what there is after
    each window.

    A sensor that is not there, or that fails, is a reason and no error: the latencies stand. What was read until then is kept.
    """
    plan = job.power
    if plan is None:
        return Outcome(reason="the job did not ask for power")
    if plan.host_interval_s is not None:
        begin(expected_s(plan, plan.host_interval_s))
        return Outcome(windows=tuple(_windows(engine, feeds, plan, plan.host_interval_s, None)))
    try:
        sensor = sensors.open_sensor(job.sensor, job.sensor_options)
    except (AgentError, OSError) as error:
        return Outcome(reason=str(error))
    with Sampler(sensor, cpus) as sampler:
        begin(expected_s(plan, sampler.info.interval_s))
        windows: List[wire.Window] = []
        if sampler.wait_for(0):
            windows = _windows(engine, feeds, plan, sampler.info.interval_s, sampler, keep)
            if windows:
                sampler.wait_for(windows[-1].end_ns)  # the edge of the last window lies between two readings
        trace = sampler.stop()
    if not trace.t_ns:
        return Outcome(reason=trace.ended_reason or f"{trace.info.name} gave no reading for {sampler.timeout_s:g} s")
    return Outcome(wire.Power(trace, tuple(windows)), trace.ended_reason)


def expected_s(plan: wire.PowerPlan, interval_s: float) -> float:
    """How long the pass takes with a sensor of this interval."""
    pauses_s = (plan.windows - 1) * interval_s / 2
    windows_s = plan.windows * (plan.settle_s + _window_s(plan, interval_s))
    return 2 * (_idle_s(plan, interval_s) + plan.settle_s) + windows_s + pauses_s


def _idle_s(plan: wire.PowerPlan, interval_s: float) -> float:
    return max(plan.idle_s, _IDLE_SAMPLES * interval_s) if plan.idle_s else 0.0


def _window_s(plan: wire.PowerPlan, interval_s: float) -> float:
    return min(max(plan.window_s, _MARGIN * plan.min_samples * interval_s), plan.max_window_s)


def _windows(
    engine: Engine,
    feeds: Sequence[Any],
    plan: wire.PowerPlan,
    interval_s: float,
    sampler: Optional[Sampler],
    keep: Callable[[wire.Power], None] = lambda power: None,
) -> List[wire.Window]:
    """The windows, in order; fewer when the sensor fails on the way."""

    def failed() -> bool:
        return sampler is not None and sampler.ended is not None

    idle_s, window_s = _idle_s(plan, interval_s), _window_s(plan, interval_s)
    windows: List[wire.Window] = []
    time.sleep(plan.settle_s)
    if idle_s:
        windows.append(_idle("idle-before", idle_s))
    for _ in range(plan.windows):
        if failed():
            return windows
        if windows and windows[-1].latency_ns_p50:
            # A sensor that keeps step with the inferences sees the same moments of each. Windows that begin at random moments
            # of its interval differ by what it misses, and so the interval of the energy knows of it.
            time.sleep(random.uniform(0, max(interval_s, windows[-1].latency_ns_p50 / 1e9)))
        _run(engine, feeds, plan.settle_s, plan.settle_s, lambda: True)
        had = sampler.count if sampler is not None else 0

        def full(had: int = had) -> bool:
            return sampler is None or failed() or sampler.count - had >= plan.min_samples + _EDGES

        windows.append(_run(engine, feeds, window_s, plan.max_window_s, full))
        if sampler is not None:
            keep(wire.Power(sampler.so_far(), tuple(windows)))
    time.sleep(plan.settle_s)
    if idle_s and not failed():
        windows.append(_idle("idle-after", idle_s))
    return windows


def _idle(kind: str, seconds: float) -> wire.Window:
    start = time.monotonic_ns()
    time.sleep(seconds)
    return wire.Window(kind, start, time.monotonic_ns(), 0)


def _run(engine: Engine, feeds: Sequence[Any], seconds: float, most_s: float, full: Callable[[], bool]) -> wire.Window:
    """Back-to-back inferences for so many seconds, and on until the window is `full`, at most for most_s."""
    kept = array("q", bytes(8 * _LATENCIES))
    step, clock, inputs, count = engine.step, time.monotonic_ns, len(feeds), 0
    gc.collect()
    gc.disable()
    try:
        start = after = clock()
        end, last = start + int(seconds * 1e9), start + int(most_s * 1e9)
        while after < end:
            feed = feeds[count % inputs]
            before = clock()
            step(feed)
            after = clock()
            kept[count % _LATENCIES] = after - before
            count += 1
            if after >= end and after < last and not full():
                end = min(after + 50_000_000, last)
    finally:
        gc.enable()
    p50 = int(statistics.median_low(kept[: min(count, _LATENCIES)])) if count else None
    return wire.Window("power", start, after, count, p50)
