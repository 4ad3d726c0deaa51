"""Two clocks made one, and a meter at the workstation while the board runs the pass."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgecompress_agent import wire
from edgecompress_agent.errors import AgentError

from edgecompress.board import hostmeter, session
from edgecompress.board.agent import open_agent
from edgecompress.board.hostmeter import Alignment, Pair, align, pair_of
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed
from edgecompress.study import MeasureSpec, PowerSpec
from tests.agent import tiny_models

S = 1_000_000_000


def _pairs(rng: random.Random, offset_ns: int, drift: float, at_s: list[float], *, way_ms: float) -> list[Pair]:
    """Questions at these host times: each way takes up to way_ms, Python's start on the board 80 ms, told in steps of 10 ms."""
    made = []
    for at in at_s:
        there, back = rng.uniform(0.1, way_ms) * 1e6, rng.uniform(0.1, way_ms) * 1e6
        asked = round(at * S)
        started, answered = asked + there, asked + there + 80e6
        board = lambda host: round(host + offset_ns + drift * host)  # noqa: E731
        told = (board(started) // 10_000_000 + 1) * 10_000_000
        made.append(pair_of(asked, wire.Clock(board(answered), told), round(answered + back)))
    return made


@pytest.mark.parametrize("drift_ppm", [0, 40, -80])
@pytest.mark.parametrize("way_ms", [0.5, 20.0])
def test_offset_and_drift_are_found_and_the_error_covers_what_is_left(drift_ppm: float, way_ms: float) -> None:
    covered = 0
    for seed in range(50):
        rng = random.Random(seed)
        offset = rng.randrange(-(10**15), 10**15)
        times = [*(100 + 0.2 * i for i in range(5)), 102, 115, 130, *(400 + 0.2 * i for i in range(5))]
        clocks = align(_pairs(rng, offset, drift_ppm * 1e-6, times, way_ms=way_ms))
        assert clocks.error_s < 0.012 + way_ms / 1e3
        at = 250 * S
        truth = at + offset + drift_ppm * 1e-6 * at
        covered += abs(clocks.on_board(at) - truth) <= clocks.error_s * 1e9
        assert abs(clocks.drift * 1e6 - drift_ppm) < 40
    assert covered == 50


def test_pairs_close_together_tell_no_drift() -> None:
    pairs = [Pair(0, -5_000_000, 5_000_000), Pair(2 * S, -4_000_000, 6_000_000)]
    clocks = align(pairs)
    assert clocks.drift == 0.0
    assert clocks.error_s == pytest.approx(0.0055)
    assert clocks.on_board(S) == S + 500_000


def test_the_narrow_pairs_decide() -> None:
    wide = [Pair(i * S, -400_000_000, 100_000_000) for i in range(5)]
    clocks = align([*wide, Pair(0, 99_000_000, 101_000_000), Pair(100 * S, 99_000_000, 101_000_000)])
    assert clocks.on_board(50 * S) == pytest.approx(50 * S + 100_000_000, abs=500_000)


def test_clocks_that_run_apart_are_refused() -> None:
    with pytest.raises(StepFailed, match=r"run apart by \+10000 ppm"):
        align([Pair(0, 0, 2), Pair(100 * S, S, S + 2)])


@pytest.mark.parametrize(
    ("started_ns", "high_ns"), [(None, 900), (300, 200), (1200, 900), (100, 900)], ids=["none", "fits", "late", "never"]
)
def test_a_pair_is_narrowed_only_by_a_start_that_can_be(started_ns: int | None, high_ns: int) -> None:
    assert pair_of(100, wire.Clock(1000, started_ns), 900 if started_ns != 300 else 950) == Pair(
        500 if started_ns != 300 else 525, 100 if started_ns != 300 else 50, high_ns
    )


@pytest.fixture
def agent_profile(tmp_path: Path) -> DeviceProfile:
    csv = "seconds,watts\n" + "".join(f"{i * 0.005:.3f},{3 + i % 2}\n" for i in range(400))
    (tmp_path / "meter.csv").write_text(csv)
    return DeviceProfile(
        name="here", workdir=str(tmp_path / "workdir"), meter_at="host", sensor="replay",
        sensor_options={"path": str(tmp_path / "meter.csv"), "loop": True},
    )  # fmt: skip


@pytest.fixture
def clocked(agent_profile: DeviceProfile) -> Iterator[Alignment]:
    """This machine's clock by its own agent: board and host are one, so that the truth is known."""
    agent = open_agent(agent_profile)
    agent.hello()
    yield align([pair_of(*agent.clock()) for _ in range(5)])
    agent.close()


@pytest.mark.heavy
def test_a_real_agents_clock_is_this_machines_to_within_the_error(clocked: Alignment) -> None:
    assert abs(clocked.on_board(clocked.origin_ns) - clocked.origin_ns) <= clocked.error_s * 1e9
    assert clocked.error_s < 1.0


def _job(profile: DeviceProfile, tmp_path: Path) -> tuple[wire.Job, dict[str, Path]]:
    from edgecompress.measurement import make_job

    plan = PowerSpec(window_s=0.3, min_samples=20, windows=2, idle_s=0.2, settle_s=0.3)
    measure = MeasureSpec(warmup_s=0.05, min_s=0.2, blocks=2, score_on="none", power=plan)
    artifact = tiny_models.write_onnx(tmp_path / "model.onnx")
    return make_job("job", artifact, None, normalisation=((), ()), profile=profile, measure=measure)


@pytest.mark.heavy
def test_a_measurement_with_the_meter_here(agent_profile: DeviceProfile, tmp_path: Path) -> None:
    job, files = _job(agent_profile, tmp_path)
    with session.connect(agent_profile) as connected:
        result = connected.measure(job, files)
    assert result.status == "ok", result.reason
    assert result.power is not None, result.power_reason
    assert (result.sensor, result.power_reason, result.windows) == ("replay", None, ())
    trace, windows = result.power.trace, result.power.windows
    assert [w.kind for w in windows] == ["idle-before", "power", "power", "idle-after"]
    assert 0 < trace.clock_error_s < 1 and trace.info.scope == "as-wired"
    # one machine, so one clock: the trace lies where it was read
    assert trace.t_ns[0] < windows[0].start_ns and trace.t_ns[-1] > windows[-1].end_ns
    for window in windows[1:-1]:
        assert sum(window.start_ns <= t <= window.end_ns for t in trace.t_ns) >= 20


@pytest.mark.heavy
def test_a_meter_that_cannot_be_opened_is_a_reason(agent_profile: DeviceProfile, tmp_path: Path) -> None:
    profile = agent_profile.model_copy(update={"sensor_options": {"path": "/nowhere/at/all.csv"}})
    job, files = _job(profile, tmp_path)
    with session.connect(profile) as connected:
        result = connected.measure(job, files)
    assert result.status == "ok" and result.power is None and len(result.blocks) == 2
    assert result.sensor == "replay" and "cannot be read" in (result.power_reason or "")


@pytest.mark.heavy
def test_a_pass_that_nobody_read_has_no_trace(agent_profile: DeviceProfile) -> None:
    """The host was killed and asks again: the windows are older than the meter's readings."""
    old = wire.Result("job", "a" * 64, "ok", windows=(wire.Window("power", 0, 1, 1, 1),))
    agent = open_agent(agent_profile)
    agent.hello()
    with hostmeter.HostMeter(agent_profile, agent) as meter:
        joined = meter.join(old)
    agent.close()
    assert joined == dataclasses.replace(
        old, sensor="replay", windows=(),
        power_reason="nobody read the meter at this machine during the power pass: the job was joined later",
    )  # fmt: skip


class _LostBoard:
    """Answers so many questions for its clock, and then no more."""

    def __init__(self, answers: int) -> None:
        self._left = answers

    def clock(self) -> tuple[int, wire.Clock, int]:
        self._left -= 1
        if self._left < 0:
            raise StepFailed("here: the link is lost")
        now = time.monotonic_ns()
        return now, wire.Clock(now), now


def test_a_link_that_is_lost_afterwards_costs_the_energy_only(agent_profile: DeviceProfile) -> None:
    measured = wire.Result("job", "a" * 64, "ok", warmup_ns=(5,), windows=(wire.Window("power", 0, 1, 1, 1),))
    with hostmeter.HostMeter(agent_profile, _LostBoard(5)) as meter:  # type: ignore[arg-type]
        joined = meter.join(measured)
    assert joined == dataclasses.replace(
        measured, sensor="replay", windows=(), power_reason="here: the link is lost"
    )  # fmt: skip


def test_a_board_that_tells_no_clock_leaves_the_meter_free(agent_profile: DeviceProfile) -> None:
    meter = hostmeter.HostMeter(agent_profile, _LostBoard(0))  # type: ignore[arg-type]
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    with pytest.raises(StepFailed, match="the link is lost"):
        meter.__enter__()
    assert set(threading.enumerate()) <= before, "the sampler's thread has ended, and with it the sensor is closed"


def test_an_unknown_meter_is_refused(agent_profile: DeviceProfile) -> None:
    with pytest.raises(AgentError, match="unknown sensor"):
        hostmeter.HostMeter(agent_profile.model_copy(update={"sensor": "nothing"}), None)  # type: ignore[arg-type]
