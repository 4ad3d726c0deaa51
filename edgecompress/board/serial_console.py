"""The far end of a serial console before there are frames: text, a shell, the answers of its commands. Every wait is bounded."""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING

from edgecompress.board.serial_port import SerialPort

if TYPE_CHECKING:
    from edgecompress.device_profile import DeviceProfile

CLEAR = b"\x15\n"
"""Ctrl-U first: what somebody left half typed must not be run by our newline."""
INTERRUPT = b"\x03\x15\n"
_KEPT = 1 << 16


class Console:
    """The far end before frames: text. Every wait is bounded, and so is what is kept."""

    def __init__(self, port: SerialPort, profile: DeviceProfile) -> None:
        self.port, self.profile = port, profile
        self.heard = b""

    def say(self, data: bytes) -> None:
        self.heard = b""
        self.port.write(data)

    def listen(self, seconds: float, *, quiet_s: float = 0.3, until: bytes | re.Pattern[bytes] | None = None) -> bool:
        """Take in text until it was quiet for quiet_s after something came, or `until` is in it (True), or the time is over."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            waiting_for_more = quiet_s if self.heard and until is None else end - now
            data = self.port.read(min(waiting_for_more, end - now))
            self.heard = (self.heard + data)[-_KEPT:]
            if until is not None and (until in self.heard if isinstance(until, bytes) else until.search(self.heard)):
                return True
            if not data and until is None and self.heard:
                return False
        return False


def answer(line: Console, before: str, seconds: float) -> str | None:
    """Run `before` and have one of two words printed: "yes" when it succeeded, "no" when not; None: no shell answered."""
    a, b, c = (secrets.token_hex(4) for _ in range(3))
    line.say(f" {before} && printf '%s%s\\n' {a} {b} || printf '%s%s\\n' {a} {c}\n".encode())
    if not line.listen(seconds, until=re.compile(f"{a}(?:{b}|{c})".encode())):
        return None
    return "yes" if (a + b).encode() in line.heard else "no"


def is_shell(line: Console) -> bool:
    """Whether a POSIX shell reads what is sent."""
    return answer(line, "true", line.profile.connect_timeout_s / 5) == "yes"
