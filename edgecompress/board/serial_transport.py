"""The transport over a serial console: log in, start a helper there, and speak with it in checksummed frames (`console_link`).

A line at 115200 baud carries some 10 KB a second: everything is compressed, what has arrived of a file before the line was cut is
kept on both sides, and the time it takes is told beforehand.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress_agent import console, console_link
from edgecompress_agent.console_link import Broken, Frame, Link, TooMuch

from edgecompress.board.serial_bootstrap import helper
from edgecompress.board.serial_login import BOOTING, LOGIN, reach_helper
from edgecompress.board.serial_port import SerialPort
from edgecompress.board.transport import (
    FILE_LIMIT_BYTES,
    OUTPUT_LIMIT_BYTES,
    Completed,
    DeviceError,
    LinkLost,
    ignored,
    readable,
)

if TYPE_CHECKING:
    from edgecompress.device_profile import DeviceProfile

_SILENCE_S = 30.0
"""The helper says something every 4 s whatever it does: nothing for so long is a lost link."""

_SLOWEST = 1 / 16
"""Of the line's rate: a transfer that is slower over all is given up."""

_NEWS = 1 << 16

_arrived: dict[tuple[str, str], tuple[list[int], bytes]] = {}
"""(port, path) → (the file's identity, its beginning): of a file that was being read when the line was cut."""


def told(size: int, baud: int) -> str:
    """A sentence for a person: what so many bytes that do not compress take on such a line (84 % of it: docs/results/boards)."""
    minutes = round(size / (baud / 10 * 0.84) / 60)
    time_taken = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"
    return f"{size / 1e6:.0f} MB over the console at {baud} baud: about {time_taken}; it goes on where it was cut"


class SerialTransport:
    def __init__(self, profile: DeviceProfile) -> None:
        self._name, self._baud = profile.name, profile.baud_rate
        self._where = str(profile.serial_port)
        self._limit_s = profile.connect_timeout_s
        self._healthy = False
        self._port = SerialPort(profile)
        with ExitStack() as unless_done:
            unless_done.callback(self._port.close)
            reach_helper(self._port, profile)
            self._link = self._begin()
            unless_done.pop_all()

    def _begin(self) -> Link:
        """A new session with the helper; in 7 bits where the line does not carry all bytes."""
        version, found = helper()[1].encode(), False

        def control(frame: Frame) -> None:
            nonlocal found
            found |= frame.kind == b"I" and frame.session == link.session and frame.payload == version

        for attempt in range(8):
            link = Link(
                self._port.read, self._port.write, secrets.token_hex(3).encode(),
                side=b"h", seven_bit=attempt >= 4, bytes_per_s=self._baud / 10,
            )  # fmt: skip
            link.control, link.noise = control, self._noise
            link.say(b"H", bytes(range(256)))
            end = time.monotonic() + self._limit_s / 10 + 6000 / self._baud
            while not found and time.monotonic() < end:
                link.pump(0.05)
            if found:
                self._healthy = True
                return link
        raise LinkLost(f"{self._name}: the helper on its console does not answer")

    def _noise(self, line: bytes) -> None:
        if self._healthy and BOOTING.search(line):
            raise LinkLost(f"{self._name}: the board started anew: {readable(line, 100)!r}")
        if self._healthy and console_link.decode(line) is not None:
            raise LinkLost(f"{self._name}: its console echoes: the helper there has ended")

    def home(self) -> str:
        return str(self._ask({"do": "home"}, "find the home directory")[0].get("path"))

    def run(self, argv: list[str], stdin: bytes | None = None, timeout_s: float = 60.0) -> Completed:
        request = {"do": "run", "argv": argv, "timeout_s": timeout_s, "limit": OUTPUT_LIMIT_BYTES}
        limit = 2 * OUTPUT_LIMIT_BYTES + _NEWS
        name = Path(argv[0]).name
        answer, body = self._ask(request, f"run {name}", stdin or b"", timeout_s=timeout_s, limit=limit)
        if answer.get("failed") == "long":
            raise LinkLost(f"{self._name}: {name} did not end in time")
        status, out = answer.get("status"), answer.get("out")
        if answer.get("failed") == "much":
            raise DeviceError(f"{self._name}: {name} printed more than {OUTPUT_LIMIT_BYTES} bytes")
        if not isinstance(status, int) or not isinstance(out, int) or not 0 <= out <= len(body):
            raise DeviceError(f"{self._name}: its helper answers nonsense")
        return Completed(status, body[:out], body[out:])

    def put(self, local: Path | bytes, remote: str, at: Callable[[int], None] = ignored) -> None:
        data = local if isinstance(local, bytes) else local.read_bytes()
        for _ in range(2):
            if self._put(data, remote, at):
                return
        raise DeviceError(f"{self._name}: cannot write {remote}: it arrives damaged")

    def _put(self, data: bytes, remote: str, told: Callable[[int], None]) -> bool:
        """Whether what arrived is what was sent."""
        what, sha256 = f"write {remote}", hashlib.sha256(data).hexdigest()
        request = {"do": "write", "path": remote, "sha256": sha256, "size": len(data)}
        have, _ = self._ask(request, what, timeout_s=60 + len(data) / 1e6)
        at = have.get("have")
        if not isinstance(at, int) or not 0 <= at <= len(data):
            at = 0
        if hashlib.sha256(data[:at]).hexdigest() != have.get("sha256"):
            at = 0
        link, ends = self._link, deque[tuple[int, int]]()
        told(at)
        with self._within(60 + self._slowest_s(len(data) - at), what) as check:
            while (at < len(data) or not link.idle) and not link.messages:
                if at < len(data) and link.queued * console_link.CHUNK < console_link.WINDOW:
                    piece = data[at : at + console.PIECE]
                    self._send({"do": "data", "at": at}, piece)
                    at += len(piece)
                    ends.append((link.put_bytes, at))
                link.pump(0.5)
                check()
                while ends and ends[0][0] <= link.delivered:
                    told(ends.popleft()[1])
            if not link.messages:
                self._send({"do": "finish"})
        return self._receive(what, 60 + self._slowest_s(2 * console.PIECE), _NEWS)[0].get("failed") != "damaged"

    def get(self, remote: str, limit_bytes: int = FILE_LIMIT_BYTES) -> bytes:
        what, key = f"read {remote}", (self._where, remote)
        identity, begun = _arrived.pop(key, ([], b""))
        request = {"do": "read", "path": remote, "from": len(begun), "identity": identity, "limit": limit_bytes}
        first, _ = self._ask(request, what, may_be_absent=True)
        size, here = first.get("size"), first.get("identity")
        if not isinstance(size, int) or not isinstance(here, list):
            raise DeviceError(f"{self._name}: its helper answers nonsense")
        if max(size, len(begun)) > limit_bytes:
            self._fresh()
            raise DeviceError(f"{self._name}: {remote} is larger than {limit_bytes} bytes")
        data = bytearray(begun if first.get("from") == len(begun) else b"")
        try:
            while True:
                answer, piece = self._receive(what, 60 + self._slowest_s(len(data)), _NEWS)
                if "sha256" in answer:
                    break
                data += piece
                if len(data) > limit_bytes or answer.get("at") != len(data) - len(piece):
                    self._fresh()
                    raise DeviceError(f"{self._name}: {remote} is larger than {limit_bytes} bytes")
        except LinkLost:
            _arrived[key] = (here, bytes(data))
            raise
        if hashlib.sha256(data).hexdigest() != answer["sha256"]:
            raise LinkLost(f"{self._name}: {remote} arrived damaged")
        return bytes(data)

    def exists(self, remote: str) -> bool:
        return self._ask({"do": "exists", "path": remote}, f"look for {remote}")[0].get("there") is True

    def mkdirs(self, remote: str) -> None:
        self._ask({"do": "mkdirs", "path": remote}, f"make {remote}")

    def close(self) -> None:
        """Have the helper leave, which logs out where this transport had to log in; after a lost link, it waits for the next."""
        if self._healthy:
            self._healthy = False
            left = False

            def control(frame: Frame) -> None:
                nonlocal left
                left |= frame.kind == b"B"

            self._link.control = control
            with suppress(LinkLost, TooMuch):
                for _ in range(3):
                    self._link.say(b"Q")
                    end = time.monotonic() + 0.5 + 10_000 / self._baud
                    while not left and time.monotonic() < end:
                        self._link.pump(0.1)
                    if left:
                        break
        self._port.close()

    def _slowest_s(self, size: int) -> float:
        return size / (self._baud / 10 * _SLOWEST)

    def _send(self, request: dict[str, Any], body: bytes = b"") -> None:
        self._link.put(console_link.pack(json.dumps(request).encode(), body))

    def _ask(
        self,
        request: dict[str, Any],
        what: str,
        body: bytes = b"",
        *,
        timeout_s: float = 60.0,
        limit: int = _NEWS,
        may_be_absent: bool = False,
    ) -> tuple[dict[str, Any], bytes]:
        with self._within(1e9, what):
            self._send(request, body)
        wait_s = timeout_s + 30 + self._slowest_s(len(body))
        return self._receive(what, wait_s, limit, may_be_absent=may_be_absent)

    def _receive(
        self, what: str, wait_s: float, limit: int, *, may_be_absent: bool = False
    ) -> tuple[dict[str, Any], bytes]:
        """The next message. DeviceError: the helper says no. LinkLost: none in time (what came so far gives it more of it)."""
        link, began, taken = self._link, time.monotonic(), self._link.taken
        link.limit = limit
        with self._within(1e9, what) as check:
            while not link.messages:
                if time.monotonic() - began > wait_s + self._slowest_s(link.taken - taken):
                    raise LinkLost(f"{self._name}: could not {what} in time")
                link.pump(0.5)
                check()
            header, body = console_link.unpack(link.messages.popleft(), limit)
            answer = json.loads(header)
            if not isinstance(answer, dict):
                raise Broken("it is no object")
        if "error" in answer:
            if may_be_absent and answer.get("absent") is True:
                raise FileNotFoundError(what)
            raise DeviceError(f"{self._name}: cannot {what}: {readable(str(answer['error']), 300)}")
        return answer, body

    def _fresh(self) -> None:
        """The helper shall give up what it does and listen."""
        with suppress(LinkLost):
            self._link = self._begin()

    @contextmanager
    def _within(self, seconds: float, what: str) -> Iterator[Callable[[], None]]:
        """Gives a check for silence and time. What the link raises becomes LinkLost, or DeviceError for nonsense."""
        end = time.monotonic() + seconds
        self._link.heard_at = time.monotonic()

        def check() -> None:
            if time.monotonic() > end:
                raise LinkLost(f"{self._name}: could not {what} in time")
            if LOGIN.search(self._link.rest):
                raise LinkLost(f"{self._name}: the board started anew: its console asks who logs in")
            if time.monotonic() - self._link.heard_at > _SILENCE_S:
                raise LinkLost(f"{self._name}: nothing came over the console for {_SILENCE_S:g} s")

        if not self._healthy:
            raise LinkLost(f"{self._name}: the console was lost")
        try:
            yield check
        except TooMuch:
            self._fresh()
            raise DeviceError(f"{self._name}: what it answers is too large") from None
        except (Broken, ValueError, RecursionError) as error:
            self._fresh()
            raise DeviceError(f"{self._name}: its answer is none: {readable(str(error), 300)}") from None
        except LinkLost:
            self._healthy = False
            raise
