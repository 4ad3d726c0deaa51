"""The transport over SSH: commands in a channel of their own, files by SFTP, on one connection.

paramiko waits without a limit in many places (opening a channel's command, an SFTP answer). So every operation here runs
under a watch that closes the connection; whatever waits then wakes up with an error, and the caller sees `LinkLost`.
"""

from __future__ import annotations

import io
import math
import shlex
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.board import upload
from edgecompress.board.link import Link, open_link
from edgecompress.board.route import resolve
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
    from paramiko import Channel, SFTPClient

    from edgecompress.device_profile import DeviceProfile

_OPERATION_S = 60.0
_STALL_S = 30.0
"""A single SFTP request without an answer for so long is a lost link."""

_SLOWEST_BYTES_PER_S = 20_000
"""A transfer slower than this over all is given up; a board on a poor radio link does ten times as much."""

_AFTER_EXIT_S = 1.0
"""How long output is still collected after the command ended, when a process that it left behind holds its pipes open."""

_CHUNK = 32768


class _Watch:
    """Closes a link when an operation has taken `limit_s`, or has not moved for `stall_s`."""

    def __init__(self, link: Link, limit_s: float, stall_s: float) -> None:
        self._link, self._stall_s = link, stall_s
        self._moved_at = time.monotonic()
        self._until = self._moved_at + limit_s
        self._over = threading.Event()
        self.expired = False
        threading.Thread(target=self._run, daemon=True, name="ssh-watch").start()

    def moved(self) -> None:
        self._moved_at = time.monotonic()

    def end(self) -> None:
        self._over.set()

    def _run(self) -> None:
        while (left_s := min(self._until, self._moved_at + self._stall_s) - time.monotonic()) > 0:
            if self._over.wait(left_s):
                return
        self.expired = True
        self._link.close()


class SshTransport:
    def __init__(self, profile: DeviceProfile, link: Link | None = None) -> None:
        """link: one that is logged in already."""
        self._name = profile.name
        self._link: Link = link or open_link(resolve(profile), profile.name, profile.connect_timeout_s)
        self._sftp: SFTPClient | None = None
        self._request_bytes: int | None = None

    def home(self) -> str:
        with self._files("find the home directory") as (sftp, _):
            return str(sftp.normalize("."))

    def run(self, argv: list[str], stdin: bytes | None = None, timeout_s: float = _OPERATION_S) -> Completed:
        with self._within(timeout_s + 5, f"no answer to {argv[0]}"):
            channel = self._link.transport.open_session(timeout=min(timeout_s, _STALL_S))
            try:
                channel.exec_command(shlex.join(argv))
                return self._exchange(channel, stdin or b"", time.monotonic() + timeout_s, argv[0])
            finally:
                channel.close()

    def _exchange(self, channel: Channel, data: bytes, deadline: float, command: str) -> Completed:
        """Feed stdin and drain both outputs together: draining one at a time deadlocks once the other's window is full."""
        stdout, stderr, rest, ended_at, pause_s = bytearray(), bytearray(), memoryview(data), None, 0.001
        sent_all = False
        while True:
            moved = False
            if channel.recv_ready():
                stdout += channel.recv(65536)
                moved = True
            if channel.recv_stderr_ready():
                stderr += channel.recv_stderr(65536)
                moved = True
            if max(len(stdout), len(stderr)) > OUTPUT_LIMIT_BYTES:
                raise DeviceError(f"{self._name}: {command} printed more than {OUTPUT_LIMIT_BYTES} bytes")
            now = time.monotonic()
            if now > deadline:
                raise LinkLost(f"{self._name}: {command} did not end in time")
            if not sent_all and (not rest or channel.send_ready()):
                try:
                    if rest:
                        rest = rest[channel.send(bytes(rest[:_CHUNK])) :]
                    else:
                        channel.shutdown_write()
                        sent_all = True
                    moved = True
                except OSError:  # it ended without reading its input: what it said and its status tell the rest
                    sent_all = True
            if moved:
                pause_s = 0.001
                continue
            if channel.exit_status_ready():
                ended_at = ended_at or now
                if channel.closed or channel.eof_received or now - ended_at > _AFTER_EXIT_S:
                    if channel.recv_ready() or channel.recv_stderr_ready():
                        continue  # it came in between the looks
                    break
            elif channel.closed or not self._link.transport.is_active():
                raise LinkLost(f"{self._name}: the connection was lost")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.02)
        status = channel.recv_exit_status()
        if status == -1 and not self._link.transport.is_active():
            raise LinkLost(f"{self._name}: the connection was lost")
        return Completed(status, bytes(stdout), bytes(stderr))

    def put(self, local: Path | bytes, remote: str, at: Callable[[int], None] = ignored) -> None:
        if isinstance(local, bytes):
            return self._put(io.BytesIO(local), len(local), remote, at)
        with local.open("rb") as source:
            return self._put(source, local.stat().st_size, remote, at)

    def _put(self, source: io.BytesIO | io.BufferedReader, size: int, remote: str, at: Callable[[int], None]) -> None:
        part = upload.part_of(source, size, remote)
        with self._files(f"write {remote}", size) as (sftp, watch):
            if self._request_bytes is None:
                self._request_bytes = upload.request_bytes(sftp)

            def moved(there: int) -> None:
                watch.moved()
                at(there)

            try:
                upload.send(sftp, source, size, part, remote, request=self._request_bytes, at=moved)
            except OSError:
                if self._link.transport.is_active():
                    with suppress(OSError):
                        sftp.remove(part)
                raise

    def get(self, remote: str, limit_bytes: int = FILE_LIMIT_BYTES) -> bytes:
        # The size is the device's word: it decides how long to wait and what is asked for at once; bytes are counted.
        with self._files(f"read {remote}", may_be_absent=True) as (sftp, _):
            found = sftp.lstat(remote)
        if not stat.S_ISREG(found.st_mode or 0):
            raise DeviceError(f"{self._name}: {remote} is not a plain file")
        size = found.st_size or 0
        data = bytearray()
        if size <= limit_bytes:
            with (
                self._files(f"read {remote}", size, may_be_absent=True) as (sftp, watch),
                sftp.open(remote, "rb") as source,
            ):
                source.prefetch(size, max_concurrent_requests=64)
                while (chunk := source.read(_CHUNK)) and len(data) <= limit_bytes:
                    data += chunk
                    watch.moved()
        if max(size, len(data)) > limit_bytes:
            raise DeviceError(f"{self._name}: {remote} is larger than {limit_bytes} bytes")
        return bytes(data)

    def exists(self, remote: str) -> bool:
        try:
            with self._files(f"look for {remote}", may_be_absent=True) as (sftp, _):
                sftp.stat(remote)
        except FileNotFoundError:
            return False
        return True

    def mkdirs(self, remote: str) -> None:
        with self._files(f"make {remote}") as (sftp, _):
            missing, path = [], remote.rstrip("/")
            while path:
                try:
                    mode = sftp.stat(path).st_mode or 0
                except FileNotFoundError:
                    missing.append(path)
                    path = path.rpartition("/")[0]
                    continue
                if not stat.S_ISDIR(mode):
                    raise OSError(None, f"{path} is not a directory")
                break
            for path in reversed(missing):
                try:
                    sftp.mkdir(path, 0o700)
                except OSError:
                    sftp.stat(path)  # another host made it just now, or this raises

    def close(self) -> None:
        self._link.close()

    @contextmanager
    def _within(self, limit_s: float, silence: str, stall_s: float = math.inf) -> Iterator[_Watch]:
        """Close the connection if the block takes longer; what paramiko raises for a broken one becomes LinkLost."""
        import paramiko

        watch = _Watch(self._link, limit_s, stall_s)
        try:
            if not self._link.transport.is_active():
                raise LinkLost(f"{self._name}: the connection was lost")
            yield watch
        except paramiko.SFTPError as error:
            self._sftp = None
            raise DeviceError(
                f"{self._name}: SFTP does not work: {readable(str(error), 300)}. If a start-up file of the login shell there "
                "(~/.bashrc) prints text, let it do so in interactive shells only."
            ) from None
        except (
            OSError,
            EOFError,
            paramiko.SSHException,
            ValueError,
            struct.error,
            LookupError,
            AssertionError,
        ) as error:
            if isinstance(error, OSError) and not isinstance(error, TimeoutError) and self._link.transport.is_active():
                raise  # an answer of the device
            self._link.close()  # in a state that nobody knows
            why = silence if watch.expired or isinstance(error, TimeoutError) else readable(str(error), 300)
            raise LinkLost(f"{self._name}: the connection was lost ({why or 'closed'})") from None
        finally:
            watch.end()

    @contextmanager
    def _files(self, what: str, size: int = 0, *, may_be_absent: bool = False) -> Iterator[tuple[SFTPClient, _Watch]]:
        """SFTP under a limit, which is longer for a transfer of `size` bytes that moves.

        Errors of the device become DeviceError; may_be_absent: but FileNotFoundError stays.
        """
        import paramiko

        limit_s = _OPERATION_S + size / _SLOWEST_BYTES_PER_S
        with self._within(limit_s, f"could not {what} in time", _OPERATION_S) as watch:
            try:
                if self._sftp is None:
                    channel = self._link.transport.open_session(timeout=_STALL_S)
                    channel.settimeout(_STALL_S)
                    try:
                        channel.invoke_subsystem("sftp")
                    except paramiko.SSHException:
                        if not self._link.transport.is_active():
                            raise
                        fix = "install openssh-sftp-server there"
                        raise DeviceError(f"{self._name}: the SSH server offers no SFTP ({fix})") from None
                    self._sftp = paramiko.SFTPClient(channel)
                yield self._sftp, watch
            except OSError as error:
                absent = may_be_absent and isinstance(error, FileNotFoundError)
                if absent or isinstance(error, TimeoutError) or not self._link.transport.is_active():
                    raise
                detail = readable(error.strerror or str(error), 300)
                raise DeviceError(f"{self._name}: cannot {what}: {detail}") from None
