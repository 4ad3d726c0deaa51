"""Engines for a board without a network: wheels collected here, installed there by their hashes; with wheels made on the spot."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgecompress.board import environment, offline
from edgecompress.board.agent import open_agent
from edgecompress.board.engine_wheels import BoardPython
from edgecompress.board.transport import DeviceError
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import SILENT

PYTHON = (sys.version_info.major, sys.version_info.minor)


def make_wheel(folder: Path, name: str, version: str, tag: str, needs: str = "", source: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel, info = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}.py": f"version = __version__ = '{version}'\n{source}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tag}\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{p},,\n" for p in [*files, f"{info}/RECORD"]))
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip here sees in place of its index; a cache of its own."""
    folder = tmp_path / "index"
    make_wheel(folder, "pip", "99.0", "py3-none-any")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_the_tags_that_a_board_accepts() -> None:
    tags = offline.platforms("aarch64", (2, 31))
    assert tags[0] == "manylinux_2_31_aarch64" and "manylinux_2_35_aarch64" not in tags
    assert tags.index("manylinux_2_28_aarch64") < tags.index("manylinux_2_17_aarch64") < tags.index("linux_aarch64")
    assert "manylinux2014_aarch64" in tags


def test_wheels_of_the_boards_machine_python_and_glibc_are_collected_once(index: Path) -> None:
    for tag in (
        "cp310-cp310-manylinux_2_28_aarch64",
        "cp311-cp311-manylinux_2_35_aarch64",
        "cp311-cp311-manylinux_2_28_x86_64",
    ):
        make_wheel(index, "engine", "1.5", tag)
    board = {"machine": "aarch64", "python": (3, 11), "glibc": (2, 31), "where": "b"}
    with pytest.raises(StepFailed, match=r"could not collect engine==1.5 for Python 3.11 on aarch64"):
        offline.collect(["engine==1.5"], **board)  # type: ignore[arg-type]
    make_wheel(index, "engine", "1.5", "cp311-cp311-manylinux_2_28_aarch64", needs="part")
    make_wheel(index, "part", "2", "py3-none-any")
    wheels = offline.collect(["engine==1.5"], **board)  # type: ignore[arg-type]
    assert [w.name for w in wheels] == [
        "engine-1.5-cp311-cp311-manylinux_2_28_aarch64.whl", "part-2-py3-none-any.whl", "pip-99.0-py3-none-any.whl"
    ]  # fmt: skip
    for wheel in index.iterdir():
        wheel.unlink()
    assert offline.collect(["engine==1.5"], **board) == wheels, "the index is asked once"  # type: ignore[arg-type]
    with pytest.raises(UserError, match="need glibc"):
        offline.collect(["engine==1.5"], machine="aarch64", python=(3, 11), glibc=None, where="b")


@pytest.mark.slow
def test_installed_by_hash_and_nothing_left_behind(
    local_profile: DeviceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    wheels = [
        make_wheel(tmp_path / "w", "engine", "1.5", "py3-none-any", needs="part"),
        make_wheel(tmp_path / "w", "part", "2", "py3-none-any"),
    ]
    agent = open_agent(local_profile)
    sent, base = Path(agent.root) / "wheels", BoardPython(sys.executable, PYTHON, "x86_64")
    python = environment.make(agent, base)
    assert not offline.has(agent, python, ["engine==1.5"])

    def install(wheels: list[Path]) -> None:
        environment.make(agent, base, offline.send(agent, wheels, SILENT), wheels=True)

    install(wheels)
    shown = subprocess.run(
        [python, "-c", "import engine, part; print(engine.version, part.version)"], capture_output=True, text=True
    )
    assert shown.stdout == "1.5 2\n" and not sent.exists()
    assert offline.has(agent, python, ["engine==1.5"]) and not offline.has(agent, python, ["engine==1.6"])
    newer = make_wheel(tmp_path / "w", "engine", "1.6", "py3-none-any")

    def send_while_it_is_removed(*arguments: Any) -> None:
        sent.rmdir()
        send(*arguments)

    send = agent.send
    with monkeypatch.context() as patched, pytest.raises(DeviceError, match="was removed while wheels were sent to it"):
        patched.setattr(agent, "send", send_while_it_is_removed)
        install([newer])
    make_wheel(sent, "engine", "1.6", "py3-none-any", needs="another")  # what lies there under its name is another one
    with pytest.raises(DeviceError, match="pip there could not install the wheels from here"):
        install([newer])
    assert not sent.exists()
    install([newer])
    agent.close()


def test_a_requirements_file_names_every_wheel_by_its_hash(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "engine", "1.5", "py3-none-any")
    before = offline.requirements([wheel])
    assert (
        before.startswith("engine==1.5 --hash=sha256:")
        and before.endswith("\n")
        and len(before.split(":")[1].strip()) == 64
    )
    wheel.write_bytes(wheel.read_bytes() + b"x")
    assert offline.requirements([wheel]) != before
