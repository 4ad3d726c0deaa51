"""The program that makes and removes a board's environment: who else may be at work there, and what an end in the middle leaves."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import environment

from edgecompress.board.environment import _PROGRAM

from .conftest import alive, wait_for

pytestmark = pytest.mark.slow

TEXT = Path(environment.__file__).read_text()
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
MAKE = {"do": "make", "options": ["--without-pip"], "pip": [], "limit_s": 60, "wheels": False, "who": "jane@desk"}
REMOVE = {"do": "remove", "really": True, "who": "jane@desk"}


def begin(
    root: Path, request: dict[str, Any], token: str = "a1", python: str = sys.executable
) -> subprocess.Popen[bytes]:
    """In the directory above ROOT, as an SSH server starts it in the user's home."""
    argv = [python, "-I", "-c", _PROGRAM, str(root), token]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd=root.parent
    )
    assert process.stdin is not None
    process.stdin.write(f"{json.dumps(TEXT)}\n{json.dumps(request)}".encode())
    process.stdin.close()
    process.stdin = None
    return process


def ask(root: Path, request: dict[str, Any], token: str = "a1", python: str = sys.executable) -> dict[str, Any]:
    process = begin(root, request, token, python)
    out, _ = process.communicate(timeout=120)
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With an environment whose pip writes its pid and then does not end."""
    python = tmp_path / "root/venv/bin/python"
    python.parent.mkdir(mode=0o700, parents=True)
    (tmp_path / "root/venv/lib/python3/site-packages").mkdir(parents=True)
    (tmp_path / "root/venv/pyvenv.cfg").touch()
    pip_does(tmp_path / "root", f"echo $$ > {tmp_path}/pid; exec sleep 300")
    return tmp_path / "root"


def pip_does(root: Path, script: str) -> None:
    python = root / "venv/bin/python"
    python.write_text(f'#!/bin/sh\ncase "$1$2" in -I-c) exit 0;; esac\n[ "$1" = -I ] || exit 99\n{script}\n')
    python.chmod(0o700)


def appears(path: Path) -> str:
    until = time.monotonic() + 60
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.02)
    return path.read_text().strip()


def ends(pid: str) -> None:
    wait_for(lambda: not alive(int(pid)))  # where nobody waits for orphans, its entry in /proc stays


@contextmanager
def held(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_an_environment_is_its_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        assert ask(tmp_path / "root", MAKE) == {"made": True}
    finally:
        os.umask(before)
    root, everything = tmp_path / "root", list((tmp_path / "root").rglob("*"))
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (root, *(p for p in everything if not p.is_symlink()))}
    assert modes[root] == modes[root / "venv"] == 0o700 and modes[root / "lock"] == 0o600
    assert {str(p): oct(mode) for p, mode in modes.items() if mode & 0o022} == {}
    assert not (tmp_path / "root/venv-unfinished").exists()


def test_files_of_the_user_s_home_are_not_taken_for_modules(tmp_path: Path) -> None:
    for name in ("json", "venv", "ensurepip", "pip"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user has a {name}.py')")
    assert ask(tmp_path / "root", {**MAKE, "options": [], "pip": [["pip"]]}) == {"made": True}
    assert not (tmp_path / "__pycache__").exists()


def test_pip_ends_when_nobody_reads_the_answer_and_the_next_one_makes_it_anew(root: Path, tmp_path: Path) -> None:
    process = begin(root, {**MAKE, "pip": [["x"]]})
    pid = appears(tmp_path / "pid")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(60)
    ends(pid)
    assert (root / "venv-unfinished").exists()
    assert ask(root, MAKE, "b2") == {"made": True}
    assert not (root / "venv-unfinished").exists() and (root / "venv/bin/python").is_symlink()


def test_one_that_stays_though_it_is_interrupted_is_killed(root: Path, tmp_path: Path) -> None:
    pip_does(root, f"trap '' INT TERM HUP; echo $$ > {tmp_path}/pid; while :; do sleep 1; done")
    process = begin(root, {**MAKE, "pip": [["x"]]})
    pid = appears(tmp_path / "pid")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    ends(pid)


def test_pip_ends_with_the_group_that_a_serial_console_s_helper_kills(root: Path, tmp_path: Path) -> None:
    process = begin(root, {**MAKE, "pip": [["x"]]})
    pid = appears(tmp_path / "pid")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    ends(pid)
    assert (root / "venv-unfinished").exists()


def test_who_has_the_board_is_said(root: Path, tmp_path: Path) -> None:
    with held(root / "lock"):
        assert "fuser -v" in ask(root, MAKE)["busy"]
        with held(root / "jobs/one/lock"):
            (root / "jobs/one/progress.json").write_text('{"phase": "timing"}')
            assert ask(root, MAKE)["busy"] == "a measurement has it (job one: timing)"
            assert ask(root, REMOVE)["busy"] == "a measurement has it (job one: timing)"
    with held(root / "jobs/one/lock"):
        assert "a job runs or waits there" in ask(root, REMOVE)["busy"]
    process = begin(root, {**MAKE, "pip": [["x"]]})
    pid = appears(tmp_path / "pid")
    with held(root / "jobs/one/lock"):
        (root / "jobs/one/progress.json").write_text('{"phase": "waiting"}')
        for request in (MAKE, REMOVE, {**REMOVE, "really": False}):
            assert ask(root, request, "b2")["busy"].startswith("`device setup` of jane@desk has had it for ")
    assert (root / "venv").is_dir()
    os.kill(int(pid), signal.SIGTERM)
    process.communicate(timeout=60)


def test_the_same_one_asked_again_ends_what_is_left_of_the_first(root: Path, tmp_path: Path) -> None:
    first = begin(root, {**MAKE, "pip": [["x"]]})
    pid = appears(tmp_path / "pid")
    assert ask(root, MAKE) == {"made": True}, "what the first had begun cannot be trusted"
    first.communicate(timeout=60)
    ends(pid)


def test_pip_that_fails_leaves_what_was_there_and_a_half_installation_is_made_anew(root: Path) -> None:
    request = {**MAKE, "pip": [["--upgrade", "pip"], ["numpy"]], "wheels": True}
    (root / "wheels").mkdir()
    pip_does(root, 'case "$*" in *numpy) echo no network; exit 1;; esac')
    assert ask(root, request) == {"failed": 1, "said": "no network"}
    assert not (root / "venv-unfinished").exists() and not (root / "wheels").exists()
    pip_does(root, f"mkdir {root}/venv/lib/python3/site-packages/half; exit 1")
    assert ask(root, request)["failed"] == 0
    assert (root / "venv-unfinished").exists()
    pip_does(root, "sleep 60")
    (root / "venv-unfinished").unlink()
    assert ask(root, {**request, "limit_s": 0.3}) == {"failed": 0, "said": "it did not end in 0.3 s"}


def test_a_directory_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "root/venv/of-a-project/thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    for request in (MAKE, REMOVE, {**REMOVE, "really": False}):
        assert ask(tmp_path / "root", request) == {"foreign": f"{tmp_path}/root/venv"}
    assert mine.exists()
    mine.unlink()
    mine.parent.rmdir()
    assert ask(tmp_path / "root", MAKE) == {"made": True}, "an empty one is nobody's"


def test_a_removal_that_ends_in_the_middle_leaves_no_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(path: str) -> None:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr("shutil.rmtree", cut)
    with pytest.raises(OSError, match="Input/output"):
        environment._remove(root, True)
    assert ask(root, MAKE) == {"made": True} and (root / "venv/bin/python").is_symlink()


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.13"])
def test_older_and_newer_pythons_of_a_board_understand_it(tmp_path: Path, version: str) -> None:
    python = next(PYENV.glob(f"versions/{version}.*/bin/python"), None)
    if python is None:
        pytest.skip(f"needs Python {version} of pyenv: pyenv install {version}")
    (tmp_path / "root").mkdir(mode=0o700)
    assert ask(tmp_path / "root", REMOVE, python=str(python)) == {"found": [], "bytes": 0}
    with held(tmp_path / "root/lock"):
        assert "fuser -v" in ask(tmp_path / "root", REMOVE, python=str(python))["busy"]
