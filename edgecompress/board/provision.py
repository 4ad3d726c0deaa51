"""Install the engines on a board: a virtual environment in the device's workdir, and the versions that its Python can have.

Nothing is done as root. Which versions: engine_wheels.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from edgecompress.board import environment
from edgecompress.board.agent import UNFINISHED, Agent, open_agent
from edgecompress.board.engine_wheels import OLDER, PACKAGES, WHEELS, WHEELS_ARMV7, BoardPython, wheels
from edgecompress.board.offline import collect, has, send
from edgecompress.board.transport import Completed, DeviceError, command, readable
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import SILENT, Progress

_CANDIDATES = ("python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python3.8")
_FACTS = (
    "import sys, json, struct, platform;"
    "print(json.dumps([list(sys.version_info[:2]), platform.machine(), 8 * struct.calcsize('P'), platform.libc_ver()]))"
)
_CHOSEN = "older-versions"


def setup(
    profile: DeviceProfile, progress: Progress = SILENT, *, offline: bool = False, dry_run: bool = False
) -> list[str]:
    """Make `workdir/venv` on the device and install the engines into it. Harmless when done again. A line for each engine.

    An engine whose import fails there gives way to an older version, which later setups keep. offline: the device has no network;
    wheels are collected on this machine and brought there. dry_run: nothing is written, here or there; the lines say what would be.
    No job begins there meanwhile, and an interrupt here ends what is under way there. UserError: a job or another setup has the
    board, a person has to install something there, or the profile names a Python of its own. StepFailed: it broke.
    """
    where = profile.name
    check_own_python(profile)
    agent = open_agent(profile)
    try:
        with progress.task(f"setting up {profile.name}", total=3) as task:
            agent.notice = task.describe
            task.describe("looking for Python")
            base = find_python(agent, where)
            agent.refuse_workdir(base.command, mend=not dry_run)
            packages = _fitting(agent, wheels(base, where=where))
            task.advance()
            if dry_run:
                return _would(agent, base, packages, offline=offline)

            def put_in(wanted: tuple[str, ...]) -> None:
                names = ", ".join(wanted)
                if offline:
                    task.describe(f"making the environment {agent.root}/venv")
                    python = environment.make(agent, base)
                    if has(agent, python, wanted):
                        return
                    task.describe(f"collecting wheels of {names}")
                    found = collect(wanted, machine=base.machine, python=base.version, glibc=base.glibc, where=where)
                    sent = send(agent, found, progress)
                    task.describe(f"installing {names}")
                    environment.make(agent, base, sent, wheels=True)
                else:
                    task.describe(f"making the environment {agent.root}/venv, installing {names}")
                    _install(agent, base, wanted)

            put_in(packages)
            task.advance()
            agent.python = f"{agent.root}/venv/bin/python"
            _need_numpy(agent, packages)
            task.describe("trying the engines")
            lines = _try(agent, packages, put_in)
            task.advance()
    finally:
        agent.close()
    return lines


def check_own_python(profile: DeviceProfile) -> None:
    """UserError where there is no environment of ours to make or remove."""
    if profile.transport == "local":
        raise UserError(
            "this machine measures with the Python that runs edgecompress",
            where=profile.name,
            fix="Its engines come with: pip install 'edgecompress[tflite]'; there is nothing that setup would make or remove.",
        )
    if profile.python is not None:
        raise UserError(
            f"the profile names its Python ({profile.python}), which would not use what setup installs",
            where=profile.name,
            fix="Remove python from the profile, or install the engines into that Python yourself.",
        )


def _try(agent: Agent, packages: tuple[str, ...], put_in: Callable[[tuple[str, ...]], None]) -> list[str]:
    """Import every engine there, and put older versions in the place of those that fail. What was found, a line for each."""
    numpy = tuple(p for p in packages if p.startswith("numpy"))
    gave_way: dict[str, list[str]] = {}
    failed: dict[str, list[str]] = {}
    hello = agent.hello()
    for name, names in PACKAGES.items():
        installed = next((p for p in packages if p.partition("==")[0] in names), None)
        for older in OLDER.get(installed or "", ()):
            found = hello.engines.get(name)
            if found is None or found.version is not None:
                break
            try:
                put_in((*numpy, older))
            except StepFailed as error:  # there is no wheel of this one for the board: the one before it
                failed.setdefault(name, []).append(f"{older} in its place: {readable(str(error), 300)}")
                continue
            gave_way.setdefault(name, []).append(f"{installed}: {readable(found.reason or 'no reason', 200)}")
            installed, hello = older, agent.hello(fresh=True)
            if (now := hello.engines.get(name)) is not None and now.version is not None:
                _remember(agent, older)
    lines = [f"Python {readable(hello.python, 40)} in {agent.root}/venv"]
    for name, found in sorted(hello.engines.items()):
        why = "; ".join([readable(found.reason or "", 300), *gave_way.get(name, []), *failed.get(name, [])])
        said = found.version or f"none ({why})"
        before = "; ".join(gave_way.get(name, []))
        lines.append(f"{name} {said}" + (f" in the place of {before}" if before and found.version else ""))
    if not any(found.version for found in hello.engines.values()):
        raise DeviceError(f"{agent.profile.name}: no engine works after the installation: {'; '.join(lines[1:])}")
    return lines


def _fitting(agent: Agent, packages: tuple[str, ...]) -> tuple[str, ...]:
    """The table's packages, with the older versions that an earlier setup found to be needed on this board."""
    try:
        kept = agent.again(lambda t: t.get(f"{agent.root}/{_CHOSEN}", 4096)).decode("ascii", "replace").split()
    except FileNotFoundError:
        return packages
    older = {package: one for package in packages for one in kept if one in OLDER.get(package, ())}
    return tuple(older.get(package, package) for package in packages)


def _remember(agent: Agent, chosen: str) -> None:
    """Until the environment is removed."""
    name = chosen.partition("==")[0]
    try:
        kept = agent.again(lambda t: t.get(f"{agent.root}/{_CHOSEN}", 4096)).decode("ascii", "replace").split()
    except FileNotFoundError:
        kept = []
    text = "\n".join([*(k for k in kept if k.partition("==")[0] != name), chosen])
    agent.again(lambda t: t.put(text.encode(), f"{agent.root}/{_CHOSEN}"))


def _would(agent: Agent, base: BoardPython, packages: tuple[str, ...], *, offline: bool) -> list[str]:
    """What setup would do now, in sentences."""
    python = f"{agent.root}/venv/bin/python"
    unfinished = agent.again(lambda t: t.exists(f"{agent.root}/{UNFINISHED}"))
    there = not unfinished and _fits(agent, python, base)
    version = f"Python {base.version[0]}.{base.version[1]} on {readable(base.machine, 40)}"
    lines = [f"{version} ({base.command})"]
    lines.append(f"{agent.root}/venv: is there and stays" if there else f"{agent.root}/venv: would be made")
    missing = [p for p in packages if not there or not has(agent, python, [p])]
    lines += [f"{p}: {'would be installed' if p in missing else 'is installed'}" for p in packages]
    if missing:
        lines.append(f"wheels: would be collected {'here and brought there' if offline else 'by pip there'}")
    return [*lines, "nothing was changed"]


def find_python(agent: Agent, where: str) -> BoardPython:
    """The board's python3 where engines have wheels for it, else the newest one for which they do, else python3."""
    found = []
    for name in _CANDIDATES:
        done = _run(agent, [name, "-I", "-c", _FACTS], 60.0)
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
        if python.version in (WHEELS_ARMV7 if python.machine == "armv7l" else WHEELS):
            return python
        found.append(python)
    if not found:
        raise UserError(
            "there is no python3 on it", where=where, fix="Install it there: sudo apt install python3 python3-venv"
        )
    return found[0]


def _fits(agent: Agent, python: str, base: BoardPython) -> bool:
    """Whether this interpreter is one of the base's version, and has pip."""
    there = _run(agent, [python, "-I", "-c", "import sys, pip; print('%d.%d' % tuple(sys.version_info[:2]))"], 60.0)
    said = there.stdout.decode("ascii", "replace").strip()
    return there.status == 0 and said == f"{base.version[0]}.{base.version[1]}"


def _glibc(libc: list[str]) -> tuple[int, int] | None:
    """From `platform.libc_ver()`."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(libc[1])) if libc[0] == "glibc" else None
    return (int(found.group(1)), int(found.group(2))) if found else None


def _install(agent: Agent, base: BoardPython, packages: tuple[str, ...]) -> None:
    pip = [
        # The pip that comes with an old Python does not know today's names of wheels.
        environment.Installation("pip", ("--upgrade", "pip")),
        environment.Installation(" ".join(packages), ("--only-binary=:all:", *packages)),
    ]
    try:
        environment.make(agent, base, pip)
    except environment.PipFailed as error:
        hint = command("setup", agent.profile.name, "--offline")
        raise DeviceError(f"{error}. Without a network on the board: {hint}") from None


def _need_numpy(agent: Agent, packages: tuple[str, ...]) -> None:
    if any(p.startswith("numpy") for p in packages):
        return
    if _run(agent, [agent.python, "-I", "-c", "import numpy"], 60.0).status != 0:
        fix = "Install it there: sudo apt install python3-numpy, then run this again."
        raise UserError("it has no numpy", where=agent.profile.name, fix=fix)


def _run(agent: Agent, argv: list[str], timeout_s: float) -> Completed:
    return agent.again(lambda t: t.run(argv, None, timeout_s))
