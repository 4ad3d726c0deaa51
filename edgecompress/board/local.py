"""The transport to this machine: a subprocess and plain files, so that everything above works the same here and on a board."""

from __future__ import annotations

import io
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgecompress_agent import command

from edgecompress.board.transport import FILE_LIMIT_BYTES, OUTPUT_LIMIT_BYTES, Completed, DeviceError, LinkLost, ignored

if TYPE_CHECKING:
    from edgecompress.device_profile import DeviceProfile


class LocalTransport:
    def __init__(self, profile: DeviceProfile) -> None:
        self._name = profile.name

    def home(self) -> str:
        return str(Path.home())

    def run(self, argv: list[str], stdin: bytes | None = None, timeout_s: float = 60.0) -> Completed:
        name = Path(argv[0]).name
        try:
            done = command.run(argv, stdin or b"", timeout_s=timeout_s, limit_bytes=OUTPUT_LIMIT_BYTES)
        except command.TooLong:
            raise LinkLost(f"{self._name}: {name} did not end in time") from None
        except command.TooMuch:
            raise DeviceError(f"{self._name}: {name} printed more than {OUTPUT_LIMIT_BYTES} bytes") from None
        return Completed(done.status, done.stdout, done.stderr)

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
