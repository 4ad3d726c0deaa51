"""The sampler: what the sensor says is in the trace, whatever it is; the store is bounded and keeps the integral."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from edgecompress_agent import wire
from edgecompress_agent.sampler import Recorder, Sampler, spare_cpus
from edgecompress_agent.sensors import Sample, SensorFault
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

INFO = wire.SensorInfo("fake", "a fake", "board", 0.002, 0.001, 0.01, 0.002)
MS = 1_000_000


class Fake:
    """A sensor with a list of what happens: samples to give and errors to raise, every 2 ms; then silence until it is closed."""

    info = INFO

    def __init__(self, script: Sequence[Sample | BaseException], interval_s: float = 0.002) -> None:
        self._script, self._interval_s = list(script), interval_s
        self.closed = threading.Event()
        self.affinity: set[int] = set()

    def read(self, timeout_s: float) -> Sample:
        self.affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        if not self._script:
            self.closed.wait(60)  # not timeout_s: a busy machine may not have come to its assertions by then
            raise SensorFault("closed")
        time.sleep(self._interval_s)
        now = self._script.pop(0)
        if isinstance(now, BaseException):
            raise now
        return now

    def close(self) -> None:
        self.closed.set()


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def _energy_uj(t_ns: Sequence[int], power_uw: Sequence[float]) -> float:
    """Trapezoid over the stamps."""
    return sum((b - a) * (p + q) / 2 for a, b, p, q in zip(t_ns, t_ns[1:], power_uw, power_uw[1:], strict=False)) / 1e9


def test_all_that_was_said_is_in_the_trace() -> None:
    samples = [
        Sample(0, 5, rails_mw={"A": 1, "B": -2}),
        Sample(2 * MS, 7, stale=True, rails_mw={"A": 3, "B": 4}),
        Sample(4 * MS, -9, overflow=True, rails_mw={"A": 0, "B": 0}),
        Sample(12 * MS, 9, rails_mw={"A": 1, "B": 1}),  # three values late
        Sample(11 * MS, 8, rails_mw={"A": 1, "B": 1}),  # a clock that goes backwards
    ]
    sensor = Fake(samples)
    with Sampler(sensor) as sampler:
        _until(lambda: sampler.count == 5)
        assert sampler.wait_for(4 * MS)
        trace = sampler.stop()
    assert trace.t_ns == (0, 2 * MS, 4 * MS, 12 * MS, 11 * MS)
    assert trace.power_uw == (5, 7, -9, 9, 8)
    assert trace.rails_mw == {"A": (1, 3, 0, 1, 1), "B": (-2, 4, 0, 1, 1)}
    assert (trace.stale, trace.overflows, trace.late, trace.dropped) == (1, 1, 1, 3)
    assert trace.ended_reason is None and trace.info == INFO
    assert sensor.closed.is_set()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (SensorFault("the line was unplugged"), "the line was unplugged"),
        (OSError(121, "Remote I/O error"), "[Errno 121] Remote I/O error"),
        (Sample(6 * MS, 1, rails_mw={"VDD_IN": 1}), "its rails changed from none to VDD_IN"),
    ],
)
def test_a_failure_ends_the_trace_and_keeps_what_there_is(failure: Sample | BaseException, reason: str) -> None:
    sensor = Fake([Sample(0, 1), Sample(2 * MS, 2), failure, Sample(8 * MS, 3)])
    with Sampler(sensor) as sampler:
        _until(lambda: sampler.ended is not None)
        assert not sampler.wait_for(4 * MS), "no reading will come"
        trace = sampler.stop()
    assert (trace.t_ns, trace.power_uw, trace.ended_reason) == ((0, 2 * MS), (1, 2), reason)
    assert sensor.closed.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_a_sensor_is_a_reason_too() -> None:
    with Sampler(Fake([Sample(0, 1), ZeroDivisionError()])) as sampler:
        _until(lambda: sampler.ended is not None)
        trace = sampler.stop()
    assert trace.t_ns == (0,) and "should not" in (trace.ended_reason or "")


def test_stopping_while_it_waits_is_no_failure() -> None:
    sensor = Fake([Sample(0, 1)])
    with Sampler(sensor) as sampler:
        _until(lambda: sampler.count == 1)
        began = time.monotonic()
        trace = sampler.stop()
    assert time.monotonic() - began < 30
    assert trace.ended_reason is None and trace.t_ns == (0,)


def test_forgetting_begins_anew() -> None:
    sensor = Fake([Sample(i * 2 * MS, i) for i in range(1, 20_000)])  # more than it comes to while this thread sleeps
    with Sampler(sensor) as sampler:
        _until(lambda: sampler.count >= 20)
        sampler.forget()
        _until(lambda: sampler.count >= 5)
        trace = sampler.stop()
    assert trace.t_ns[0] > 15 * 2 * MS


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="CPU affinity is Linux's")
def test_it_keeps_off_the_cpus_of_the_inference() -> None:
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        pytest.skip("needs two CPUs")
    spare = spare_cpus((mine[0],))
    assert spare == mine[1:]
    sensor = Fake([Sample(0, 1)])
    with Sampler(sensor, spare) as sampler:
        _until(lambda: sampler.count == 1)
    assert sensor.affinity == set(mine[1:])
    assert os.sched_getaffinity(0) == set(mine), "the thread's only"
    assert spare_cpus(tuple(mine)) is None and spare_cpus(None) is None


def _recorded(t_ns: Sequence[int], power_uw: Sequence[int], most: int, rails: bool = False) -> wire.Trace:
    recorder = Recorder(0.002, most)
    for t, p in zip(t_ns, power_uw, strict=True):
        recorder.add(Sample(t, p, rails_mw={"A": p // 2} if rails else None))
    assert recorder.count == len(t_ns)
    return recorder.trace(INFO)


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 5000, 12_345])
@pytest.mark.parametrize("rails", [False, True])
def test_a_long_trace_stays_within_bounds_and_keeps_its_integral(count: int, rails: bool) -> None:
    # jittered stamps, a power that ramps, steps and spikes
    t_ns = [round(2 * MS * (i + 0.3 * ((i * 7919) % 13) / 13)) for i in range(count)]
    ramp_and_steps = [1_000_000 + 100 * i + (2_000_000 if i // 250 % 2 else 0) for i in range(count)]
    power = [p + (9_000_000 if i % 997 == 0 else 0) for i, p in enumerate(ramp_and_steps)]
    most = 3000 if rails else 2000
    trace = _recorded(t_ns, power, most, rails)
    assert len(trace.t_ns) <= 1000 + count // 1000 + 2
    if count < 1000:
        assert trace.t_ns == tuple(t_ns) and trace.power_uw == tuple(power) and trace.info == INFO
    if count > 1000:
        assert trace.info.interval_s > INFO.interval_s and "averaged into one" in trace.info.notes[-1]
        together = round(trace.info.interval_s / INFO.interval_s)
        assert len(trace.t_ns) >= count / together - 1, "no more is lost than has to be"
        assert list(trace.t_ns) == sorted(trace.t_ns)
        whole, kept = _energy_uj(t_ns, power), _energy_uj(trace.t_ns, trace.power_uw)
        # the joined ends stand for half a group less at either end
        ends = together * 2 * MS / 1e9 * max(power)
        assert abs(kept - whole) <= ends + 1e-4 * whole
        assert not rails or len(trace.rails_mw["A"]) == len(trace.t_ns)
        if rails:
            assert all(abs(a - p // 2) <= 2 for a, p in zip(trace.rails_mw["A"], trace.power_uw, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**60), 2**60), st.integers(-(10**12), 10**12)), max_size=60), st.integers(8, 24)
)
def test_no_stamps_break_the_store(readings: list[tuple[int, int]], most: int) -> None:
    """A broken source's stamps may be anything: they stay, or are joined, and never raise."""
    trace = _recorded([t for t, _ in readings], [p for _, p in readings], most)
    assert len(trace.t_ns) <= most // 2 + len(readings) and len(trace.t_ns) >= min(len(readings), 1)
    if readings:
        assert min(p for _, p in readings) <= min(trace.power_uw) and max(trace.power_uw) <= max(p for _, p in readings)
