"""The agent on a device: brought there once, named by its hash, and asked one thing at a time.

Everything goes through `again`: when the link is lost, it connects again and repeats. Every verb of the agent may be
asked twice, so nothing is lost and nothing is done twice by that.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from edgecompress_agent import wire

from edgecompress.board import bundle, device_python
from edgecompress.board.transport import (
    DeviceError,
    LinkLost,
    OutOfReach,
    Transport,
    cleaned,
    command,
    ignored,
    on_device,
    open_transport,
    readable,
)
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError, without_name

T = TypeVar("T")
Record = TypeVar("Record")

VERB_S = 60.0
UNFINISHED = "venv-unfinished"
"""A file beside the environment of `device setup`, as long as that is at work on it; it stays where a setup was cut."""
LINK_LOST = "link lost"
"""How a notice of `Agent.again` begins."""
_HELLO_S = 180.0
"""The agent imports every engine once, each in a process of its own: tensorflow takes a minute on a slow card."""


class Agent:
    """root: its directory on the device, absolute. python: the interpreter there, a path or a name for its PATH.

    notice: is told, in a few words, that the link is lost and tried again. answered: is called after each operation; what it
    raises ends the job's thread (an interrupt has to reach one that asks one thing after the other, too).
    """

    def __init__(self, profile: DeviceProfile, transport: Transport) -> None:
        self.profile = profile
        self.notice: Callable[[str], None] = lambda text: None
        self.answered: Callable[[], None] = lambda: None
        self._moved_at = 0.0
        self._transport: Transport | None = transport
        self._hello: wire.Hello | None = None
        home = self.again(lambda t: t.home())
        if not home.startswith("/") or not home.isprintable():
            raise DeviceError(f"{profile.name}: says that its home directory is {readable(home, 80)!r}")
        self.root = on_device(profile.workdir, home)
        self.python = self.again(lambda t: interpreter(profile, t, self.root, home))
        self._data, self._sha256 = bundle.build()
        self._path = f"{self.root}/agent/{self._sha256}.pyz"
        self._private = False

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def hello(self, *, fresh: bool = False) -> wire.Hello:
        """What the device is and has: Python, engines, conditions. Brings the agent there first. Asked once, unless fresh.

        UserError: no Python there that is new enough. OutOfReach, DeviceError: what keeps the agent from answering.
        """
        if self._hello is None or fresh:
            self.bring()
            try:
                found = self.ask(wire.Hello, "hello", timeout_s=_HELLO_S)
                whole = found.agent_sha256 == self._sha256
            except DeviceError:
                whole = False
            if not whole:  # a file of this name may have been damaged since it was sent
                self.again(lambda t: self._put(t, force=True))
                found = self.ask(wire.Hello, "hello", timeout_s=_HELLO_S)
                if found.agent_sha256 != self._sha256:
                    raise DeviceError(f"{self.profile.name}: the agent there is not the one that was sent")
            self._hello = found
        return self._hello

    def bring(self) -> None:
        """Bring the agent's file to the device, unless it is there. UserError: its directory there cannot or must not be used."""
        self.refuse_workdir(self.python)
        try:
            self.again(lambda t: self._put(t, force=False))
        except DeviceError as error:
            fix = f"See what is wrong with it: {command('doctor', self.profile.name)}; or set workdir in the device profile."
            what = f"nothing can be put into its workdir: {without_name(self.profile.name, error)}"
            raise UserError(what, where=self.profile.name, fix=fix) from None

    def refuse_workdir(self, python: str, *, mend: bool = True) -> None:
        """Before anything is written to the agent's directory there, or run from it: UserError when others can write to it, or
        this user cannot. mend: a group that can is shut out."""
        if self._private:
            return
        argv = [python, "-I", "-c", bundle.source("private.py"), self.root, *([] if mend else ["look"])]
        answer = self._answer("check of its directory", argv)
        if not isinstance(answer, dict) or "complaint" not in answer:
            said = readable(str(answer), 80)
            raise DeviceError(f"{self.profile.name}: its answer about {self.root} is not one: {said}")
        if answer["complaint"] is not None:
            what, _, fix = readable(str(answer["complaint"]), 500).rpartition(": ")
            raise UserError(what, where=self.profile.name, fix=f"On the device: {fix}")
        self._private = True

    def _put(self, transport: Transport, *, force: bool) -> None:
        if force or not transport.exists(self._path):
            transport.mkdirs(f"{self.root}/agent")
            transport.put(self._data, self._path)

    def send(self, local: Path, remote: str, at: Callable[[int], None] = ignored) -> None:
        """Upload a file, going on where a cut left it. While it moves on between the cuts, it is not given up."""
        furthest = -1

        def moved(there: int) -> None:
            nonlocal furthest
            if there > furthest:
                furthest, self._moved_at = there, time.monotonic()
            at(furthest)

        self.again(lambda t: t.put(local, remote, moved))

    def ask(self, kind: type[Record], verb: str, *arguments: str, timeout_s: float = VERB_S) -> Record:
        """The agent's answer to a verb as a record. DeviceError when it is not one; the rest as in `verb`."""
        answer = self.verb(verb, *arguments, timeout_s=timeout_s)
        try:
            return cleaned(wire.from_json(kind, answer))
        except wire.WireError as error:
            raise DeviceError(
                f"{self.profile.name}: the agent's answer to {verb}: {readable(str(error), 500)}"
            ) from None

    def verb(self, verb: str, *arguments: str, stdin: bytes | None = None, timeout_s: float = VERB_S) -> Any:
        """The JSON that the agent answers, from the last line of its output: a login shell may print before it.

        DeviceError: the agent says that it cannot, or answers nothing of use. UserError: there is no fitting Python.
        """
        return self._answer(verb, [self.python, "-I", self._path, verb, self.root, *arguments], stdin, timeout_s)

    def _answer(self, verb: str, argv: list[str], stdin: bytes | None = None, timeout_s: float = VERB_S) -> Any:
        done = self.again(lambda t: t.run(argv, stdin, timeout_s))
        answer = last_json(done.stdout)
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            raise DeviceError(f"{self.profile.name}: {readable(answer['error'], 1000)}")
        if done.status != 0 or answer is None:
            self._check_python()
            said = readable(done.stderr, 1000) or readable(done.stdout, 300) or "nothing"
            raise DeviceError(
                f"{self.profile.name}: the agent's {verb} ended with status {done.status} and said: {said}"
            )
        return answer

    def clock(self) -> tuple[int, wire.Clock, int]:
        """The device's monotonic clock, between this machine's before the question and after the answer, in ns."""
        argv = [self.python, "-I", self._path, "clock", self.root]

        def once(transport: Transport) -> tuple[int, bytes, int]:
            before_ns = time.monotonic_ns()
            done = transport.run(argv, None, VERB_S)
            return before_ns, done.stdout, time.monotonic_ns()

        before_ns, answer, after_ns = self.again(once)
        try:
            return before_ns, wire.decode(wire.Clock, answer.strip().rpartition(b"\n")[2]), after_ns
        except wire.WireError as error:
            raise DeviceError(
                f"{self.profile.name}: the agent's answer to clock: {readable(str(error), 500)}"
            ) from None

    def _check_python(self) -> None:
        """UserError when the interpreter is missing or too old, which the agent itself may be unable to say."""
        asked = self.again(lambda t: t.run([self.python, "-c", device_python.ASK_VERSION]))
        version = device_python.version_of(asked)
        if version is None:
            raise device_python.absent(self.profile, self.python, readable(asked.stderr, 300))
        if version < device_python.OLDEST:
            raise device_python.too_old(self.profile, self.python, "{}.{}".format(*version))

    def setup_hint(self) -> str:
        """What to do when the device lacks an engine."""
        hint = engine_hint(self.profile)
        if self.profile.python is None and self.again(lambda t: t.exists(f"{self.root}/{UNFINISHED}")):
            return f"`device setup` is at work there: wait for it. If it was interrupted: {hint}"
        return hint

    def again(self, operation: Callable[[Transport], T]) -> T:
        """Do something that may be done twice; connect again, with growing pauses, while the link is lost."""
        lost_at: float | None = None
        pause_s = 0.2
        while True:
            try:
                if self._transport is None:
                    self._transport = open_transport(self.profile)
                found = operation(self._transport)
                self.answered()
                return found
            except LinkLost as error:
                self.close()
                now = time.monotonic()
                if lost_at is None or self._moved_at > lost_at:
                    lost_at, pause_s = now, 0.2
                left_s = lost_at + self.profile.reconnect_s - now
                if left_s <= 0:
                    tried = f"; tried again for {self.profile.reconnect_s:g} s" if self.profile.reconnect_s else ""
                    raise OutOfReach(f"{error}{tried}. What runs there goes on; run again to collect it.") from error
                self.notice(f"{LINK_LOST}, connecting again for {left_s:.0f} s")
                time.sleep(min(pause_s, left_s))
                pause_s = min(pause_s * 2, 10.0)


def interpreter(profile: DeviceProfile, transport: Transport, root: str, home: str) -> str:
    """The Python on the device: the profile's, else that of `device setup`, else its own."""
    if profile.python is not None:
        return on_device(profile.python, home) if "/" in profile.python else profile.python
    if profile.transport == "local":
        return sys.executable
    own = f"{root}/venv/bin/python"
    return own if transport.exists(own) else "python3"


def last_json(output: bytes) -> Any:
    """The JSON value in the last line of an output (a login shell may print before it); None when there is none."""
    lines = output.decode("utf-8", errors="replace").strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        return None


def engine_hint(profile: DeviceProfile) -> str:
    """What to do when a device lacks an engine."""
    if profile.transport == "local":
        return "Install it here: pip install 'edgecompress[tflite]'"
    return f"Install it there: {command('setup', profile.name)}"


def open_agent(profile: DeviceProfile) -> Agent:
    """Connect to a device. UserError: a person has to act first (host key, login). OutOfReach: it does not answer."""
    try:
        transport = open_transport(profile)
    except LinkLost as error:
        hint = ". Is it on, and are host and port right?" if profile.transport == "ssh" else ""
        raise OutOfReach(f"{error}{hint}") from None
    with ExitStack() as unless_done:
        unless_done.callback(transport.close)
        agent = Agent(profile, transport)
        unless_done.pop_all()
    return agent
