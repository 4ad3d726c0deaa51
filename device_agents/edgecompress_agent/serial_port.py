"""A serial line (USB adapter, UART, Bluetooth rfcomm), raw, by the standard library's termios.

Sources: termios(3), ioctl_tty(2). The modem lines are not used; they are not dropped on closing either, because many
microcontroller boards reset when DTR changes. On a pseudo-terminal the speed is accepted and has no effect.
"""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from pathlib import Path
from typing import List

from edgecompress_agent import permission
from edgecompress_agent.byte_source import ByteSource
from edgecompress_agent.errors import AgentError

SPEEDS = tuple(
    sorted(int(n[1:]) for n in dir(termios) if n[0] == "B" and n[1:].isdigit() and int(n[1:]) >= 1200)
)  # fmt: skip
_PLACES = ("ttyUSB*", "ttyACM*", "ttyAMA*", "rfcomm*")


def open_port(path: str, speed: int) -> ByteSource:
    """The line, 8N1, no flow control, what waited in it thrown away, and nobody else let in.

    AgentError: not there (with those that are), no permission (with the group), in use, not a serial line.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise AgentError(permission.refused(path, "dialout")) from None
    except OSError as error:
        raise AgentError(_why(path, error)) from None
    try:
        _raw(fd, speed)
        fcntl.ioctl(fd, termios.TIOCEXCL)
        termios.tcflush(fd, termios.TCIOFLUSH)
    except termios.error:
        os.close(fd)
        raise AgentError(f"{path} is not a serial line") from None
    except OSError as error:
        os.close(fd)
        raise AgentError(f"{path} cannot be used: {error.strerror}") from None
    return ByteSource(fd, path)


def _raw(fd: int, speed: int) -> None:
    _, _, cflag, _, _, _, cc = termios.tcgetattr(fd)
    cflag &= ~(termios.CSIZE | termios.PARENB | termios.CSTOPB | termios.HUPCL | getattr(termios, "CRTSCTS", 0))
    cflag |= termios.CS8 | termios.CREAD | termios.CLOCAL
    code = getattr(termios, f"B{speed}")
    cc[termios.VMIN], cc[termios.VTIME] = 0, 0
    termios.tcsetattr(fd, termios.TCSANOW, [0, 0, cflag, 0, code, code, cc])


def _why(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        there = ports()
        others = f"the serial lines here are {', '.join(there)}" if there else "there is no serial line here"
        return f"{path} is not there: is the meter plugged in (or, by Bluetooth, bound with rfcomm)? {others}"
    if error.errno == errno.EBUSY:
        return f"{path} is in use by another program"
    return f"{path} cannot be opened: {error.strerror}"


def ports() -> List[str]:
    """The serial lines that a meter may hang on, by their device files."""
    return sorted(str(found) for place in _PLACES for found in Path("/dev").glob(place))
