"""`device setup` against a real server with wheels made on the spot: an engine that crashes, --dry-run, --remove, --offline, an
interrupt, and others at work on the board."""

from __future__ import annotations

import ensurepip
import fcntl
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgecompress.board import engine_wheels, provision
from edgecompress.board.devices import remove, setup
from edgecompress.cli import main
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from tests.board.loopback import Sshd
from tests.board.test_offline import make_wheel

pytestmark = [pytest.mark.sshd, pytest.mark.slow]

ANY = "py3-none-any"
CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"
WORKS = "def get_available_providers(): return ['CPUExecutionProvider']"
PACKAGES = ("numpy==9.0", "onnxruntime==99.2")


@pytest.fixture
def board(
    make_sshd: Callable[..., Sshd],
    ssh_profile: Callable[..., DeviceProfile],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> DeviceProfile:
    """A board of this machine's Python whose index, here and there, is a folder: onnxruntime 99.2 crashes, 99.0 works."""
    index = tmp_path / "index"
    (bundled,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    make_wheel(index, "numpy", "9.0", ANY)
    shutil.copy(bundled, index)
    make_wheel(index, "onnxruntime", "99.2", ANY, source=CRASH)
    make_wheel(index, "onnxruntime", "99.0", ANY, source=WORKS)
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": "/dev/null"}
    for name, value in {**pip, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    for table in (engine_wheels.WHEELS, provision.WHEELS):
        monkeypatch.setitem(table, (sys.version_info.major, sys.version_info.minor), PACKAGES)
    monkeypatch.setitem(engine_wheels.OLDER, "onnxruntime==99.2", ("onnxruntime==99.1", "onnxruntime==99.0"))
    return ssh_profile(make_sshd(served(pip)), python=None)


def served(environment: dict[str, str]) -> str:
    """Of an sshd whose commands have this environment, and the Python that runs this as theirs."""
    here = Path(sys.executable).resolve().parent
    there = " ".join(f"{name}={value}" for name, value in {"PATH": f"{here}:/usr/bin:/bin", **environment}.items())
    return f"Subsystem sftp internal-sftp\nSetEnv {there}"


def written(folder: Path, profile: DeviceProfile) -> str:
    """The profile as a file."""
    file = folder / f"{profile.name}.yaml"
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json", exclude_unset=True)))
    return str(file)


@pytest.mark.parametrize("offline", [False, True])
def test_an_engine_that_crashes_gives_way_to_an_older_one(board: DeviceProfile, offline: bool) -> None:
    venv = Path(board.workdir) / "venv"
    lines = setup(board, offline=offline, dry_run=True)
    assert "onnxruntime==99.2: would be installed" in lines and lines[-1] == "nothing was changed"
    assert not Path(board.workdir).exists(), "a dry run writes nothing"

    (said,) = [line for line in setup(board, offline=offline) if line.startswith("onnxruntime")]
    assert said.startswith("onnxruntime 99.0 in the place of onnxruntime==99.2: its import is ended by SIGILL")
    made = venv.stat().st_ino, (venv / "bin" / "python").lstat().st_mtime_ns

    # done again, it keeps what works here, and makes and installs nothing
    lines = setup(board, offline=offline, dry_run=True)
    assert "onnxruntime==99.0: is installed" in lines and f"{venv}: is there and stays" in lines
    assert "onnxruntime 99.0" in setup(board, offline=offline)
    assert made == (venv.stat().st_ino, (venv / "bin" / "python").lstat().st_mtime_ns)
    assert not (Path(board.workdir) / "wheels").exists()


def test_no_older_version_works(board: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine_wheels.OLDER, "onnxruntime==99.2", ("onnxruntime==99.1",))
    with pytest.raises(
        StepFailed, match=r"no engine works after the installation: .*SIGILL.*; onnxruntime==99.1 in its place"
    ):
        setup(board)


def test_remove_is_setup_undone(board: DeviceProfile, tmp_path: Path) -> None:
    root = Path(board.workdir)
    assert remove(board) == [f"nothing to remove under {root}"]
    for file in (root / "venv/pyvenv.cfg", root / "wheels/x.whl", root / "blobs/kept", root / "jobs/one/lock"):
        file.parent.mkdir(mode=0o700, parents=True)
        file.write_bytes(b"x" * 1_000_000)
    root.chmod(0o700)
    (root / "venv/outside").symlink_to(tmp_path)
    would = [f"{root}/venv: would be removed", f"{root}/wheels: would be removed"]
    root.chmod(0o770)
    assert remove(board, dry_run=True)[:2] == would and (root / "venv").is_dir()
    assert root.stat().st_mode & 0o777 == 0o770, "a dry run changes no rights"
    with (root / "jobs/one/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="a job runs or waits there"):
            remove(board)
        assert (root / "venv").is_dir()
    assert remove(board)[:2] == [f"{root}/venv: removed", f"{root}/wheels: removed"]
    assert sorted(p.name for p in root.iterdir()) == ["blobs", "jobs", "lock"] and (tmp_path / "index").is_dir()
    assert remove(board) == [f"nothing to remove under {root}"]
    with pytest.raises(UserError, match="names its Python"):
        remove(board.model_copy(update={"python": "python3"}))


def test_a_directory_of_the_users_own_is_neither_cleared_nor_removed(board: DeviceProfile) -> None:
    mine = Path(board.workdir) / "venv/of-a-project/thesis.txt"
    mine.parent.mkdir(mode=0o700, parents=True)
    Path(board.workdir).chmod(0o700)
    mine.touch()
    for deal in (setup, remove):
        with pytest.raises(UserError, match=r"^board: .*/venv is there and is no virtual environment") as refused:
            deal(board)
        assert f"On the device: mv {board.workdir}/venv {board.workdir}/venv.old, or set another" in refused.value.fix
    assert mine.exists()


def test_a_board_that_others_have_is_left_alone(board: DeviceProfile) -> None:
    root = Path(board.workdir)
    root.mkdir(mode=0o700)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for deal in (setup, remove, lambda p: setup(p, offline=True)):
            with pytest.raises(UserError, match=r"^board: the board is taken: .*fuser -v") as refused:
                deal(board)
            assert "Wait for it" in refused.value.fix
    assert [p.name for p in root.iterdir()] == ["lock"], "nothing was made, and no wheel sent"


def test_an_interrupt_ends_pip_there_and_the_next_setup_mends_it(
    board: DeviceProfile, make_sshd: Callable[..., Sshd], ssh_profile: Callable[..., DeviceProfile], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as index:  # one that takes every question and answers none
        slow = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"http://127.0.0.1:{index.getsockname()[1]}/"}
        profile = ssh_profile(make_sshd(served({**slow, "PIP_CONFIG_FILE": "/dev/null"})), python=None)
        command = [sys.executable, "-m", "edgecompress", "device", "setup", written(tmp_path, profile)]
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # in the background of a shell they are ignored
        begun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
        signal.signal(signal.SIGINT, before)
        index.settimeout(120)
        asked, _ = index.accept()
        assert pips_of(profile)
        with pytest.raises(UserError, match=r"taken: `device setup` of .*@.* has had it for \d+ s"):
            remove(profile)
        begun.send_signal(signal.SIGINT)
        _, said = begun.communicate(timeout=120)
        asked.close()
    assert begun.returncode == 130 and "interrupted" in said and "setting up board: making the environment" in said
    until = time.monotonic() + 60
    while pips_of(profile):
        assert time.monotonic() < until, "pip goes on there"
        time.sleep(0.1)
    assert (Path(board.workdir) / "venv-unfinished").exists()
    assert f"{board.workdir}/venv: would be made" in setup(board, dry_run=True)
    assert any(line.startswith("onnxruntime 99.0") for line in setup(board))


def pips_of(profile: DeviceProfile) -> list[str]:
    """The processes that run pip of this board's environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[0].startswith(profile.workdir) and "pip" in words:
            found.append(process.name)
    return found


def test_a_workdir_that_cannot_be_made_is_said_before_anything_is_done(
    board: DeviceProfile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    below = board.model_copy(update={"workdir": f"{tmp_path}/file/below"})
    assert main(["device", "setup", written(tmp_path, below), "--dry-run"]) == 2
    out = capsys.readouterr()
    assert "setting up board: looking for Python" in out.err, "plain lines where there is no terminal"
    assert "would be" not in out.out
    assert f"{tmp_path}/file/below cannot be made: {tmp_path}/file is not a directory\n" in out.err
    assert f"On the device: mv {tmp_path}/file {tmp_path}/file.old, or set another workdir" in out.err
