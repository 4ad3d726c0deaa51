"""Bytes that arrive on a file descriptor, with a timeout, and the lines in them. For pipes and serial lines."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import List, Optional

from edgecompress_agent.sensors import SensorFault

_LONGEST_LINE = 1 << 14


class ByteSource:
    """Owns a file descriptor. `close` may be called while `read` waits in another thread, which then raises SensorFault."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name
        os.set_blocking(fd, False)
        self._woken, self._wake = os.pipe()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, timeout_s: float) -> Optional[bytes]:
        """What has arrived: waits for the first byte, at most `timeout_s` (then None). b"": the other end is gone."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while not self._closed:
                poll = select.poll()
                poll.register(self._fd, select.POLLIN)
                poll.register(self._woken, select.POLLIN)
                ready = dict(poll.poll(max(0, round(1000 * (deadline - time.monotonic())))))
                if self._fd in ready and not self._closed:
                    try:
                        return os.read(self._fd, 1 << 16)
                    except BlockingIOError:  # somebody else took the bytes
                        pass
                    except OSError:  # EIO of a terminal, ENODEV of an unplugged adapter: as gone as an end of file
                        return b""
                if time.monotonic() >= deadline:
                    return None
        raise SensorFault(f"{self._name} was closed")

    def write(self, data: bytes) -> None:
        """SensorFault when it cannot be written at once: what is sent here is a few bytes."""
        try:
            done = os.write(self._fd, data)
        except OSError as error:
            raise SensorFault(f"{self._name} cannot be written: {error.strerror}") from None
        if done != len(data):
            raise SensorFault(f"{self._name} takes no data")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.write(self._wake, b"x")
            with self._lock:
                for fd in (self._fd, self._woken, self._wake):
                    with contextlib.suppress(OSError):
                        os.close(fd)


class Lines:
    """Cuts bytes into lines. The last, unfinished one waits for its rest; it is bounded, because a broken line may never end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> List[str]:
        """The lines that these bytes complete, without their ends. What is not ASCII is replaced."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_LONGEST_LINE:]
        return [line[-_LONGEST_LINE:].rstrip(b"\r").decode("ascii", "replace") for line in lines]
