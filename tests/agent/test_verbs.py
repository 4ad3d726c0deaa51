"""hello, have, clean, prune and what is refused: on the oldest and the newest Python, numpy and engines or not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edgecompress_agent import wire

from edgecompress.board import bundle

from .conftest import Board, alive, children, command_line, wait_for

pytestmark = pytest.mark.slow

MakeBoard = Callable[[str], Board]


def test_hello(make_board: MakeBoard, python: str) -> None:
    board = make_board(python)
    hello = wire.from_json(wire.Hello, board.ask("hello"))
    assert hello.agent_sha256 == bundle.build()[1]
    assert hello.writable and (hello.free_bytes or 0) > 0
    assert set(hello.engines) == set(wire.ENGINES)
    for found in hello.engines.values():
        assert (found.version is None) == bool(found.reason)
    if python == sys.executable:
        assert hello.numpy and hello.engines["onnxruntime"].version
        assert "CPUExecutionProvider" in hello.engines["onnxruntime"].providers


def test_hello_creates_its_directories_privately(board: Board) -> None:
    board.root = board.root / "new" / "one"
    board.ask("hello")
    for name in ("agent", "blobs", "jobs"):
        assert (board.root / name).stat().st_mode & 0o777 == 0o700


def test_hello_where_nothing_can_be_written(board: Board, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    board.root = tmp_path / "file" / "root"
    hello = wire.from_json(wire.Hello, board.ask("hello"))
    assert (hello.writable, hello.free_bytes) == (False, None)


def _library(board: Board, tmp_path: Path, source: str) -> None:
    """An `onnxruntime` for this board alone that does what a broken wheel does."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "onnxruntime.py").write_text(source)
    board.environment["PYTHONPATH"] = str(tmp_path / "broken")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL (illegal instruction"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL (killed from outside, or"),
        ("raise ImportError('libfoo.so.1: cannot open')", "ImportError: libfoo.so.1: cannot open"),
        ("import os; os.write(2, b'gave up'); os._exit(7)", "exit status 7: gave up"),
    ],
)
def test_hello_survives_an_engine_that_does_not(board: Board, tmp_path: Path, source: str, reason: str) -> None:
    _library(board, tmp_path, source)
    hello = wire.from_json(wire.Hello, board.ask("hello"))
    assert hello.engines["onnxruntime"].version is None
    assert reason in (hello.engines["onnxruntime"].reason or "")


def test_hello_ends_with_whoever_asked(board: Board, tmp_path: Path) -> None:
    """A host whose link is lost asks again: those before it must not go on importing engines on a slow board."""
    _library(board, tmp_path, f"import time; open({str(tmp_path / 'importing')!r}, 'w'); time.sleep(600)")
    for make in (os.pipe, lambda: [s.detach() for s in socket.socketpair()]):  # sshd has one or the other
        reader, writer = make()
        command = [board.python, "-I", str(board.agent), "hello", str(board.root)]
        hello = subprocess.Popen(command, stdout=writer, env={**os.environ, **board.environment})
        os.close(writer)
        wait_for((tmp_path / "importing").exists)
        (importing,) = [p for p in children(hello.pid) if "onnxruntime" in command_line(p)]
        os.close(reader)
        hello.wait(60)
        wait_for(lambda importing=importing: not alive(importing))  # type: ignore[misc]
        (tmp_path / "importing").unlink()


def test_an_engine_banner_does_not_break_the_protocol(board: Board, tmp_path: Path) -> None:
    """Written by C code to descriptor 1, and by Python to sys.stdout: both before the answer."""
    _library(
        board,
        tmp_path,
        "import os\nos.write(1, b'BANNER\\n{')\nprint('hello from python', flush=True)\nprint('not flushed')\n"
        "__version__ = '9.9'\ndef get_available_providers(): return ['P']\n",
    )
    hello = wire.from_json(wire.Hello, board.ask("hello"))
    assert hello.engines["onnxruntime"] == wire.EngineFound("9.9", "onnxruntime", None, ("P",))


def test_have(make_board: MakeBoard, python: str, tmp_path: Path) -> None:
    board = make_board(python)
    (tmp_path / "a").write_bytes(b"a" * 3_000_000)
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b"ccc")
    a, b, c = (board.put_blob(tmp_path / n) for n in "abc")
    damaged = board.root / "blobs" / c.sha256
    damaged.write_bytes(b"ccd")
    asked = [a.sha256, "0" * 64, c.sha256, b.sha256, "../lock", ""]
    assert board.ask("have", stdin=json.dumps(asked).encode()) == [a.sha256, b.sha256]
    assert not damaged.exists(), "a damaged blob is removed, so that it is sent again"


@pytest.mark.parametrize("stdin", [b"", b"{}", b"[1]", b"\xff"])
def test_have_refuses(board: Board, stdin: bytes) -> None:
    assert "have: standard input" in board.error("have", stdin=stdin)


def test_what_is_not_there(make_board: MakeBoard, python: str) -> None:
    board = make_board(python)
    assert board.status("nothing").state == "absent"
    assert wire.from_json(wire.Status, board.ask("cancel", "nothing")).state == "absent"
    assert board.ask("clean", "nothing") == {"removed": False}
    assert "there is no job nothing" in board.error("start", "nothing")


@pytest.mark.parametrize("job_id", ["../x", "", "a/b", ".", "..", "a\nb"])
def test_a_job_id_stays_in_its_directory(board: Board, job_id: str) -> None:
    for verb in ("start", "status", "cancel", "clean"):
        assert "not a job id" in board.error(verb, job_id)


def test_start_refuses_a_job_of_another_protocol(board: Board) -> None:
    directory = board.directory("old")
    directory.mkdir(parents=True)
    (directory / "job.json").write_text(json.dumps({"protocol": 99, "job_id": "old"}))
    assert "this side speaks" in board.error("start", "old")
    assert board.status("old") == wire.Status("absent", phase="not started")


def test_start_refuses_a_job_of_another_name(board: Board) -> None:
    board.put_job(wire.Job("one", wire.Blob("m", "0" * 64, 1), "litert", score=False))
    (board.root / "jobs" / "one").rename(board.root / "jobs" / "two")
    assert "holds the job one" in board.error("start", "two")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("hello",), ("start", "ROOT"), ("have", "ROOT", "x")])
def test_wrong_usage(board: Board, arguments: tuple[str, ...]) -> None:
    done = board.run(*arguments)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"].startswith("usage: VERB ROOT")


def _old_board(board: Board, tmp_path: Path) -> tuple[wire.Blob, wire.Blob]:
    """A board whose files nobody used for 40 days, and its blobs: one that jobs name, one that none does."""
    for name, data in (("a", b"a"), ("b", b"bb")):
        (tmp_path / name).write_bytes(data)
    named, unnamed = board.put_blob(tmp_path / "a"), board.put_blob(tmp_path / "b")
    for folder in ("agent", "wheels"):
        (board.root / folder).mkdir()
    board.agent = Path(shutil.copy(board.agent, board.root / "agent" / f"{bundle.build()[1]}.pyz"))
    (board.root / "agent" / f"{'0' * 64}.pyz").write_bytes(b"xyz")
    (board.root / "blobs" / f".{'0' * 64}.1234.part").write_bytes(b"1234")
    (board.root / "wheels" / "numpy-2.0-py3-none-any.whl").write_bytes(b"12345")
    for job_id in ("old", "new", "waits"):
        board.put_job(wire.Job(job_id, named, "litert", score=False))
    _age(board, 40)
    os.utime(board.directory("new") / "job.json")
    return named, unnamed


def _age(board: Board, days: float) -> None:
    for path in board.root.rglob("*"):
        os.utime(path, (time.time() - days * 86400,) * 2, follow_symlinks=False)


def _left(board: Board) -> set[str]:
    return {str(p.relative_to(board.root)) for p in board.root.rglob("*") if p.is_file() and p.name != "lock"}


def test_prune_keeps_what_is_used(board: Board, tmp_path: Path) -> None:
    named, unnamed = _old_board(board, tmp_path)
    job_bytes = (board.directory("new") / "job.json").stat().st_size
    agents = {f"agent/{'0' * 64}.pyz", f"agent/{bundle.build()[1]}.pyz"}
    with board.hold(board.directory("waits") / "lock"):  # its supervisor lives: neither it nor an agent is touched
        _age(board, 40)
        os.utime(board.directory("new") / "job.json")
        answer = board.ask("prune", "30")
    assert answer == {"removed": 4, "bytes": len(b"bb123412345") + job_bytes, "busy": False}
    assert _left(board) == agents | {"jobs/new/job.json", "jobs/waits/job.json", f"blobs/{named.sha256}"}
    assert board.ask("prune", "30")["removed"] == 2  # it ended: the job, and an agent that nobody used
    assert unnamed.sha256 not in str(_left(board)) and f"agent/{'0' * 64}.pyz" not in _left(board)
    _age(board, 40)
    board.ask("have", stdin=json.dumps([named.sha256]).encode())  # asking for it is using it
    assert board.ask("prune", "30")["removed"] == 1
    assert _left(board) == {f"agent/{bundle.build()[1]}.pyz", f"blobs/{named.sha256}"}
    assert "not a number" in board.error("prune", "soon")
    for days in ("0", "-1", "nan"):
        assert "1 or more" in board.error("prune", days)


def test_prune_waits_for_nobody_and_disturbs_nobody(board: Board, tmp_path: Path) -> None:
    _old_board(board, tmp_path)
    before = _left(board)
    with board.hold():
        assert board.ask("prune", "30") == {"removed": 0, "bytes": 0, "busy": True}
    assert _left(board) == before


def test_prune_after_the_clock_was_set(board: Board, tmp_path: Path) -> None:
    """What was written in 1970, before the board knew the time, is not old."""
    _old_board(board, tmp_path)
    before = _left(board)
    _age(board, 40 * 365)
    assert board.ask("prune", "30")["removed"] == 0
    assert _left(board) == before
    _age(board, 31)
    assert board.ask("prune", "30")["removed"] > 0


def test_prune_removes_nothing_that_is_not_its_own(board: Board, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.tex").write_text("years of work")
    (board.root / "blobs").mkdir()
    (board.root / "blobs" / ("1" * 64)).symlink_to(outside / "thesis.tex")
    (board.root / "blobs" / "notes.txt").write_text("mine")
    (board.root / "jobs").mkdir()
    (board.root / "jobs" / "link").symlink_to(outside)
    _age(board, 400)
    os.utime(outside, (0, 0))
    assert board.ask("prune", "1")["removed"] == 0
    assert (outside / "thesis.tex").read_text() == "years of work" and (board.root / "blobs" / "notes.txt").exists()


def test_hello_and_a_job_mark_their_agent_as_used(board: Board, tmp_path: Path) -> None:
    _old_board(board, tmp_path)
    for use in (lambda: board.ask("hello"), lambda: board.ask("start", "new")):
        _age(board, 40)
        use()
        assert time.time() - board.agent.stat().st_mtime < 3600


def test_root_may_be_of_the_home(board: Board) -> None:
    board.environment["HOME"] = str(board.root)
    done = board.run("hello", "~/cache")
    assert done.returncode == 0
    assert (board.root / "cache" / "jobs").is_dir()
