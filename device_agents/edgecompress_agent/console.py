"""The board's end of a serial console: files and commands, asked for over a `console_link`. Standard library only.

The host types a short Python program into the login shell, which takes in this module with `console_link` and `command` and
calls `serve`; nothing of it is written to the board's disk. It has the terminal in raw mode while it runs. It leaves, with the
terminal as it was, when the host says so (frame Q), when the line hangs up, or when no host said anything for IDLE_S.

A request and an answer are messages: a JSON object on a line, then bytes.
    home                        → {"path"}
    exists {path}               → {"there"}
    mkdirs {path}               → {}
    run {argv, timeout_s, limit}, stdin → {"status", "out"}, stdout and stderr (out: where the first ends);
                                  or {"failed": "long" or "much"}
    write {path, sha256, size}  → {"have", "sha256"}: what arrived of it before; then
      data {at}, bytes            (no answer), and
      finish                    → {}; or {"failed": "damaged"}
    read {path, from, identity, limit} → {"identity", "size", "from"}, then any number of {"at"} with bytes, then {"sha256"}
What cannot be done is {"error": a sentence, "absent": whether a file is not there}.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import select
import sys
import termios
import time
import tty
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Tuple

from edgecompress_agent import command, console_link
from edgecompress_agent.console_link import Broken, Frame, Link, Silent, TooMuch

NOBODY = b"000000"
"""The session of frames that belong to none."""
PIECE = 16384
"""Of a file, in one message: what is lost of it when the line is cut, at most."""
IDLE_S = 3600.0
_SILENCE_S = 60.0
_REQUEST_LIMIT = 1 << 26


class _Ended(Exception):
    """The host says goodbye, or the line hung up."""


class _Restarted(Exception):
    """A new session began: what the old one asked for is given up."""


class _Upload:
    """A file that comes in. What arrives goes under a name that says of what it is a part, and stays when the line is cut."""

    def __init__(self, path: str, sha256: str, size: int) -> None:
        self.target, self.sha256, self.size = Path(path), sha256, size
        self.part = self.target.with_name(f".{self.target.name}.{sha256[:16]}.part")
        for old in self.target.parent.glob(f".{glob.escape(self.target.name)}.{'[0-9a-f]' * 16}.part"):
            if old != self.part:
                old.unlink()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.file: BinaryIO = os.fdopen(os.open(str(self.part), flags, 0o600), "r+b")
        self.digest = hashlib.sha256()
        self.have = 0

    def begin(self, meanwhile: Callable[[], None]) -> Dict[str, Any]:
        while self.have < self.size:
            piece = self.file.read(min(1 << 18, self.size - self.have))
            if not piece:
                break
            self.digest.update(piece)
            self.have += len(piece)
            meanwhile()
        return {"have": self.have, "sha256": self.digest.hexdigest()}

    def data(self, at: int, piece: bytes) -> None:
        if at == 0 and self.have:  # the host does not know what is here: from the beginning
            self.digest, self.have = hashlib.sha256(), 0
        if at != self.have or at + len(piece) > self.size:
            raise OSError(None, f"bytes for {at}, expected for {self.have} of {self.size}")
        self.file.seek(at)
        self.file.write(piece)
        self.digest.update(piece)
        self.have += len(piece)

    def finish(self) -> bool:
        """Whether the file is whole, and now has its name."""
        whole = self.have == self.size and self.digest.hexdigest() == self.sha256
        if whole:
            self.file.truncate(self.size)
            self.file.flush()
            os.fsync(self.file.fileno())
            self.part.chmod(0o600)
            self.part.replace(self.target)
        else:
            self.part.unlink()
        self.file.close()
        return whole

    def give_up(self, *, remove: bool) -> None:
        with suppress(OSError):
            self.file.close()
        if remove:
            with suppress(OSError):
                self.part.unlink()


class _Helper:
    def __init__(self, fd: int, version: bytes, bytes_per_s: float) -> None:
        self._fd, self._version, self._bytes_per_s = fd, version, bytes_per_s
        self._upload: Optional[_Upload] = None
        self._heard_at = time.monotonic()
        self._link = self._session(NOBODY, seven_bit=True)

    def serve(self) -> None:
        while True:
            try:
                while not self._link.messages:
                    if time.monotonic() - self._heard_at > IDLE_S:
                        return
                    self._link.pump(60.0)
                self._handle(self._link.messages.popleft())
            except _Restarted:
                self._let_go(remove=False)
            except (TooMuch, Silent, Broken):
                self._let_go(remove=False)
                self._link = self._session(NOBODY, seven_bit=True)  # what the old one had to say is for nobody
            except (_Ended, OSError, termios.error):
                return self._let_go(remove=False)

    def _session(self, name: bytes, *, seven_bit: bool) -> Link:
        link = Link(self._read, self._write, name, side=b"b", seven_bit=seven_bit, bytes_per_s=self._bytes_per_s)
        link.noise, link.control, link.limit = self._noise, self._control, _REQUEST_LIMIT
        return link

    def _read(self, seconds: float) -> bytes:
        if not select.select([self._fd], [], [], seconds)[0]:
            return b""
        data = os.read(self._fd, 65536)
        if not data:
            raise _Ended()
        self._heard_at = time.monotonic()
        return data

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _noise(self, line: bytes) -> None:
        """An empty line is a host that looks who is there."""
        if not line.strip(b"\r\x15\x03"):
            self._write(console_link.encode(b"b", b"I", NOBODY, 0, self._version))

    def _control(self, frame: Frame) -> None:
        if frame.kind == b"Q":
            self._write(console_link.encode(b"b", b"B", frame.session))
            raise _Ended()
        if frame.kind == b"H":
            new = frame.session != self._link.session
            rest = self._link.rest
            if new:
                self._link = self._session(frame.session, seven_bit=frame.seven_bit)
                self._link.rest = rest
            self._link.say(b"I", self._version)
            if new:
                raise _Restarted()

    def _meanwhile(self) -> None:
        self._link.tick()
        self._link.pump(0.0)

    def _answer(self, header: Dict[str, Any], body: bytes = b"") -> None:
        self._link.put(console_link.pack(json.dumps(header).encode(), body))
        self._link.wait(1e9, _SILENCE_S, lambda: self._link.queued < 64)

    def _handle(self, message: bytes) -> None:
        header, body = console_link.unpack(message, _REQUEST_LIMIT)
        try:
            request = json.loads(header.decode())
            self._do(str(request["do"]), request, body)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._let_go(remove=True)
            said = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._answer({"error": said, "absent": isinstance(error, FileNotFoundError)})

    def _do(self, what: str, request: Dict[str, Any], body: bytes) -> None:
        if what == "data":
            if self._upload is not None:  # else it failed, and the host has not read so yet
                self._upload.data(request["at"], body)
        elif what == "finish":
            if self._upload is not None:
                upload, self._upload = self._upload, None
                self._answer({} if upload.finish() else {"failed": "damaged"})
        elif what == "write":
            self._let_go(remove=False)
            upload = _Upload(request["path"], request["sha256"], request["size"])
            self._upload = upload
            self._answer(upload.begin(self._meanwhile))
        elif what == "read":
            self._send_file(Path(request["path"]), request["from"], request["identity"], request["limit"])
        elif what == "run":
            self._answer(*self._run(request["argv"], body, request["timeout_s"], request["limit"]))
        elif what == "home":
            self._answer({"path": str(Path.home())})
        elif what == "exists":
            self._answer({"there": Path(request["path"]).exists()})
        elif what == "mkdirs":
            _mkdirs(Path(request["path"]))
            self._answer({})
        else:
            raise ValueError(f"no such request: {what}")

    def _run(self, argv: List[str], stdin: bytes, timeout_s: float, limit: int) -> Tuple[Dict[str, Any], bytes]:
        try:
            done = command.run(argv, stdin, timeout_s=timeout_s, limit_bytes=limit, meanwhile=self._meanwhile)
        except command.TooLong:
            return {"failed": "long"}, b""
        except command.TooMuch:
            return {"failed": "much"}, b""
        return {"status": done.status, "out": len(done.stdout)}, done.stdout + done.stderr

    def _send_file(self, path: Path, begin: int, identity: List[int], limit: int) -> None:
        # A link could lead anywhere, and to open a pipe may never end.
        with os.fdopen(os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            stat = os.fstat(file.fileno())
            if not S_ISREG(stat.st_mode):
                raise OSError(None, "it is not a plain file")
            if stat.st_size > limit:
                raise OSError(None, f"it is larger than {limit} bytes")
            here = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
            begin = begin if here == identity and begin <= stat.st_size else 0
            self._answer({"identity": here, "size": stat.st_size, "from": begin})
            digest, at = hashlib.sha256(), 0
            while at <= limit:
                piece = file.read(min(PIECE, begin - at) if at < begin else PIECE)
                if not piece:
                    return self._answer({"sha256": digest.hexdigest()})
                digest.update(piece)
                if at < begin:
                    self._meanwhile()
                else:
                    self._answer({"at": at}, piece)
                at += len(piece)
        raise OSError(None, f"it is larger than {limit} bytes")

    def _let_go(self, *, remove: bool) -> None:
        if self._upload is not None:
            self._upload.give_up(remove=remove)
            self._upload = None


def _mkdirs(path: Path) -> None:
    for folder in [*reversed(path.parents), path]:
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        raise OSError(None, "it is not a directory")


def serve(before: List[Any], version: str, bytes_per_s: float) -> None:
    """Answer the host on standard input and output, a terminal whose attributes were `before`, until it says goodbye."""
    fd = sys.stdin.fileno()
    # A shell without line editing (dash) that was left with a raw terminal cannot be typed at: give it a usable one.
    before[0] |= termios.ICRNL
    before[1] |= termios.OPOST | termios.ONLCR
    before[3] |= termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN
    tty.setraw(fd, termios.TCSANOW)
    try:
        _Helper(fd, version.encode(), bytes_per_s).serve()
    finally:
        with suppress(termios.error, OSError):
            termios.tcsetattr(fd, termios.TCSANOW, before)
