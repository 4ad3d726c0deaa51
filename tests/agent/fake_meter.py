"""A meter at the other end of a serial line: a pseudo-terminal, and a thread that plays the meter."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Callable
from contextlib import suppress


class FakeMeter:
    """`play` runs in its own thread until it returns or the line is unplugged. `port`: the device file of the other end."""

    def __init__(self, play: Callable[[FakeMeter], None]) -> None:
        self.end, line = os.openpty()
        tty.setraw(self.end)
        self.port = os.ttyname(line)
        self._line = line
        self.plugged = True
        self._thread = threading.Thread(target=self._run, args=(play,), daemon=True)
        self._thread.start()

    def _run(self, play: Callable[[FakeMeter], None]) -> None:
        with suppress(OSError):
            play(self)

    def send(self, data: bytes) -> None:
        os.write(self.end, data)

    def receive(self) -> bytes:
        """What the other end sent; b"" once the line is unplugged."""
        while self.plugged:
            if select.select([self.end], [], [], 0.02)[0]:
                return os.read(self.end, 100)
        return b""

    def wait(self, seconds: float) -> bool:
        """False once the line is unplugged."""
        time.sleep(seconds)
        return self.plugged

    def unplug(self) -> None:
        """From the test or from `play`, as its last act."""
        if self.plugged:
            self.plugged = False
            if threading.current_thread() is not self._thread:
                self._thread.join(5)
            os.close(self._line)
            os.close(self.end)

    close = unplug
