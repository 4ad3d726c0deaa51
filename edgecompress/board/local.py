"""The transport to this machine: a subprocess and plain files, so that everything above works the same here and on a board."""

from __future__ import annotations

import io
import os
import selectors
import shutil
import signal
import stat
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgecompress.board.transport import FILE_LIMIT_BYTES, OUTPUT_LIMIT_BYTES, Completed, DeviceError, LinkLost, ignored

if TYPE_CHECKING:
    from edgecompress.study import DeviceProfile

_AFTER_EXIT_S = 1.0
"""How long output is still collected after the command ended, when a process that it left behind holds its pipes open."""


class LocalTransport:
    def __init__(self, profile: DeviceProfile) -> None:
        self._name = profile.name

    def home(self) -> str:
        return str(Path.home())

    def run(self, argv: list[str], stdin: bytes | None = None, timeout_s: float = 60.0) -> Completed:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A group of its own: a Ctrl-C meant for the host does not hit it, and a timeout ends its children too.
                start_new_session=True,
            )
        except OSError as error:
            # What a shell answers for the same mistake, so that both transports look alike from above.
            return Completed(127, b"", f"{argv[0]}: {error.strerror}".encode())
        try:
            stdout, stderr = self._exchange(process, stdin or b"", time.monotonic() + timeout_s, argv[0])
            return Completed(process.wait(timeout=_AFTER_EXIT_S), stdout, stderr)
        except subprocess.TimeoutExpired:
            raise LinkLost(f"{self._name}: {Path(argv[0]).name} closed its output and did not end") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):  # closing flushes what a dead process no longer reads
                        stream.close()

    def _exchange(
        self, process: subprocess.Popen[bytes], data: bytes, deadline: float, command: str
    ) -> tuple[bytes, bytes]:
        """Feed stdin and drain both outputs together: draining one at a time deadlocks once the other pipe is full."""
        assert process.stdin and process.stdout and process.stderr
        outputs = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        reading, stdin, rest, ended_at = set(outputs), process.stdin.fileno(), memoryview(data), None
        os.set_blocking(stdin, False)
        with selectors.DefaultSelector() as selector:
            for output in outputs:
                selector.register(output, selectors.EVENT_READ)
            selector.register(stdin, selectors.EVENT_WRITE)
            while reading or process.poll() is None:
                now = time.monotonic()
                if now > deadline:
                    raise LinkLost(f"{self._name}: {Path(command).name} did not end in time")
                if process.poll() is not None:
                    ended_at = ended_at or now
                    if now - ended_at > _AFTER_EXIT_S:
                        break
                for key, _ in selector.select(timeout=0.05):
                    if key.fd == stdin:
                        try:
                            rest = rest[os.write(stdin, rest[:65536]) :] if rest else rest
                        except BrokenPipeError:  # it does not read its input: what it says and its status tell the rest
                            rest = rest[:0]
                        if not rest:
                            selector.unregister(stdin)
                            process.stdin.close()
                    elif chunk := os.read(key.fd, 65536):
                        outputs[key.fd] += chunk
                        if len(outputs[key.fd]) > OUTPUT_LIMIT_BYTES:
                            raise DeviceError(
                                f"{self._name}: {Path(command).name} printed more than {OUTPUT_LIMIT_BYTES} bytes"
                            )
                    else:
                        selector.unregister(key.fd)
                        reading.discard(key.fd)
        stdout, stderr = outputs.values()
        return bytes(stdout), bytes(stderr)

    def put(self, local: Path | bytes, remote: str, at: Callable[[int], None] = ignored) -> None:
        if isinstance(local, bytes):
            self._put(io.BytesIO(local), remote)
            return at(len(local))
        with local.open("rb") as source:
            self._put(source, remote)
            return at(source.tell())

    def _put(self, source: BinaryIO, remote: str) -> None:
        target = Path(remote)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                shutil.copyfileobj(source, out)
            part.replace(target)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise DeviceError(f"{self._name}: cannot write {remote}: {error.strerror}") from error

    def get(self, remote: str, limit_bytes: int = FILE_LIMIT_BYTES) -> bytes:
        try:
            if not stat.S_ISREG(Path(remote).lstat().st_mode):
                raise DeviceError(f"{self._name}: {remote} is not a plain file")
            with Path(remote).open("rb") as source:
                data = source.read(limit_bytes + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DeviceError(f"{self._name}: cannot read {remote}: {error.strerror}") from error
        if len(data) > limit_bytes:
            raise DeviceError(f"{self._name}: {remote} is larger than {limit_bytes} bytes")
        return data

    def exists(self, remote: str) -> bool:
        return Path(remote).exists()

    def mkdirs(self, remote: str) -> None:
        missing = [p for p in (Path(remote), *Path(remote).parents) if not p.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(mode=0o700, exist_ok=True)
            if not Path(remote).is_dir():
                raise NotADirectoryError(None, "it is not a directory")
        except OSError as error:
            raise DeviceError(f"{self._name}: cannot make {remote}: {error.strerror}") from error

    def close(self) -> None:
        pass
