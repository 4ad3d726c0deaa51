"""The engines' environment on a board, made and removed there by one program that holds the board's lock (environment.py of the
agent)."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.board import bundle
from edgecompress.board.agent import Agent, last_json
from edgecompress.board.engine_wheels import BoardPython
from edgecompress.board.transport import DeviceError, readable
from edgecompress.errors import UserError

_VENV_S, _PIP_S, _REMOVE_S = 600.0, 3600.0, 600.0
_MARGIN_S = 60.0
_PROGRAM = "import json, sys; exec(compile(json.loads(sys.stdin.readline()), 'environment.py', 'exec'))"
"""Its text comes by standard input, as small SSH servers (dropbear) take commands of some KB only."""


@dataclass(frozen=True)
class Installation:
    """One call of `pip install`. what: for a person; arguments: pip's."""

    what: str
    arguments: tuple[str, ...]


class PipFailed(DeviceError):
    """pip there could not install what it should."""


def make(agent: Agent, base: BoardPython, pip: Sequence[Installation] = (), *, wheels: bool = False) -> str:
    """Make ROOT/venv, unless one of this Python is there and whole, and have its pip install. The path of its interpreter.

    wheels: ROOT/wheels is removed afterwards. UserError: the board is taken, or its Python cannot make an environment. PipFailed.
    """
    # numpy has no wheel for armv7l: the distribution's has to be seen from inside
    options = ["--system-site-packages"] if base.machine == "armv7l" else []
    arguments = [p.arguments for p in pip]
    request = {"do": "make", "options": options, "pip": arguments, "limit_s": _PIP_S, "wheels": wheels}
    answer = _ask(agent, base.command, request, _VENV_S + len(pip) * _PIP_S + _MARGIN_S)
    said = readable(str(answer.get("said", "")), 800) or "it gave no message"
    if answer.get("failed") == "venv":
        version = f"{base.version[0]}.{base.version[1]}"
        raise UserError(
            f"{base.command} cannot make a virtual environment: {said}",
            where=agent.profile.name,
            fix=f"Install it there: sudo apt install python3-venv (or python{version}-venv), then run this again.",
        )
    if "failed" in answer:
        failed = answer["failed"]
        what = pip[failed].what if isinstance(failed, int) and 0 <= failed < len(pip) else "what it should"
        raise PipFailed(f"{agent.profile.name}: pip there could not install {what}: {said}")
    return f"{agent.root}/venv/bin/python"


def remove(agent: Agent, python: str, *, really: bool) -> tuple[list[str], int]:
    """Remove ROOT/venv and the wheels of an installation that was cut; what was found, and its bytes. UserError: it is taken."""
    answer = _ask(agent, python, {"do": "remove", "really": really}, _REMOVE_S)
    found, size = answer.get("found"), answer.get("bytes")
    if not isinstance(found, list) or not isinstance(size, int):
        raise DeviceError(f"{agent.profile.name}: its answer is not one: {readable(str(answer), 200)}")
    return [readable(str(name), 40) for name in found], size


def _who() -> str:
    """Who sits here, for whoever finds the board taken."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        user = str(os.getuid())
    return readable(f"{user}@{socket.gethostname()}", 80)


def _ask(agent: Agent, python: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    token = secrets.token_hex(8)
    argv = [python, "-I", "-c", _PROGRAM, agent.root, token]
    program, asked = json.dumps(bundle.source("environment.py")), json.dumps({**request, "who": _who()})
    stdin = f"{program}\n{asked}".encode()
    done = agent.again(lambda t: t.run(argv, stdin, timeout_s))
    answer = last_json(done.stdout)
    if not isinstance(answer, dict) or done.status:
        said = readable(done.stderr, 500) or readable(done.stdout, 200) or f"exit status {done.status}, no message"
        raise DeviceError(f"{agent.profile.name}: could not {request['do']} the environment: {said}")
    if "busy" in answer:
        what = f"the board is taken: {readable(str(answer['busy']), 300)}"
        raise UserError(what, where=agent.profile.name, fix="Wait for it, then run this again.")
    if "foreign" in answer:
        venv = readable(str(answer["foreign"]), 300)
        fix = f"On the device: mv {shlex.quote(venv)} {shlex.quote(f'{venv}.old')}, or set another workdir in the device profile."
        what = f"{venv} is there and is no virtual environment, so it is left as it is"
        raise UserError(what, where=agent.profile.name, fix=fix)
    if "error" in answer:
        raise DeviceError(f"{agent.profile.name}: {readable(str(answer['error']), 500)}")
    return answer
