"""Install the engines on a board: a virtual environment in the device's workdir, and the versions that its Python can have.

Nothing is done as root. The versions are pinned, so that two boards with the same Python measure the same engines; they
were found by asking the package index for wheels of each Python on aarch64, armv7l and x86_64.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from edgecompress.board.agent import Agent, open_agent
from edgecompress.board.offline import collect, install
from edgecompress.board.transport import Completed, DeviceError, command, readable
from edgecompress.errors import UserError
from edgecompress.progress import SILENT, Progress
from edgecompress.study import DeviceProfile

_WHEELS: dict[tuple[int, int], tuple[str, ...]] = {
    (3, 8): ("numpy==1.24.4", "onnxruntime==1.19.2", "tflite-runtime==2.13.0"),
    (3, 9): ("numpy==2.0.2", "onnxruntime==1.19.2", "ai-edge-litert==2.1.0"),
    (3, 10): ("numpy==2.2.6", "onnxruntime==1.23.2", "ai-edge-litert==2.3.0"),
    (3, 11): ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0"),
    (3, 12): ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0"),
    (3, 13): ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0"),
}
"""For 64-bit ARM and x86. ai-edge-litert has no wheel for 3.8; onnxruntime's newest need 3.11."""

_WHEELS_ARMV7: dict[tuple[int, int], tuple[str, ...]] = {(3, 11): ("tflite-runtime==2.14.0",)}
"""32-bit ARM: no onnxruntime, and no numpy either, which comes from the board's own distribution (below 2, as it must be)."""

_CANDIDATES = ("python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python3.8")
_FACTS = (
    "import sys, json, struct, platform;"
    "print(json.dumps([list(sys.version_info[:2]), platform.machine(), 8 * struct.calcsize('P'), platform.libc_ver()]))"
)
_VENV_S = 600.0
_PIP_S = 3600.0


@dataclass(frozen=True)
class BoardPython:
    """An interpreter on the device. machine: what its wheels are called by (a 32-bit Python on a 64-bit kernel: armv7l). glibc:
    its version; None where it has another C library."""

    command: str
    version: tuple[int, int]
    machine: str
    glibc: tuple[int, int] | None = None


def wheels(python: BoardPython, *, where: str) -> tuple[str, ...]:
    """What pip shall install. UserError when there are no engines for this Python and machine."""
    table = {"aarch64": _WHEELS, "x86_64": _WHEELS, "armv7l": _WHEELS_ARMV7}.get(python.machine)
    if table is None:
        fix = "Build an engine for it, and name its Python in the device profile (python:)."
        raise UserError(f"no engine has wheels for {readable(python.machine, 40)}", where=where, fix=fix)
    if python.version not in table:
        have = ", ".join(f"{major}.{minor}" for major, minor in table)
        what = f"no engine has wheels for Python {python.version[0]}.{python.version[1]} on {python.machine}"
        fix = f"Install one of these Pythons there: {have}"
        raise UserError(what, where=where, fix=fix + (", or a 64-bit system." if python.machine == "armv7l" else "."))
    return table[python.version]


def setup(profile: DeviceProfile, progress: Progress = SILENT, *, offline: bool = False) -> list[str]:
    """Make `workdir/venv` on the device and install the engines into it. Harmless when done again. A line for each engine.

    offline: the device has no network; wheels are collected on this machine and brought there.
    UserError: a person has to install something there, or the profile names a Python of its own. StepFailed: it broke.
    """
    where = profile.name
    if profile.transport == "local":
        raise UserError(
            "this machine measures with the Python that runs edgecompress",
            where=where,
            fix="pip install 'edgecompress[tflite]'",
        )
    if profile.python is not None:
        raise UserError(
            f"the profile names its Python ({profile.python}), which would not use what setup installs",
            where=where,
            fix="Remove python from the profile, or install the engines into that Python yourself.",
        )
    agent = open_agent(profile)
    try:
        with progress.task(f"setting up {profile.name}", total=4) as task:
            agent.notice = task.describe
            task.describe("looking for Python")
            base = _find_python(agent, where)
            agent.refuse_shared(base.command)
            packages = wheels(base, where=where)
            task.advance()
            task.describe("making an environment")
            python = _environment(agent, base, where)
            task.advance()
            if offline:
                task.describe("collecting wheels")
                collected = collect(
                    packages, machine=base.machine, python=base.version, glibc=base.glibc, where=where
                )  # fmt: skip
                task.describe("installing " + ", ".join(packages))
                install(agent, python, packages, collected, progress)
            else:
                task.describe("installing " + ", ".join(packages))
                _install(agent, python, packages)
            _need_numpy(agent, python, packages, where)
            task.advance()
            task.describe("trying the engines")
            agent.python = python
            hello = agent.hello()
            task.advance()
    finally:
        agent.close()
    lines = [f"Python {readable(hello.python, 40)} in {agent.root}/venv"]
    for name, found in sorted(hello.engines.items()):
        lines.append(
            f"{name} {found.version}" if found.version else f"{name}: none ({readable(found.reason or '', 300)})"
        )
    if not any(found.version for found in hello.engines.values()):
        raise DeviceError(f"{where}: no engine works after the installation: {'; '.join(lines[1:])}")
    return lines


def _find_python(agent: Agent, where: str) -> BoardPython:
    """The board's python3 where engines have wheels for it, else the newest one for which they do, else python3."""
    found = []
    for name in _CANDIDATES:
        done = _run(agent, [name, "-c", _FACTS], 60.0)
        try:
            facts = json.loads(done.stdout.decode().strip().rpartition("\n")[2])
            (major, minor), machine, bits, libc = facts
            python = BoardPython(
                name,
                (int(major), int(minor)),
                "armv7l" if bits == 32 and machine == "aarch64" else str(machine),
                _glibc(libc),
            )
        except (ValueError, TypeError):
            continue
        if python.version in (_WHEELS_ARMV7 if python.machine == "armv7l" else _WHEELS):
            return python
        found.append(python)
    if not found:
        raise UserError(
            "there is no python3 on it", where=where, fix="Install it there: sudo apt install python3 python3-venv"
        )
    return found[0]


def _environment(agent: Agent, base: BoardPython, where: str) -> str:
    """The environment's interpreter; made, or made anew when it does not work or is of another Python."""
    folder = f"{agent.root}/venv"
    python = f"{folder}/bin/python"
    there = _run(agent, [python, "-c", "import sys, pip; print('%d.%d' % tuple(sys.version_info[:2]))"], 60.0)
    if there.status == 0 and there.stdout.decode("ascii", "replace").strip() == f"{base.version[0]}.{base.version[1]}":
        return python
    agent.again(lambda t: t.mkdirs(agent.root))
    # numpy has no wheel for armv7l: the distribution's has to be seen from inside
    extra = ["--system-site-packages"] if base.machine == "armv7l" else []
    done = _run(agent, [base.command, "-m", "venv", "--clear", *extra, folder], _VENV_S)
    if done.status != 0:
        version = f"{base.version[0]}.{base.version[1]}"
        raise UserError(
            f"{base.command} cannot make a virtual environment: {_said(done)}",
            where=where,
            fix=f"Install it there: sudo apt install python3-venv (or python{version}-venv), then run this again.",
        )
    return python


def _glibc(libc: list[str]) -> tuple[int, int] | None:
    """From `platform.libc_ver()`."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(libc[1])) if libc[0] == "glibc" else None
    return (int(found.group(1)), int(found.group(2))) if found else None


def _install(agent: Agent, python: str, packages: tuple[str, ...]) -> None:
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    # The pip that comes with an old Python does not know today's names of wheels.
    for arguments in (["--upgrade", "pip"], ["--only-binary=:all:", *packages]):
        done = _run(agent, [*pip, *arguments], _PIP_S)
        if done.status != 0:
            raise DeviceError(
                f"{agent.profile.name}: pip could not install {' '.join(arguments[1:])}: {_said(done)}. "
                f"Without a network on the board: {command('setup', agent.profile.name + ' --offline')}"
            )


def _need_numpy(agent: Agent, python: str, packages: tuple[str, ...], where: str) -> None:
    if (
        not any(p.startswith("numpy") for p in packages)
        and _run(agent, [python, "-c", "import numpy"], 60.0).status != 0
    ):
        raise UserError(
            "it has no numpy", where=where, fix="Install it there: sudo apt install python3-numpy, then run this again."
        )


def _run(agent: Agent, argv: list[str], timeout_s: float) -> Completed:
    return agent.again(lambda t: t.run(argv, None, timeout_s))


def _said(done: Completed) -> str:
    return readable(done.stderr, 800) or readable(done.stdout, 800) or f"exit status {done.status}, no message"
