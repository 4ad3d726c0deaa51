"""hello, have, clean, prune and what is refused: on the oldest and the newest Python, numpy and engines or not."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edgecompress_agent import wire

from edgecompress.board import bundle

from .conftest import Board

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


def test_prune_keeps_what_is_used(board: Board, tmp_path: Path) -> None:
    old = time.time() - 40 * 86400
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"bb")
    used, unused = board.put_blob(tmp_path / "a"), board.put_blob(tmp_path / "b")
    (board.root / "agent").mkdir()
    board.agent = Path(shutil.copy(board.agent, board.root / "agent" / "current.pyz"))
    (board.root / "agent" / "older.pyz").write_bytes(b"xyz")
    for job_id in ("old", "new", "waits"):
        board.put_job(wire.Job(job_id, used, "litert", score=False))
    for path in board.root.rglob("*"):
        os.utime(path, (old, old))
    os.utime(board.directory("new") / "job.json")
    with board.hold(board.directory("waits") / "lock"):
        os.utime(board.directory("waits") / "lock", (old, old))
        os.utime(board.directory("waits"), (old, old))
        board.ask("have", stdin=json.dumps([used.sha256]).encode())  # asking for it is using it
        answer = board.ask("prune", "30")
    job_bytes = (board.directory("new") / "job.json").stat().st_size
    assert answer == {"removed": 3, "bytes": len(b"bb") + len(b"xyz") + job_bytes}
    left = {str(p.relative_to(board.root)) for p in board.root.rglob("*") if p.is_file()}
    kept = {"jobs/new/job.json", "jobs/waits/job.json", "jobs/waits/lock", "agent/current.pyz"}
    assert left == kept | {f"blobs/{used.sha256}"}
    assert unused.sha256 not in left
    assert "not a number" in board.error("prune", "soon")


def test_root_may_be_of_the_home(board: Board) -> None:
    board.environment["HOME"] = str(board.root)
    done = board.run("hello", "~/cache")
    assert done.returncode == 0
    assert (board.root / "cache" / "jobs").is_dir()
