"""Jobs that outlive their connection: waiting, starting twice, dying in every way, the deadline, cancelling."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edgecompress_agent import wire

from . import tiny_models
from .conftest import Board, alive, wait_for

pytestmark = pytest.mark.slow

MakeBoard = Callable[[str], Board]
BLOB = wire.Blob("model.onnx", "0" * 64, 1)
ABSENT = wire.Job("job", BLOB, "onnxruntime", score=False)
"""A job that ends at once on every Python: its file is not on the board."""


@pytest.fixture
def long_job(board: Board, tmp_path: Path) -> wire.Job:
    """A job that warms up for a minute unless something ends it."""
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "m.onnx", shape=(1, 3, 8, 8)))
    return wire.Job("long", blob, "onnxruntime", warmup_s=60, min_s=0.1, blocks=1, score=False)


def test_a_job_that_cannot_be_done_is_a_failed_result(make_board: MakeBoard, python: str) -> None:
    board = make_board(python)
    board.put_job(ABSENT)
    assert board.ask("start", "job")["state"] == "running"
    result = board.result("job")
    assert (result.status, result.job_id) == ("failed", "job")
    assert "model.onnx is not on the board" in (result.reason or "")
    assert board.status("job").state == "done"
    assert board.ask("start", "job")["state"] == "done", "starting what is done is harmless"
    assert board.ask("clean", "job") == {"removed": True}
    assert board.status("job").state == "absent"


def test_start_returns_while_the_job_waits_for_the_board(make_board: MakeBoard, python: str) -> None:
    """`start` must let go of its standard output: an SSH channel is open as long as one process holds it."""
    board = make_board(python)
    board.put_job(ABSENT)
    with board.hold():
        board.ask("start", "job")  # capture_output: would not return
        wait_for(lambda: board.status("job").state == "waiting")
        first = board.supervisor("job")
        assert board.ask("start", "job")["state"] == "waiting", "starting what waits is harmless"
        assert "running: cancel it first" in board.error("clean", "job")
        assert board.supervisor("job") == first
        assert not (board.directory("job") / "result.json").exists()
        assert os.getsid(first) != os.getsid(0), "a session of its own: the connection's end does not reach it"
    assert board.result("job").status == "failed"


def test_clean_waits_for_the_end_of_a_job_that_has_its_result(board: Board) -> None:
    """The host cleans as soon as it has seen the file; the worker may still be unloading its engine."""
    board.put_job(ABSENT)
    (board.directory("job") / "result.json").write_text("{}")
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(1.5)"
    )
    command = [sys.executable, "-c", holder, str(board.directory("job") / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as ending:
        assert ending.stdout is not None
        ending.stdout.readline()
        assert board.ask("clean", "job") == {"removed": True}
        assert ending.wait(30) == 0
    assert not board.directory("job").exists()


def test_two_starts_at_once_run_one_supervisor(board: Board) -> None:
    board.put_job(ABSENT)
    with board.hold():
        command = [board.python, "-I", str(board.agent), "start", str(board.root), "job"]
        starts = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
        assert [s.wait(60) for s in starts] == [0] * 4
        wait_for(lambda: board.status("job").state == "waiting")
        wait_for(lambda: len(_supervisors(board)) == 1, 10)


def _supervisors(board: Board) -> list[Path]:
    return [p for p in Path("/proc").glob("[0-9]*/cmdline") if _is_start(p, board)]


def _is_start(cmdline: Path, board: Board) -> bool:
    try:
        arguments = cmdline.read_bytes().split(b"\0")
    except OSError:
        return False
    return b"start" in arguments and str(board.root).encode() in arguments


def test_cancel_while_waiting(make_board: MakeBoard, python: str) -> None:
    board = make_board(python)
    board.put_job(ABSENT)
    with board.hold():
        board.ask("start", "job")
        wait_for(lambda: board.status("job").state == "waiting")
        assert board.ask("cancel", "job")["state"] == "done"
    assert board.result("job").reason == "cancelled"


def test_cancel_of_a_supervisor_that_does_not_answer(board: Board) -> None:
    board.put_job(ABSENT)
    with board.hold():
        board.ask("start", "job")
        os.kill(board.supervisor("job"), signal.SIGSTOP)
        assert board.ask("cancel", "job")["state"] == "lost"
    assert board.ask("clean", "job") == {"removed": True}


def test_a_lost_supervisor_is_told_and_starts_afresh(make_board: MakeBoard, python: str) -> None:
    board = make_board(python)
    board.put_job(ABSENT)
    with board.hold():
        board.ask("start", "job")
        wait_for(lambda: board.status("job").state == "waiting")
        os.kill(board.supervisor("job"), signal.SIGKILL)
        wait_for(lambda: board.status("job").state == "lost")
    assert board.ask("start", "job")["state"] == "running"
    assert "not on the board" in (board.result("job").reason or "")


def test_lost_comes_with_the_end_of_the_log(board: Board) -> None:
    board.put_job(ABSENT)
    (board.directory("job") / "lock").touch()
    (board.directory("job") / "log").write_bytes(b"\xff" + b"x" * 100_000 + b"the end\n")
    status = board.status("job")
    assert status.state == "lost"
    assert status.log is not None and status.log.endswith("the end\n") and len(status.log) <= 4000


@pytest.mark.heavy
def test_one_measurement_at_a_time(board: Board, long_job: wire.Job) -> None:
    second = dataclasses.replace(long_job, job_id="second", warmup_s=0)
    board.put_job(long_job)
    board.put_job(second)
    board.ask("start", "long")
    board.phase("long", "warming up")
    board.ask("start", "second")
    wait_for(lambda: board.status("second").state == "waiting")
    assert board.ask("cancel", "long")["state"] == "done"
    assert board.result("long").reason == "cancelled"
    assert board.result("second").status == "ok"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGILL, "SIGILL (illegal instruction: this build of the engine does not suit this CPU"),
        (signal.SIGKILL, "SIGKILL (killed from outside, or by the kernel because memory ran out"),
        (signal.SIGSEGV, "SIGSEGV (invalid memory access"),
        (signal.SIGUSR1, "SIGUSR1"),
    ],
)
def test_a_worker_that_dies_by_a_signal(board: Board, long_job: wire.Job, number: signal.Signals, said: str) -> None:
    board.put_job(long_job)
    board.ask("start", "long")
    board.phase("long", "warming up")
    os.kill(board.worker("long"), number)
    result = board.result("long")
    assert result.status == "failed"
    assert f"the worker was ended by {said}" in (result.reason or "")


@pytest.mark.heavy
def test_a_supervisor_that_is_killed_takes_its_worker_with_it(board: Board, long_job: wire.Job) -> None:
    """Else two measurements would run at once: the board's lock is the worker's too."""
    board.put_job(long_job)
    board.ask("start", "long")
    board.phase("long", "warming up")
    worker = board.worker("long")
    os.kill(board.supervisor("long"), signal.SIGKILL)
    wait_for(lambda: not alive(worker), 30)
    wait_for(lambda: board.status("long").state == "lost")
    shorter = dataclasses.replace(long_job, warmup_s=0)
    (board.directory("long") / "job.json").write_bytes(wire.encode(shorter))
    board.ask("start", "long")
    assert board.result("long").status == "ok"


@pytest.mark.heavy
def test_deadline(board: Board, long_job: wire.Job) -> None:
    board.put_job(dataclasses.replace(long_job, deadline_s=10))  # by then any machine has loaded the engine
    started = time.monotonic()
    board.ask("start", "long")
    worker = board.worker("long")
    result = board.result("long")
    assert result.status == "failed"
    assert "took longer than 10 s and was stopped while warming up" in (result.reason or "")
    assert time.monotonic() - started < 50
    assert not alive(worker)


@pytest.mark.heavy
def test_waiting_for_the_board_does_not_count_against_the_deadline(board: Board, long_job: wire.Job) -> None:
    board.put_job(dataclasses.replace(long_job, warmup_s=0, deadline_s=20))
    with board.hold():
        board.ask("start", "long")
        wait_for(lambda: board.status("long").state == "waiting")
        time.sleep(1)
    assert board.result("long").status == "ok"


@pytest.mark.heavy
def test_progress_moves_on_by_the_clock(board: Board, long_job: wire.Job) -> None:
    board.put_job(dataclasses.replace(long_job, warmup_s=10))
    board.ask("start", "long")
    board.phase("long", "warming up")
    first = board.status("long")
    time.sleep(1)
    second = board.status("long")
    assert first.fraction is not None and second.fraction is not None
    assert second.seconds_left is not None and first.seconds_left is not None
    assert 0 <= first.fraction < second.fraction <= 1
    assert second.seconds_left <= first.seconds_left - 1
    board.ask("cancel", "long")


@pytest.mark.parametrize(
    "library", ["raise RuntimeError('no device\\nsecond line')", "import os; os.write(1, b'bye'); os._exit(9)"]
)
def test_a_worker_that_ends_by_itself_gives_the_reason(board: Board, tmp_path: Path, library: str) -> None:
    """An engine whose import fails in a way that nobody foresaw; what it printed is in the log, not in the result."""
    (tmp_path / "onnxruntime.py").write_text(library)
    board.environment["PYTHONPATH"] = str(tmp_path)
    blob = board.put_blob(tiny_models.write_onnx(tmp_path / "m.onnx"))
    board.put_job(dataclasses.replace(ABSENT, artifact=blob))
    board.ask("start", "job")
    result = board.result("job")
    assert result.status == "failed"
    wanted = "RuntimeError: no device\nsecond line" if "raise" in library else "ended with exit status 9: bye"
    assert wanted in (result.reason or "")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_the_supervisor_holds_nothing_of_its_caller(board: Board) -> None:
    board.put_job(ABSENT)
    with board.hold():
        read, write = os.pipe()
        command = [board.python, "-I", str(board.agent), "start", str(board.root), "job"]
        subprocess.run(command, pass_fds=[write], stdout=subprocess.DEVNULL, check=True)
        os.close(write)
        assert os.read(read, 1) == b"", "the pipe's other end is closed everywhere"
        os.close(read)
        job = board.directory("job")
        wanted = {os.devnull, str(job / "log"), str(job / "lock"), str(board.root / "lock")}
        open_files = Path(f"/proc/{board.supervisor('job')}/fd")
        # it has told its number a moment before it waits: until then a file that it writes may be open
        wait_for(lambda: {os.path.realpath(f) for f in open_files.iterdir()} == wanted)
