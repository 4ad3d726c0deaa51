"""The emulated board running: a Debian arm64 machine under qemu-system-aarch64 (TCG), reached by SSH on a port of 127.0.0.1.

Booting takes half a minute, so it is done once: the booted machine, with the engines that `device setup --offline` put there, is
kept as a saved state beside the image, and every later start resumes a copy of it in some seconds. Its times say nothing about
a board's.

    python -m tests.board.emulated.guest            makes image and saved state, where they are not there
    python -m tests.board.emulated.guest --why      says whether this machine can resume it, and why not
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from edgecompress.board.provision import setup
from edgecompress.device_profile import DeviceProfile
from tests.board.emulated import image

CPU, CPUS, MEMORY_MB = "cortex-a72", 2, 1536
"""A Raspberry Pi 4's CPU: no dot product instructions. A saved state can be resumed only by the machine that it was saved from."""
_STATE = "ready"
_BUSY = 4.0
"""Load for each CPU at which the guest hardly moves: its deadlines would fail for want of CPUs."""
_BOOT_S, _RESUME_S, _STOP_S = 600.0, 600.0, 20.0


class Guest:
    """One running board. A context manager; stopping it throws away what it wrote. folder: for its disk, sockets and logs.

    counted: its clock counts its own instructions while it computes (4 ns each), and follows this machine's while it sleeps.
    What else runs here makes it slower to watch, and enters what it measures only while it sleeps. Not counted: its clock is
    this machine's always.
    """

    def __init__(self, folder: Path, port: int, *, counted: bool = True) -> None:
        self.folder, self.port, self.counted = folder, port, counted
        self._image = image.image_dir()
        self._process: subprocess.Popen[bytes] | None = None
        self.key, self.known_hosts = self._image / "key", folder / "known_hosts"
        kind, key = (self._image / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        (folder / "ssh_config").touch()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @staticmethod
    def saved(*, counted: bool) -> Path:
        """The disk with the saved state; its name says what it was saved from."""
        clock = "counted" if counted else "real"
        return image.image_dir() / f"prepared-{CPU}-{CPUS}-{MEMORY_MB}-{clock}.qcow2"

    def prepared(self) -> Path:
        return self.saved(counted=self.counted)

    def boot(self, disk_from: Path | None = None) -> float:
        """Start it from the clean image, or from a disk that was prepared; seconds until it answered."""
        disk = self.folder / "disk.qcow2"
        if disk_from is None:
            base = str(self._image / "root.img")
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, str(disk)], check=True
            )  # fmt: skip
        else:
            shutil.copy(disk_from, disk)
        return self._start(disk, [], _BOOT_S)

    def resume(self) -> float:
        """Start it from a copy of the saved state; seconds until it answered."""
        disk = self.folder / "disk.qcow2"
        shutil.copy(self.prepared(), disk)
        seconds = self._start(disk, ["-loadvm", _STATE], _RESUME_S)
        self.ssh(
            f"date -s @{time.time():.3f} > /dev/null"
        )  # the calendar stood still meanwhile; the monotonic clock goes on
        return seconds

    def save(self) -> None:
        """Keep its state now as what `resume` starts from, and end it."""
        self.ssh("sync")
        self._monitor(f"savevm {_STATE}", 120)
        self.stop(keep_disk=True)
        (self.folder / "disk.qcow2").replace(self.prepared())

    def profile(self, **fields: object) -> DeviceProfile:
        """A device profile of it; keyword arguments replace fields."""
        values: dict[str, object] = {
            "name": "emulated", "transport": "ssh", "host": "127.0.0.1", "port": self.port, "user": "board",
            "identity_file": self.key, "known_hosts": self.known_hosts, "ssh_config": self.folder / "ssh_config",
            "connect_timeout_s": 60, "reconnect_s": 120,
        }  # fmt: skip
        return DeviceProfile.model_validate(values | fields)

    def console_profile(self, **fields: object) -> DeviceProfile:
        """A device profile of its serial console (ttyAMA0, with a getty), which qemu gives a pseudo-terminal of this machine."""
        found = re.search(r"redirected to (/dev/pts/\d+) \(label console\)", (self.folder / "qemu.log").read_text())
        if found is None:
            raise RuntimeError(f"qemu names no terminal: {(self.folder / 'qemu.log').read_text()}")
        values: dict[str, object] = {
            "name": "console", "transport": "serial", "serial_port": found[1], "user": "board",
            "connect_timeout_s": 60, "reconnect_s": 120,
        }  # fmt: skip
        return DeviceProfile.model_validate(values | fields)

    def ssh(self, command: str, *, user: str = "root", stdin: bytes = b"", timeout_s: float = 240) -> str:
        """What a shell command printed. RuntimeError when its status is not 0."""
        done = self.try_ssh(command, user=user, stdin=stdin, timeout_s=timeout_s)
        if done.returncode:
            raise RuntimeError(f"{command!r}: status {done.returncode}: {done.stderr.decode()}")
        return done.stdout.decode()

    def lines(self, command: str, stdin: str, *, user: str = "root") -> Iterator[str]:
        """The lines that a shell command prints, as they come. RuntimeError when its status is not 0."""
        with subprocess.Popen(
            [*self._ssh(user), command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin and process.stdout and process.stderr
            process.stdin.write(stdin)
            process.stdin.close()
            yield from process.stdout
            if process.wait():
                raise RuntimeError(f"{command!r}: status {process.returncode}: {process.stderr.read()}")

    def _ssh(self, user: str) -> list[str]:
        return [
            "ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), "-o", f"UserKnownHostsFile={self.known_hosts}",
            "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60", f"{user}@127.0.0.1",
        ]  # fmt: skip

    def try_ssh(
        self, command: str, *, user: str = "root", stdin: bytes = b"", timeout_s: float = 240
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*self._ssh(user), command], input=stdin, capture_output=True, timeout=timeout_s)

    def stop(self, *, keep_disk: bool = False) -> None:
        """End it at once; only the process that this object started."""
        if self._process is not None:
            with suppress(OSError):
                self._monitor("quit", 5)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if not keep_disk:
            (self.folder / "disk.qcow2").unlink(missing_ok=True)

    def _start(self, disk: Path, extra: list[str], limit_s: float) -> float:
        console = self.folder / "console.log"
        command = [
            "nice", "-n", "5", "qemu-system-aarch64", "-machine", "virt", "-cpu", CPU, "-smp", str(CPUS), "-m", str(MEMORY_MB),
            "-kernel", str(self._image / "vmlinuz"), "-initrd", str(self._image / "initrd.img"),
            "-append", "root=/dev/vda rw console=ttyAMA0 quiet systemd.show_status=0",
            "-drive", f"file={disk},if=virtio,format=qcow2,cache=unsafe",
            "-netdev", f"user,id=lan,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=lan,romfile=",
            "-display", "none", "-chardev", f"pty,id=console,logfile={console}",
            "-serial", "chardev:console", "-monitor", f"unix:{self._socket},server=on,wait=off",
            "-pidfile", str(self.folder / "qemu.pid"), *extra,
        ]  # fmt: skip
        command += (
            ["-accel", "tcg,thread=single", "-icount", "shift=2,sleep=on"]
            if self.counted
            else ["-accel", "tcg,thread=multi"]
        )
        began = time.monotonic()
        with (self.folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while time.monotonic() - began < limit_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"qemu ended: {(self.folder / 'qemu.log').read_text()}")
            with suppress(OSError, subprocess.TimeoutExpired):
                if self._greeted() and self.try_ssh("true", timeout_s=120).returncode == 0:
                    return time.monotonic() - began
            time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"the emulated board did not answer in {limit_s:g} s; its console is in {console}")

    def _greeted(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            return connection.recv(4) == b"SSH-"

    @property
    def _socket(self) -> Path:
        return self.folder / "monitor"

    def _monitor(self, command: str, timeout_s: float) -> None:
        """Give qemu's monitor a command, and wait for its prompt (or its end)."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(timeout_s)
            monitor.connect(os.fspath(self._socket))
            _until_prompt(monitor.recv)
            monitor.sendall(command.encode() + b"\n")
            said = _until_prompt(monitor.recv)
        if b"Error" in said:
            raise RuntimeError(f"qemu's monitor, {command}: {said.decode('utf-8', 'replace')}")


def prepare() -> None:
    """The saved states that `Guest.resume` starts from, made where they are not there: booted, engines installed offline."""
    image.build()
    installed: Path | None = None
    for counted in (False, True):
        with (
            tempfile.TemporaryDirectory(prefix="emulated-") as folder,
            Guest(Path(folder), free_port(), counted=counted) as guest,
        ):
            if not guest.prepared().exists():
                print(f"booted in {guest.boot(installed):.0f} s", flush=True)
                began = time.monotonic()
                for line in setup(guest.profile(), offline=True):
                    print(line)
                print(f"engines installed in {time.monotonic() - began:.0f} s", flush=True)
                guest.save()
            installed = guest.prepared()


def why_not_resumed() -> str | None:
    """Why the saved state with this machine's clock cannot be resumed now; None when it can."""
    why = image.why_not_here()
    needed = (Guest.saved(counted=False), *image.modules(image.image_dir()))
    if why is None and not all(file.exists() for file in needed):
        why = f"no saved state of the emulated board in {image.image_dir()}: `make board` makes it"
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if why is None and load > _BUSY * cpus:
        why = f"this machine is too busy to emulate another one (load {load:.0f} on {cpus} CPUs): try again when it is not"
    return why


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_prompt(receive: Callable[[int], bytes]) -> bytes:
    said = b""
    while not said.endswith(b"(qemu) "):
        data = receive(4096)
        if not data:
            break
        said += data
    return said


if __name__ == "__main__":
    if sys.argv[1:] == ["--why"]:
        why = why_not_resumed()
        print(
            f"The emulated arm64 board cannot run here: {why}"
            if why
            else "The emulated arm64 board is resumed for the tests."
        )
        sys.exit(0)
    try:
        prepare()
    except image.CannotRun as error:
        sys.exit(str(error))
