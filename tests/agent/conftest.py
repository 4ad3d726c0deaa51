"""A board as the agent sees it: a directory, an interpreter, the zipapp. Everything runs for real, in subprocesses."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import wire

OLDEST, NEWEST = (3, 8), (3, 13)


@functools.cache
def _version(python: str) -> tuple[int, int] | None:
    """Of an interpreter that really starts (a shim of pyenv may stand for one that is not there)."""
    try:
        done = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, timeout=60
        )
    except OSError:
        return None
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None  # type: ignore[return-value]


@functools.cache
def _interpreters() -> list[str]:
    """This one; the oldest and the newest of the supported ones on PATH (or pyenv's); those of EDGECOMPRESS_AGENT_PYTHONS."""
    found: dict[tuple[int, int], str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        on_path = shutil.which(f"python3.{minor}")
        for python in [*([on_path] if on_path else []), *map(str, pyenv.glob(f"versions/3.{minor}.*/bin/python"))]:
            if _version(python) == (3, minor):
                found[3, minor] = python
                break
    ends = [found[min(found)], found[max(found)]] if found else []
    return list(dict.fromkeys([sys.executable, *ends, *_extra()]))


def _extra() -> list[str]:
    return [p for p in os.environ.get("EDGECOMPRESS_AGENT_PYTHONS", "").split(os.pathsep) if p]


def _id(python: str) -> str:
    return "this" if python == sys.executable else ".".join(map(str, _version(python) or ("missing", python)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`python`: every interpreter of the agent, engines or not. `engine_python`: those that have numpy and engines."""
    if "python" in metafunc.fixturenames:
        metafunc.parametrize("python", _interpreters(), ids=_id)
    if "engine_python" in metafunc.fixturenames:
        metafunc.parametrize("engine_python", [sys.executable, *_extra()], ids=_id)


@dataclass
class Board:
    """ROOT of an agent and how to ask it."""

    root: Path
    python: str
    agent: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.python, "-I", str(self.agent), *arguments],
            input=stdin,
            capture_output=True,
            timeout=60,
            env={**os.environ, **self.environment},
        )

    def ask(self, verb: str, *arguments: str, stdin: bytes = b"") -> Any:
        """The answer of a verb, which must be exactly one line of JSON and exit status 0."""
        done = self.run(verb, str(self.root), *arguments, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith(b"\n") and done.stdout.count(b"\n") == 1, done.stdout
        return json.loads(done.stdout)

    def error(self, verb: str, *arguments: str, stdin: bytes = b"") -> str:
        """The sentence with which a verb refuses."""
        done = self.run(verb, str(self.root), *arguments, stdin=stdin)
        assert done.returncode == 1, done.stdout + done.stderr
        return str(json.loads(done.stdout)["error"])

    def status(self, job_id: str) -> wire.Status:
        return wire.from_json(wire.Status, self.ask("status", job_id))

    def put_blob(self, file: Path) -> wire.Blob:
        data = file.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        (self.root / "blobs" / sha256).write_bytes(data)
        return wire.Blob(file.name, sha256, len(data))

    def put_job(self, job: wire.Job) -> str:
        directory = self.directory(job.job_id)
        directory.mkdir(parents=True)
        (directory / "job.json").write_bytes(wire.encode(job))
        return job.job_id

    def directory(self, job_id: str) -> Path:
        return self.root / "jobs" / job_id

    @contextmanager
    def hold(self, lock: Path | None = None) -> Iterator[None]:
        """Hold a lock as another process of the board does; default: the lock of the board itself."""
        with (lock or self.root / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def supervisor(self, job_id: str) -> int:
        """The supervisor's process, once it has told its number."""
        file = self.directory(job_id) / "pid"
        wait_for(file.exists)
        return int(file.read_text())

    def worker(self, job_id: str) -> int:
        """The worker's process, found as the supervisor's child."""
        parent = self.supervisor(job_id)
        found: list[int] = []

        def look() -> bool:
            found[:] = children(parent)
            return bool(found)

        wait_for(look)
        return found[0]

    def phase(self, job_id: str, wanted: str) -> wire.Status:
        """The status that told of this phase."""
        seen: list[wire.Status] = []

        def look() -> bool:
            seen.append(self.status(job_id))
            return (seen[-1].phase or "").startswith(wanted)

        wait_for(look)
        return seen[-1]

    def result(self, job_id: str) -> wire.Result:
        """The result, waited for by looking for the file as the host does."""
        file = self.directory(job_id) / "result.json"
        wait_for(file.exists)
        return wire.decode(wire.Result, file.read_bytes())


def children(parent: int) -> list[int]:
    """Processes whose parent is this one, from /proc/PID/stat (the fields after the name, which may hold anything)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """Of a process; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zipapp, built as the host builds it."""
    file = tmp_path_factory.mktemp("agent") / "agent.pyz"
    from edgecompress.board import bundle  # not at the top: these tests run under the agent's oldest Python, too

    file.write_bytes(bundle.build()[0])
    return file


@pytest.fixture
def make_board(tmp_path: Path, agent: Path) -> Iterator[Callable[[str], Board]]:
    """Boards, by interpreter; what still runs on them when the test ends is stopped."""
    made: list[Board] = []

    def make(python: str = sys.executable) -> Board:
        made.append(Board(tmp_path / f"root{len(made)}", python, agent))
        made[-1].root.mkdir()
        return made[-1]

    yield make
    for board in made:
        for pid_file in board.root.glob("jobs/*/pid"):
            supervisor = int(pid_file.read_text())
            with suppress(OSError):
                if str(board.agent).encode() in Path(f"/proc/{supervisor}/cmdline").read_bytes():
                    os.kill(supervisor, signal.SIGKILL)


@pytest.fixture
def board(make_board: Callable[[str], Board]) -> Board:
    return make_board(sys.executable)
