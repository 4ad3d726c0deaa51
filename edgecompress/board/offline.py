"""Engines for a board that has no network: wheels are collected here with `pip download`, brought there, and installed by hash.

Collected once for each kind of board (machine, Python, glibc, versions) and kept in ~/.cache/edgecompress/wheels. On the board
pip checks the SHA-256 of every wheel (`--require-hashes`) and asks no index; nothing but the installation stays there.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgecompress.board.agent import Agent
from edgecompress.board.environment import Installation
from edgecompress.board.serial_transport import told
from edgecompress.board.transport import DeviceError, readable
from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import Progress, furthest

_OLDEST_GLIBC = 5
"""manylinux_2_5: the first there was."""
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
"""What the wheels of these versions of glibc 2 were called before PEP 600."""
_DOWNLOAD_S = 3600.0
_INSTALLED = """
import sys
try:
    from importlib.metadata import version
    print([version(p.partition("==")[0]) for p in sys.argv[1:]] == [p.partition("==")[2] for p in sys.argv[1:]])
except Exception as error:
    print(False)
"""


def cache() -> Path:
    """Where wheels are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecompress" / "wheels"


def platforms(machine: str, glibc: tuple[int, int]) -> list[str]:
    """The platform tags that a board's pip accepts, the newest first (PEP 600). glibc: (2, minor)."""
    found = []
    for minor in range(glibc[1], _OLDEST_GLIBC - 1, -1):
        found.append(f"manylinux_2_{minor}_{machine}")
        if minor in _LEGACY:
            found.append(f"{_LEGACY[minor]}_{machine}")
    return [*found, f"linux_{machine}"]


def collect(
    packages: Sequence[str], *, machine: str, python: tuple[int, int], glibc: tuple[int, int] | None, where: str
) -> list[Path]:
    """The wheels of `packages`, of what they need, and of pip, for such a board.

    UserError: the board has no glibc, this Python has no pip. StepFailed: the index is out of reach or lacks one.
    """
    if glibc is None or glibc[0] != 2:
        fix = "Use a system with glibc, or build an engine for it and name its Python in the device profile (python:)."
        raise UserError("wheels of the engines need glibc, which it does not have", where=where, fix=fix)
    version = f"{python[0]}.{python[1]}"
    key = hashlib.sha256(repr(sorted(packages)).encode()).hexdigest()[:12]
    folder = cache() / f"{machine}-python{version}-glibc2.{glibc[1]}-{key}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _download(packages, machine, version, glibc, Path(scratch) / "wheels")
            (Path(scratch) / "wheels").replace(folder)
    return sorted(folder.glob("*.whl"))


def _download(packages: Sequence[str], machine: str, version: str, glibc: tuple[int, int], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, "-d", str(folder)]
    for tag in platforms(machine, glibc):
        command += ["--platform", tag]
    try:
        done = subprocess.run(
            [*command, "pip", *packages],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DOWNLOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StepFailed(f"pip did not collect the wheels in {_DOWNLOAD_S:g} s") from None
    if done.returncode:
        said = readable(done.stderr, 800) or f"exit status {done.returncode}, no message"
        if "No module named pip" in said:
            raise UserError(
                "this Python has no pip to collect wheels with", where=sys.executable, fix="Install pip here."
            )
        raise StepFailed(f"pip here could not collect {', '.join(packages)} for Python {version} on {machine}: {said}")


def requirements(wheels: Sequence[Path]) -> str:
    """A requirements file that names each wheel by version and SHA-256."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return "\n".join(lines) + "\n"


def has(agent: Agent, python: str, packages: Sequence[str]) -> bool:
    """Whether the environment of `python` there has just these versions."""
    there = agent.again(lambda t: t.run([python, "-I", "-c", _INSTALLED, *packages]))
    return there.status == 0 and there.stdout.strip().endswith(b"True")


def send(agent: Agent, wheels: Sequence[Path], progress: Progress) -> list[Installation]:
    """Bring the wheels to the board, those that are not there; what pip is then to do. DeviceError: also where another setup or
    a removal took them away meanwhile, as nobody has the board while they are sent."""
    if agent.profile.transport == "serial":
        progress.say(told(sum(w.stat().st_size for w in wheels), agent.profile.baud_rate))
    folder = f"{agent.root}/wheels"
    agent.again(lambda t: t.mkdirs(folder))
    try:
        return _send(agent, wheels, folder, progress)
    except DeviceError as error:
        if agent.again(lambda t: t.exists(folder)):
            raise
        gone = f"{folder} was removed while wheels were sent to it, by another setup or a removal"
        raise DeviceError(f"{agent.profile.name}: {gone}. Run this again when that has ended") from error


def _send(agent: Agent, wheels: Sequence[Path], folder: str, progress: Progress) -> list[Installation]:
    for wheel in wheels:
        remote = f"{folder}/{wheel.name}"
        if not agent.again(lambda t, remote=remote: t.exists(remote)):  # type: ignore[misc]
            what = f"sending {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB)"
            with progress.task(f"{agent.profile.name}: {what}", total=wheel.stat().st_size) as bar:
                agent.send(wheel, remote, furthest(bar))
    listed = f"{folder}/requirements.txt"
    agent.again(lambda t: t.put(requirements(wheels).encode(), listed))
    source = ("--no-index", "--find-links", folder)
    return [
        # The pip that comes with an old Python does not know today's names of wheels: its own wheel first.
        Installation("pip from its wheel", (*source, "--upgrade", "pip")),
        Installation("the wheels from here", (*source, "--no-deps", "--require-hashes", "-r", listed)),
    ]
