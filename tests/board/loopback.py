"""A real OpenSSH server on 127.0.0.1 with generated keys, and a TCP proxy in front of it whose link can be cut, stalled, slowed
and delayed. For tests, benchmarks and studies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
AllowTcpForwarding yes
MaxStartups 100
LogLevel VERBOSE
"""


def free_port() -> int:
    """One that nobody has, and that the kernel gives to no outgoing connection: a server that is ended finds it free again."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    choose = random.SystemRandom().randrange
    for _ in range(100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", choose(10_000, lowest) if lowest > 11_000 else 0))
            return int(probe.getsockname()[1])
    raise RuntimeError("there is no free port")


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
    return path


@dataclass
class Sshd:
    """A running sshd. key: the client's private key that it accepts."""

    folder: Path
    port: int
    extra: str = "Subsystem sftp internal-sftp"
    process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> Path:
        return self.folder / "client_key"

    @property
    def host_key(self) -> str:
        """Type and base64 of its public key."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def start(self) -> Sshd:
        config = self.folder / "sshd_config"
        config.write_text(_CONFIG.format(port=self.port, folder=self.folder) + self.extra + "\n")
        log = (self.folder / "sshd.log").open("ab")
        with log:
            command = [str(shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")), "-D", "-e", "-f", str(config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError((self.folder / "sshd.log").read_text())

    def stop(self) -> None:
        """End it and every connection it serves, at once, as a board does that loses its power."""
        if self.process is not None:
            self.kill_connections()
            self.process.kill()
            self.process.wait()
            self.process = None

    def kill_connections(self) -> int:
        """Kill the processes that serve connections (the descendants that are called sshd); how many there were."""
        assert self.process is not None
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                name, _, rest = stat.read_text().rpartition(")")
                parents[int(stat.parent.name)] = (int(rest.split()[1]), name.partition("(")[2])
        ours, found = {self.process.pid}, {self.process.pid}
        while found:
            found = {p for p, (parent, name) in parents.items() if parent in ours and name.startswith("sshd")} - ours
            ours |= found
        for pid in ours - {self.process.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(ours) - 1


def why_no_sshd() -> str | None:
    """Why this machine cannot run an sshd of ours; None: it can."""
    found = (
        sys.platform == "linux"
        and shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
        and shutil.which("ssh-keygen")
    )
    return None if found else "needs OpenSSH's sshd and ssh-keygen (Debian: apt install openssh-server)"


def make_sshd(folder: Path, subsystem: str | None = None) -> Sshd:
    """An sshd with keys of its own in `folder` (made when it is not there), not yet started."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd separates its privileges
    folder.mkdir(parents=True, exist_ok=True)
    make_key(folder / "host_key")
    make_key(folder / "client_key")
    shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
    server = Sshd(folder, free_port())
    if subsystem is not None:
        server.extra = subsystem
    return server


@contextmanager
def loopback_sshd(folder: Path, subsystem: str | None = None) -> Iterator[Sshd]:
    """An sshd that runs, and is ended with all that it serves."""
    server = make_sshd(folder, subsystem).start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Proxy:
    """A TCP proxy to one port. `cut` breaks every connection and refuses new ones; `stalled` keeps them and moves nothing;
    `forget` does that to those there are now, for good; `bytes_per_s` and `delay_s` slow each direction down: every piece of up to
    64 KB waits so long. moved: bytes that passed. held: pieces that had to wait."""

    target: int
    port: int = field(default_factory=free_port)
    accepted: int = 0
    refusing: bool = False
    bytes_per_s: float | None = None
    delay_s: float = 0.0
    moved: int = 0
    held: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    _forgotten: threading.Event = field(default_factory=threading.Event)
    _open: list[socket.socket] = field(default_factory=list)
    _listener: socket.socket | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Of what is open: a connection that is being made must not escape a cut."""

    def start(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        assert self._listener is not None
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                self.accepted += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:  # nobody listens there now
                    client.close()
                    continue
                with self._lock:
                    self._open += [client, server]
                    if self.refusing:  # since it came
                        self._shut()
                        continue
                for a, b in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(a, b, self._forgotten), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, forgotten: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if forgotten.is_set():
                    self.held += 1
                    continue
                wait_s = self.delay_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0)
                self.held += bool(wait_s) or self.stalled.is_set()
                time.sleep(wait_s)
                while self.stalled.is_set():
                    time.sleep(0.02)
                sink.sendall(data)
                self.moved += len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self, *, refuse: bool = True) -> None:
        with self._lock:
            self.refusing = refuse
            self._shut()

    def _shut(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    @property
    def connections(self) -> int:
        """How many go through it now, or did until it is noticed that they ended."""
        with self._lock:
            self._open = [end for end in self._open if end.fileno() != -1]
            return len(self._open) // 2

    def forget(self) -> None:
        """As a router does that was switched off and on: nothing moves on the connections that are open, and nobody is told."""
        self._forgotten.set()
        self._forgotten = threading.Event()

    def mend(self) -> None:
        self.refusing, self.bytes_per_s, self.delay_s = False, None, 0.0
        self.stalled.clear()

    def stop(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept, which would otherwise take one more
            self._listener.close()
        self.stalled.clear()
        self.cut()
