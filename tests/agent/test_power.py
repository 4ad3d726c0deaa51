"""The power pass by real engines, with recorded power: windows, samples, what happens when the sensor fails."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import clock, power, sampler, sensors, wire
from edgecompress_agent.engines import Engine
from edgecompress_agent.sensors import Sample, SensorFault

from . import tiny_models
from .conftest import Board

pytestmark = pytest.mark.slow

INFO = wire.EngineInfo("litert", "none", "0", "0", (), 1, (), ())
SENSOR = wire.SensorInfo("meter", "a meter", "board", 0.005, 0.001, 0.01, 0.002)
PLAN = wire.PowerPlan(window_s=0.15, min_samples=20, windows=3, idle_s=0.1, settle_s=0.05, max_window_s=20.0)


class Meter:
    """A value every interval, until it fails or stops giving any."""

    def __init__(self, interval_s: float, fails_after: int | None = None) -> None:
        self.info = wire.SensorInfo("meter", "a meter", "board", interval_s, 0.001, 0.01, 0.002)
        self._fails_after, self.reads, self.closed = fails_after, 0, False

    def read(self, timeout_s: float) -> Sample:
        time.sleep(self.info.interval_s)
        self.reads += 1
        if self._fails_after is not None and self.reads > self._fails_after:
            raise SensorFault("unplugged")
        return Sample(time.monotonic_ns(), 1_000_000 + self.reads)

    def close(self) -> None:
        self.closed = True


def _pass(monkeypatch: pytest.MonkeyPatch, meter: Meter, plan: wire.PowerPlan) -> tuple[power.Outcome, list[float]]:
    monkeypatch.setattr(sensors, "open_sensor", lambda name, options: meter)
    engine = Engine(INFO, list, lambda feed: time.sleep(0.001))
    job = wire.Job("j", wire.Blob("m", "0" * 64, 1), "litert", score=False, sensor="replay", power=plan)
    told: list[float] = []
    return power.measure(engine, [1, 2], job, cpus=None, begin=told.append), told


def _samples(outcome: power.Outcome) -> list[int]:
    """Readings inside each window."""
    assert outcome.power is not None
    return [sum(w.start_ns <= t <= w.end_ns for t in outcome.power.trace.t_ns) for w in outcome.power.windows]


def test_windows_follow_the_plan_and_the_trace_covers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(0.005)
    outcome, told = _pass(monkeypatch, meter, PLAN)
    assert outcome.power is not None and outcome.reason is None and meter.closed
    windows, trace = outcome.power.windows, outcome.power.trace
    assert [w.kind for w in windows] == ["idle-before", "power", "power", "power", "idle-after"]
    assert told == [pytest.approx(2 * (0.1 + 0.05) + 3 * (0.05 + 0.15) + 2 * 0.0025)]
    for before, after in itertools.pairwise(windows):
        assert before.end_ns <= after.start_ns
    for window in windows[1:-1]:
        length_ns = window.end_ns - window.start_ns
        assert 0.15e9 <= length_ns < 21e9
        assert window.latency_ns_p50 is not None and window.latency_ns_p50 >= 1e6
        assert 1 <= window.inferences <= length_ns / 1e6
        assert window.inferences * window.latency_ns_p50 <= 2 * length_ns, "no median is more than twice the mean"
    assert windows[0].inferences == windows[-1].inferences == 0 and windows[0].latency_ns_p50 is None
    assert min(_samples(outcome)[1:-1]) >= 20
    assert trace.t_ns[0] <= windows[0].start_ns and trace.t_ns[-1] >= windows[-1].end_ns
    assert (trace.ended_reason, trace.stale, trace.overflows) == (None, 0, 0)


def test_a_slow_sensor_makes_windows_and_idle_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = wire.PowerPlan(window_s=0.02, min_samples=20, windows=1, idle_s=0.02, settle_s=0.0, max_window_s=20.0)
    outcome, told = _pass(monkeypatch, Meter(0.02), plan)
    assert told == [pytest.approx(2 * 10 * 0.02 + 1.1 * 20 * 0.02, abs=0.02)]
    assert outcome.power is not None
    before, within, after = outcome.power.windows
    # no sensor is on time to the reading: the inner window waits for its samples, the idle ones only for their time
    assert _samples(outcome)[1] >= 20
    for idle in (before, after):
        assert idle.end_ns - idle.start_ns >= 10 * 0.02e9
    assert within.end_ns - within.start_ns >= 1.1 * 20 * 0.02e9


def test_windows_begin_at_random_moments_of_the_sensors_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a sensor in step with the inferences would miss the same moments in every window, and its error would not show."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.07

    monkeypatch.setattr(power.random, "uniform", uniform)
    outcome, _ = _pass(monkeypatch, Meter(0.005), PLAN)
    assert outcome.power is not None
    windows = [w for w in outcome.power.windows if w.kind == "power"]
    assert len(asked) == len(windows) - 1 == 2
    assert all(low == 0 and high == pytest.approx(0.005, rel=1e-6) for low, high in asked)
    assert all(after.start_ns - before.end_ns >= 0.07e9 for before, after in itertools.pairwise(windows))


def test_no_window_is_longer_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = wire.PowerPlan(window_s=0.05, min_samples=1000, windows=2, idle_s=0.0, settle_s=0.0, max_window_s=0.2)
    outcome, _ = _pass(monkeypatch, Meter(0.01), plan)
    assert outcome.power is not None
    assert [w.kind for w in outcome.power.windows] == ["power", "power"]
    for window in outcome.power.windows:
        assert 0.2e9 <= window.end_ns - window.start_ns < 5e9, "1000 readings take 10 s and more"


def test_a_sensor_that_fails_keeps_the_trace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(0.005, fails_after=30)
    outcome, _ = _pass(monkeypatch, meter, PLAN)
    assert outcome.power is not None and meter.closed
    assert outcome.reason == outcome.power.trace.ended_reason == "unplugged"
    assert len(outcome.power.trace.t_ns) == 30
    assert len(outcome.power.windows) < 5, "what nobody can read the power of is not run"


def test_a_sensor_that_never_gives_anything_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = _pass(monkeypatch, Meter(0.005, fails_after=0), PLAN)
    assert outcome == power.Outcome(None, "unplugged", ())


def test_a_meter_elsewhere_gives_windows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(0.005)
    plan = wire.PowerPlan(window_s=0.02, min_samples=10, windows=2, idle_s=0.0, settle_s=0.0, host_interval_s=0.01)
    outcome, told = _pass(monkeypatch, meter, plan)
    assert outcome.power is None and outcome.reason is None and meter.reads == 0
    assert [w.kind for w in outcome.windows] == ["power", "power"]
    assert all(w.end_ns - w.start_ns >= 0.11e9 for w in outcome.windows), "long enough for ten readings of that meter"
    assert told == [pytest.approx(0.22 + 0.005)]


@pytest.mark.parametrize(
    "stat", [None, "", "1 (x) S 1", f"1 (a) b) S {'0 ' * 18}0 0", f"1 (x) S {'0 ' * 18}{10**15} 0"]
)
def test_a_start_that_cannot_be_is_not_told(tmp_path: Path, stat: str | None) -> None:
    """No such file, none of this shape, started at boot, started in the future."""
    (tmp_path / "self").mkdir()
    if stat is not None:
        (tmp_path / "self" / "stat").write_text(stat)
    before = time.monotonic_ns()
    answer = clock.now(tmp_path)
    assert answer.started_ns is None
    assert before <= answer.monotonic_ns <= time.monotonic_ns()


def test_the_verb_clock(board: Board) -> None:
    before = time.monotonic_ns()
    answer = wire.from_json(wire.Clock, board.ask("clock"))
    assert before <= answer.monotonic_ns <= time.monotonic_ns()
    if answer.started_ns is not None:
        # the kernel tells it in steps of 10 ms, and later is right
        assert before <= answer.started_ns <= answer.monotonic_ns + 10_000_000


def _recording(tmp_path: Path, seconds: float, interval_s: float = 0.005) -> str:
    count = round(seconds / interval_s)
    trace = wire.Trace(
        SENSOR, tuple(round(i * interval_s * 1e9) for i in range(count)), tuple(2_000_000 + i % 3 for i in range(count))
    )
    file = tmp_path / "recording.json"
    file.write_bytes(wire.encode(trace))
    return str(file)


def _run(board: Board, tmp_path: Path, **changes: Any) -> wire.Result:
    values: dict[str, Any] = {
        "warmup_s": 0.05, "min_s": 0.2, "blocks": 2, "score": False, "sensor": "replay", "power": PLAN,
    }  # fmt: skip
    model = board.put_blob(tiny_models.write_onnx(tmp_path / "model"))
    board.ask("start", board.put_job(wire.Job("job", model, "onnxruntime", **{**values, **changes})))
    return board.result("job")


@pytest.mark.heavy
def test_a_job_with_power(board: Board, tmp_path: Path) -> None:
    result = _run(board, tmp_path, sensor_options={"path": _recording(tmp_path, 0.5), "loop": True})
    assert result.status == "ok", result.reason
    assert result.power is not None and result.power_reason is None and result.windows == ()
    trace, windows = result.power.trace, result.power.windows
    assert trace.info.replayed and trace.info.scope == "board" and result.sensor == "replay"
    assert [w.kind for w in windows] == ["idle-before", "power", "power", "power", "idle-after"]
    assert min(_samples(power.Outcome(result.power))[1:-1]) >= 20
    assert set(trace.power_uw) == {2_000_000, 2_000_001, 2_000_002}
    assert windows[0].start_ns > result.blocks[-1].start_ns, "the timing has no sensor beside it"
    assert [c.phase for c in result.conditions] == ["before", "warm", "during", "after", "power"]
    assert result.conditions[-1].monotonic_ns >= windows[-1].end_ns


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("seconds", "reason"), [(0.4, "the recording ended after 0.395 s"), (None, "cannot be read: [Errno 2]")]
)
def test_without_its_sensor_the_rest_is_measured(
    board: Board, tmp_path: Path, seconds: float | None, reason: str
) -> None:
    path = _recording(tmp_path, seconds) if seconds else "/nowhere/at/all.json"
    result = _run(board, tmp_path, sensor_options={"path": path})
    assert result.status == "ok" and len(result.blocks) == 2
    assert reason in (result.power_reason or "")
    assert (result.power is not None) == (seconds is not None)
    assert result.power is None or len(result.power.trace.t_ns) == 80


@pytest.mark.heavy
def test_without_a_plan_the_sensor_is_left_alone(board: Board, tmp_path: Path) -> None:
    result = _run(board, tmp_path, power=None, sensor_options={"path": "/nowhere/at/all.json"})
    assert (result.status, result.power) == ("ok", None)
    assert "did not ask for power" in (result.power_reason or "")


@pytest.mark.heavy
def test_whoever_asks_is_told_to_keep_quiet(board: Board, tmp_path: Path) -> None:
    model = board.put_blob(tiny_models.write_onnx(tmp_path / "model"))
    options = {"path": _recording(tmp_path, 0.5), "loop": True}
    plan = wire.PowerPlan(window_s=3.0, min_samples=0, windows=1, idle_s=0.0, settle_s=0.0)
    job = wire.Job("job", model, "onnxruntime", warmup_s=0.0, min_s=0.05, blocks=1, score=False, sensor="replay",
                   sensor_options=options, power=plan)  # fmt: skip
    board.ask("start", board.put_job(job))
    status = board.phase("job", "measuring power")
    assert status.quiet_s is not None and 0 < status.quiet_s <= 3.0
    assert board.result("job").status == "ok"
    assert json.loads((board.directory("job") / "progress.json").read_text())["quiet"] is True


def test_what_a_trace_may_hold_at_most_is_small() -> None:
    assert sampler.MOST_NUMBERS * 8 <= 4 << 20
