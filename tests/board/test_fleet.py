"""Several boards in one study, each a real sshd with an agent: at the same time, as a pool, dying, coming back, interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgecompress.board.session import Session
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from edgecompress.pools import Device, make_pool
from edgecompress.rundir import RunDir
from tests.board.fleet_case import Watching, made_before, run, study

if TYPE_CHECKING:
    from tests.board.conftest import Sshd

pytestmark = [pytest.mark.heavy, pytest.mark.sshd]

MakeBoard = Callable[..., DeviceProfile]


@pytest.fixture(scope="module")
def servers(make_sshd: Callable[..., Sshd]) -> list[Sshd]:
    made = [make_sshd() for _ in range(3)]
    for server in made:  # a home of its own: what this user's shell does when it starts is no board's affair
        server.stop()
        server.extra += f"\nSetEnv HOME={server.folder}"
        server.start()
    return made


@pytest.fixture
def board(servers: list[Sshd], ssh_profile: Callable[..., DeviceProfile], tmp_path: Path) -> MakeBoard:
    """The profile of board 0, 1 or 2, started; its workdir is this test's own."""

    def make(number: int, **fields: Any) -> DeviceProfile:
        server = servers[number]
        if server.process is None:
            server.start()
        usual = {"name": f"b{number}", "workdir": str(tmp_path / f"b{number}"), "reconnect_s": 0.5}
        return ssh_profile(server, **(usual | fields))

    return make


def by_name(*devices: Device) -> dict[str, Device]:
    return {device.name: device for device in devices}


def states(made: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    return {(row["recipe"], row["device"]): row["status"] for row in made}


def test_boards_measure_at_the_same_time_and_one_that_dies_costs_its_own_rows(
    board: MakeBoard, servers: list[Sshd], tmp_path: Path
) -> None:
    run_dir, asked = RunDir(tmp_path / "run"), study(2, rounds=1, min_s=0.5)
    devices = by_name(*(board(n) for n in range(3)))
    made_before(run_dir, asked, devices)
    seen = Watching("r1 onnx-fp32 on b1, round 1 of 1", servers[1].stop)
    made = run(run_dir, asked, devices, seen)
    first = next(i for i, text in enumerate(seen.texts) if "r1 onnx-fp32 on" in text)
    begun = {f"r0 onnx-fp32 on b{n}, round 1 of 1" for n in range(3)}
    assert begun <= set(seen.texts[:first]), "all three had begun before one of them was through its first job"
    lost = [row for row in made if row["status"] != "ok"]
    assert [(row["recipe"], row["device"]) for row in lost] == [("r1", "b1")]
    assert lost[0]["reason"].startswith("round: b1: ") and "cannot be reached" in lost[0]["reason"]
    assert sum("link lost" in text for text in seen.texts) == 1, "the tries in between are no lines"
    assert {"b0: done: 2 rounds measured", "b1: done: 1 round measured, 1 failed"} <= set(seen.texts)
    assert all(row["member"] == row["device"] for row in made if row["status"] == "ok")

    # when the board is back, only what it owes is done
    servers[1].start()
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "records").rglob("*.json")}
    again = Watching()
    assert set(states(run(run_dir, asked, devices, again)).values()) == {"ok"}
    assert [text for text in again.texts if "round" in text and " on " in text] == ["r1 onnx-fp32 on b1, round 1 of 1"]
    assert all(path.stat().st_mtime_ns == at for path, at in records.items() if path.exists())


def test_a_pool_goes_on_without_a_board_that_is_away_and_one_that_dies(
    board: MakeBoard, servers: list[Sshd], tmp_path: Path
) -> None:
    run_dir, asked = RunDir(tmp_path / "run"), study(2, min_s=0.4)
    members = [board(n) for n in range(3)]
    devices = by_name(make_pool("pool", members))
    made_before(run_dir, asked, devices)
    servers[2].stop()
    seen = Watching("on b0 of pool, round 2 of 2", servers[0].stop)
    made = run(run_dir, asked, devices, seen)
    assert [text.partition(": b2: ")[0] for text in seen.texts if "b2: " in text] == [
        "warning: pool goes on without one of its boards"
    ], "once"
    assert any(text.startswith("b0: pool goes on without it: ") for text in seen.texts)
    assert {row["status"] for row in made} == {"ok"}
    assert [(row["device"], row["member"]) for row in made] == [("pool", "b1")] * 2
    begun = next(text[:2] for text in seen.texts if "on b0 of pool, round 1 of 2" in text)
    assert sum(f"{begun} onnx-fp32 on b1 of pool" in text for text in seen.texts) == 2, "anew, from its first round"


def test_a_board_with_a_fault_of_its_own_does_not_eat_the_pools_work(board: MakeBoard, tmp_path: Path) -> None:
    """One whose directory takes no files fails every job at once; the others must get them all the same."""
    run_dir, asked = RunDir(tmp_path / "run"), study(3, rounds=1)
    sick = board(0)
    devices = by_name(make_pool("pool", [sick, board(1)]))
    made_before(run_dir, asked, devices)
    blobs = Path(sick.workdir) / "blobs"
    seen = Watching("on b0 of pool", lambda: (blobs.rmdir(), blobs.write_text("a file in its place")))
    made = run(run_dir, asked, devices, seen)
    assert {(row["status"], row["member"]) for row in made} == {("ok", "b1")}, [r["reason"] for r in made]
    assert 1 <= sum("failed here, tried on another board" in text for text in seen.texts) <= 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Tests that were started in the background of a shell ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_all_boards_and_loses_nothing(board: MakeBoard, tmp_path: Path) -> None:
    run_dir, asked = RunDir(tmp_path / "run"), study(1, min_s=2.0)
    devices = by_name(board(0), board(1))
    made_before(run_dir, asked, devices)
    seen = Watching(", round 2 of 2", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(run_dir, asked, devices, seen)
    left = [t for t in threading.enumerate() if t.name.startswith("measure on")]
    for thread in left:  # an event says that it is at its end; it may have a last step to go
        thread.join(60)
        assert not thread.is_alive()
    assert not list((tmp_path / "run").glob("failures/*/*"))
    done = len(list((tmp_path / "run" / "records" / "round").glob("*.json")))
    assert done >= 1
    again = Watching()
    assert set(states(run(run_dir, asked, devices, again)).values()) == {"ok"}  # the lock is free
    assert sum(", round " in text for text in again.texts) == 4 - done


def test_devices_that_are_away_at_the_start(board: MakeBoard, tmp_path: Path) -> None:
    run_dir, asked = RunDir(tmp_path / "run"), study(1, rounds=1)
    away = [board(0, name=name, port=port, connect_timeout_s=2) for name, port in (("x", 1), ("y", 2))]
    devices = by_name(board(1), *away)
    made_before(run_dir, asked, devices)
    with pytest.raises(UserError, match=r"(?s)2 devices cannot be used:.*device x: .*device y: .*--skip-absent"):
        run(run_dir, asked, devices, Watching())
    assert not (tmp_path / "run" / "plan.json").exists()
    seen = Watching()
    made = run(run_dir, asked, devices, seen, skip_absent=True)
    assert states(made) == {("r0", "b1"): "ok", ("r0", "x"): "failed", ("r0", "y"): "failed"}
    assert "x: 127.0.0.1:1 cannot be reached" in next(row["reason"] for row in made if row["device"] == "x")
    assert any(text.startswith("warning: device x is away") for text in seen.texts)
    # a key that is not known is for a person to look at, even in a pool and with --skip-absent
    unknown = board(2, known_hosts=tmp_path / "none")
    pool = by_name(make_pool("pool", [board(1), unknown.model_copy(update={"known_hosts": tmp_path / "nothing"})]))
    made_before(RunDir(tmp_path / "other"), asked, pool)
    with pytest.raises(UserError, match="is not known"):
        run(RunDir(tmp_path / "other"), asked, pool, Watching(), skip_absent=True)


def test_two_profiles_of_one_board_take_turns(board: MakeBoard, tmp_path: Path) -> None:
    run_dir, asked = RunDir(tmp_path / "run"), study(1, rounds=1, min_s=0.5)
    usable = min(os.sched_getaffinity(0))  # a container may not have the CPU 0
    devices = by_name(board(0), board(0, name="b0-pinned", cpus=(usable,), workdir=str(tmp_path / "pinned")))
    made_before(run_dir, asked, devices)
    seen = Watching()
    made = run(run_dir, asked, devices, seen)
    assert {row["status"] for row in made} == {"ok"}
    begins = sorted((row["measured_unix_s"], row["latency_ms_p50"] * row["latency_samples"] / 1e3) for row in made)
    assert begins[1][0] >= begins[0][0] + begins[0][1], "one job at a time on a board"
    assert any("its board is measuring for another device" in text for text in seen.shown)


def test_an_error_while_a_board_is_let_go_of_ends_the_run_and_is_shown(
    board: MakeBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Session) -> None:
        raise OSError("its socket cannot be closed")

    run_dir, asked = RunDir(tmp_path / "run"), study(1, rounds=1)
    devices = by_name(board(0))
    made_before(run_dir, asked, devices)
    monkeypatch.setattr(Session, "close", fail)
    with pytest.raises(OSError, match="cannot be closed"):
        run(run_dir, asked, devices, Watching())
