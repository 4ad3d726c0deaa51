"""A serial port of this machine, opened for a board's console: raw bytes with limits on every wait (pyserial)."""

from __future__ import annotations

import errno
import os
import re
import select
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress_agent.serial_port import ports

from edgecompress.board.transport import LinkLost
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from edgecompress.device_profile import DeviceProfile

_WRITE_S = 30.0
_opened: set[str] = set()
"""Ports that this process had open: one that is gone later is a cable that was pulled, and not a wrong name."""


class SerialPort:
    """8N1, no flow control, nobody else let in. UserError: a person has to act (absent, no permission, in use)."""

    def __init__(self, profile: DeviceProfile) -> None:
        import serial

        assert profile.serial_port is not None  # the profile's own validation
        self.name, path = profile.name, str(profile.serial_port)
        try:
            self._port = serial.Serial(path, profile.baud_rate, timeout=0, write_timeout=_WRITE_S, exclusive=True)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            if path in _opened and not Path(path).exists():
                raise LinkLost(f"{self.name}: {path} is gone") from None
            raise _refused(profile, path, error) from None
        _opened.add(path)
        self._port.reset_input_buffer()

    def read(self, seconds: float) -> bytes:
        """What came, as soon as something did; b"" when nothing came in that time. LinkLost: the port is gone."""
        try:
            if not select.select([self._port.fileno()], [], [], max(seconds, 0.0))[0]:
                return b""
            return bytes(self._port.read(max(self._port.in_waiting, 1)))
        except (OSError, TypeError, ValueError) as error:  # pyserial's own of a port that was closed meanwhile
            raise LinkLost(f"{self.name}: the serial port was lost ({error})") from None

    def write(self, data: bytes) -> None:
        """All of it. LinkLost: the port is gone, or takes nothing."""
        try:
            self._port.write(data)
        except (OSError, TypeError, ValueError) as error:
            raise LinkLost(f"{self.name}: nothing can be written to the serial port ({error})") from None

    def close(self) -> None:
        with suppress(OSError):
            self._port.close()


def _refused(profile: DeviceProfile, path: str, error: Exception) -> UserError:
    text = str(error)
    if not Path(path).exists():
        there = [p for p in ports() if Path(p).exists()]
        others = f"the serial ports here are {', '.join(there)}" if there else "there is no serial port here"
        what, fix = f"{path} is not there; {others}", "Plug the adapter in, or set serial_port in the device profile."
    elif "ermission denied" in text:
        what = f"no permission to open {path}"
        fix = "Become a member of its group: sudo usermod -aG dialout $USER, then log in again."
    elif "xclusively lock" in text or "busy" in text:
        what, fix = (
            f"{path} is in use by another program",
            "End it (a terminal program, another study), then try again.",
        )
    elif isinstance(error, ValueError):
        what, fix = (
            f"{path} cannot do {profile.baud_rate} baud",
            "Set baud in the device profile to what its console has.",
        )
    else:
        # pyserial keeps the number in its text only, and says it twice
        number = re.search(r"Errno (\d+)|\((\d+),", text)
        code = int(number[1] or number[2]) if number else None
        none = code in (errno.ENOTTY, errno.EISDIR)
        why = "it is none" if none else os.strerror(code) if code else text
        what, fix = f"{path} cannot be used as a serial port: {why}", "Set serial_port in the device profile."
    return UserError(what, where=profile.name, fix=fix)
