"""A serial line between two pseudo-terminals, with noise and a speed, and what stands at its far end: a shell, or a getty.

`Line.port` is a link to the terminal that the host opens: pulling the cable takes it away, plugging it in makes a new one.
"""

from __future__ import annotations

import array
import fcntl
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

KERNEL = b"[ 1234.567890] usb 1-1: new high-speed USB device number 7 using dwc2\r\n"


@dataclass
class Noise:
    """Per byte that goes over the line, in both directions: how likely it is changed, lost, or has a kernel's message before it
    (that only on the way to the host)."""

    flips: float = 0.0
    drops: float = 0.0
    messages: float = 0.0
    seed: int = 1


@dataclass
class Line:
    """bytes_per_s: of each direction; None: as fast as it goes."""

    folder: Path
    noise: Noise = field(default_factory=Noise)
    bytes_per_s: float | None = None
    carried: int = 0
    damaged: int = 0
    host: int | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._board, self.terminal = pty.openpty()
        self._usual = termios.tcgetattr(self.terminal)
        tty.setraw(self.terminal)  # until something is started there, nobody echoes
        self._random = random.Random(self.noise.seed)
        self.plug()
        for to_host in (True, False):
            self._threads.append(threading.Thread(target=self._carry, args=(to_host,), daemon=True))
            self._threads[-1].start()

    @property
    def port(self) -> Path:
        return self.folder / "ttyUSB9"

    def plug(self) -> None:
        self.host, self._held = pty.openpty()
        tty.setraw(self._held)  # else it echoes what comes before the host has opened it
        self.port.unlink(missing_ok=True)
        self.port.symlink_to(os.ttyname(self._held))

    def pull(self) -> None:
        """The adapter is gone; what the board sends meanwhile is lost."""
        host, self.host = self.host, None
        self.port.unlink(missing_ok=True)
        time.sleep(0.05)  # the threads look again every 20 ms
        for fd in (host, self._held):
            if fd is not None:
                os.close(fd)

    def _carry(self, to_host: bool) -> None:
        free_at = time.monotonic()
        while not self._stopped.is_set():
            source, sink = (self._board, self.host) if to_host else (self.host, self._board)
            if source is None:
                time.sleep(0.01)
                continue
            try:
                if not select.select([source], [], [], 0.02)[0]:
                    continue
                data = os.read(source, 256 if self.bytes_per_s else 65536)
                self.carried += len(data)
                if self.bytes_per_s:
                    free_at = max(free_at, time.monotonic() - 0.02) + len(data) / self.bytes_per_s
                    time.sleep(max(0.0, free_at - time.monotonic()))
                data = self._spoil(data, to_host)
                while data and sink is not None:
                    data = data[os.write(sink, data) :]
            except OSError:  # nobody has the far terminal open, or the cable was pulled
                time.sleep(0.02)

    def _spoil(self, data: bytes, to_host: bool) -> bytes:
        noise, dice = self.noise, self._random.random
        if not (noise.flips or noise.drops or noise.messages):
            return data
        out = bytearray()
        for byte in data:
            if to_host and dice() < noise.messages:
                out += KERNEL
                self.damaged += 1
            if dice() < noise.drops:
                self.damaged += 1
                continue
            if dice() < noise.flips:
                byte ^= 1 << int(dice() * 8)  # noqa: PLW2901
                self.damaged += 1
            out.append(byte)
        return bytes(out)

    def typed(self) -> bytes:
        """What came to the board and nobody has read."""
        waiting = array.array("i", [0])
        fcntl.ioctl(self.terminal, termios.FIONREAD, waiting)
        return os.read(self.terminal, waiting[0]) if waiting[0] else b""

    def type(self, text: bytes) -> None:
        """As somebody does who has a terminal program open at this end of the line."""
        os.write(self._board, text)

    def print(self, text: bytes) -> None:
        """As the board's kernel does: past whatever program has the terminal."""
        os.write(self.terminal, text)

    def start(self, argv: Sequence[str], env: Mapping[str, str], *, name: str | None = None) -> subprocess.Popen[bytes]:
        """A program that has the board's terminal as its own, in its usual mode. name: its first argument."""
        termios.tcsetattr(self.terminal, termios.TCSANOW, self._usual)

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            [name or argv[0], *argv[1:]], executable=argv[0], stdin=self.terminal, stdout=self.terminal,
            stderr=self.terminal, start_new_session=True, env=dict(env), cwd=env["HOME"],
            preexec_fn=own_terminal,  # noqa: PLW1509 (an ioctl only)
        )  # fmt: skip
        self.processes.append(process)
        self.last = (argv, env)
        return process

    def start_shell(self, name: str) -> subprocess.Popen[bytes]:
        """A login shell, with the line's folder as its home, after it has shown its prompt."""
        env = {"HOME": str(self.folder), "PATH": os.environ["PATH"], "TERM": "linux", "PS1": "board$ "}
        process = self.start([str(shutil.which(name))], env, name=f"-{name}")
        shown = self.carried
        end = time.monotonic() + 10
        while self.carried == shown and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)
        return process

    def kill(self) -> None:
        """End what runs on the board's terminal, at once, with its children: the power is gone."""
        for process in self.processes:
            for pid in sessions_of(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
        self.processes.clear()

    def stop(self) -> None:
        self.kill()
        self._stopped.set()
        for thread in self._threads:
            thread.join(5)
        for fd in (self.host, self._held, self._board, self.terminal):
            if fd is not None:
                with suppress(OSError):
                    os.close(fd)


def sessions_of(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return found
