"""`device setup` against a real server with wheels made on the spot: an engine that crashes, --dry-run, --remove, --offline."""

from __future__ import annotations

import ensurepip
import fcntl
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecompress.board import engine_wheels, provision
from edgecompress.board.devices import remove, setup
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
    here = Path(sys.executable).resolve().parent
    there = " ".join(f"{name}={value}" for name, value in {"PATH": f"{here}:/usr/bin:/bin", **pip}.items())
    server = make_sshd(f"Subsystem sftp internal-sftp\nSetEnv {there}")
    return ssh_profile(server, python=None)


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
    for file in (root / "venv/bin/python", root / "wheels/x.whl", root / "blobs/kept", root / "jobs/one/lock"):
        file.parent.mkdir(mode=0o700, parents=True)
        file.write_bytes(b"x" * 1_000_000)
    root.chmod(0o700)
    (root / "venv/outside").symlink_to(tmp_path)
    would = [f"{root}/venv: would be removed", f"{root}/wheels: would be removed"]
    assert remove(board, dry_run=True)[:2] == would and (root / "venv").is_dir()
    with (root / "jobs/one/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="a job runs or waits there"):
            remove(board)
        assert (root / "venv").is_dir()
    assert remove(board)[:2] == [f"{root}/venv: removed", f"{root}/wheels: removed"]
    assert sorted(p.name for p in root.iterdir()) == ["blobs", "jobs"] and (tmp_path / "index").is_dir()
    assert remove(board) == [f"nothing to remove under {root}"]
    with pytest.raises(UserError, match="names its Python"):
        remove(board.model_copy(update={"python": "python3"}))
