"""Both ends of a serial console: messages that arrive whole and in order over a line that loses, damages and inserts bytes.

A frame is one line of text that starts with '#', so that a shell which gets one by mistake takes it for a comment:

    # side kind encoding session(6 hex) number(6 hex) payload crc32(8 hex) newline

Side: h from the host, b from the board; one's own coming back is the echo of a shell or a login, and no frame.
Kinds: D and E carry a message (E its end), A acknowledges, T says "still here"; H, I, Q, B begin and end a session (`console.py`).
What stands before the last '#' of a line, or does not have its checksum, is no frame: a kernel's message costs the frame that it
fell into, which is sent again. No control character is ever part of a frame. At most WINDOW bytes are on the way unacknowledged: as
much as a terminal's input buffer holds (4095, n_tty.c), so that nothing is lost without flow control while the other end is busy.
"""

from __future__ import annotations

import base64
import re
import time
import zlib
from collections import deque
from typing import Callable, Deque, Dict, List, NamedTuple, Optional, Tuple

CHUNK, _SMALLEST_CHUNK = 512, 64
"""Of a message, in one frame: smaller while many are lost."""
WINDOW = 3800
_EARLY = 64
"""How far ahead of the expected frame one is kept: more than fit into the window."""
_LONGEST_LINE = 2048
_WAIT_S = 0.5
_TICK_S = 4.0
_FRAME = re.compile(rb"#([hb])([A-Z])([eb])([0-9a-f]{6})([0-9a-f]{6})([^#]*)([0-9a-f]{8})\r?$", re.DOTALL)
_ESCAPED = [bytes([b]) for b in (0x3D, *range(0x20), 0x23, 0x7F, 0xFF)]  # '=' is first: it is the sign of the others


class Silent(Exception):
    """Nothing that is a frame of this session came for too long."""


class TooMuch(Exception):
    """A message is longer than it may be."""


class Broken(Exception):
    """A message is not one."""


class Frame(NamedTuple):
    side: bytes
    kind: bytes
    seven_bit: bool
    session: bytes
    number: int
    payload: bytes


def encode(
    side: bytes, kind: bytes, session: bytes, number: int = 0, payload: bytes = b"", *, seven_bit: bool = True
) -> bytes:
    """A frame as it goes over the line. seven_bit: base64 (4/3 of the size), else control characters escaped (8/7)."""
    if seven_bit:
        body = base64.b64encode(payload)
    else:
        body = payload
        for byte in _ESCAPED:
            body = body.replace(byte, b"=" + bytes([byte[0] ^ 0x40]))
    text = b"%s%s%s%s%06x%s" % (side, kind, b"b" if seven_bit else b"e", session, number, body)
    return b"#%s%08x\n" % (text, zlib.crc32(text))


def decode(line: bytes) -> Optional[Frame]:
    """The frame at the end of a line (without its newline); None when there is none that is whole."""
    start = line.rfind(b"#")
    found = _FRAME.match(line, start) if start >= 0 else None
    if found is None or zlib.crc32(line[start + 1 : found.end(6)]) != int(found[7], 16):
        return None
    seven_bit = found[3] == b"b"
    try:
        payload = (
            base64.b64decode(found[6], validate=True)
            if seven_bit
            else re.sub(rb"=(.)", lambda m: bytes([m[1][0] ^ 0x40]), found[6], flags=re.DOTALL)
        )
    except ValueError:
        return None
    return Frame(found[1], found[2], seven_bit, found[4], int(found[5], 16), payload)


def pack(header: bytes, body: bytes = b"") -> bytes:
    """A message: a header of one line, and bytes; compressed."""
    return zlib.compress(header + b"\n" + body, 6)


def unpack(message: bytes, limit: int) -> Tuple[bytes, bytes]:
    """(header, body). TooMuch when it would be longer than `limit`; Broken when it is no message."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(message, limit + 1)
    except zlib.error:
        raise Broken("it does not decompress") from None
    if len(data) > limit:
        raise TooMuch()
    if not inflate.eof:
        raise Broken("it has no end")
    header, found, body = data.partition(b"\n")
    if not found:
        raise Broken("it has no header")
    return header, body


class _Flying:
    """A frame that was sent and is not acknowledged. order: of its last transmission, among all. due: when to send it again."""

    def __init__(self, frame: bytes, size: int) -> None:
        self.frame, self.size = frame, size
        self.order, self.due, self.times = -1, 0.0, 0


class Link:
    """One session. read(seconds) gives what came, b"" when nothing did; write takes everything; both raise when the line is gone.

    put_bytes: of messages that `put` was given; delivered: of them, what has arrived at the other end; taken: what came from there.
    messages: what arrived, each no longer than `limit` bytes (TooMuch). noise: is told each line that is no frame. control: is told
    each frame of the kinds H, I, Q, B, of whatever session. heard_at: when the last frame of this session came (monotonic).
    """

    def __init__(
        self,
        read: Callable[[float], bytes],
        write: Callable[[bytes], None],
        session: bytes,
        *,
        side: bytes,
        seven_bit: bool,
        bytes_per_s: float,
    ) -> None:
        self._read, self._write = read, write
        self.session, self.seven_bit, self._side = session, seven_bit, side
        self._bytes_per_s = bytes_per_s
        self.noise: Callable[[bytes], None] = lambda line: None
        self.control: Callable[[Frame], None] = lambda frame: None
        self.messages: Deque[bytes] = deque()
        self.limit = 1 << 16
        self.put_bytes = self.delivered = self.taken = self.resent = 0
        self.heard_at = self._spoke_at = time.monotonic()
        self.rest = b""
        self._queue: Deque[Tuple[bytes, bytes]] = deque()
        self._flying: Dict[int, _Flying] = {}
        self._next = self._order = self._expected = 0
        self._free_at, self._chunk = 0.0, float(CHUNK)
        self._early: Dict[int, Tuple[bytes, bytes]] = {}
        self._message = bytearray()

    @property
    def queued(self) -> int:
        """Frames that wait for room in the window."""
        return len(self._queue)

    def put(self, message: bytes) -> None:
        """Queue a message; `pump` sends it."""
        self.put_bytes += len(message)
        pieces = [message[at : at + CHUNK] for at in range(0, len(message), CHUNK)] or [b""]
        self._queue.extend((b"D", piece) for piece in pieces[:-1])
        self._queue.append((b"E", pieces[-1]))

    def say(self, kind: bytes, payload: bytes = b"", number: int = 0) -> None:
        """Send a frame that nobody acknowledges."""
        self._out(encode(self._side, kind, self.session, number, payload, seven_bit=self.seven_bit))

    def tick(self) -> None:
        """Say "still here", if nothing was said for some seconds: for who works a long time before there is an answer."""
        if time.monotonic() - self._spoke_at > _TICK_S:
            self.say(b"T")

    def pump(self, seconds: float) -> None:
        """Send what there is room for, and take in what comes within that time (it returns as soon as something came)."""
        while self._queue and sum(len(f.frame) for f in self._flying.values()) < WINDOW - 2 * CHUNK:
            kind, payload = self._queue.popleft()
            if len(payload) > int(self._chunk):
                self._queue.appendleft((kind, payload[int(self._chunk) :]))
                kind, payload = b"D", payload[: int(self._chunk)]
            frame = encode(self._side, kind, self.session, self._next, payload, seven_bit=self.seven_bit)
            self._flying[self._next] = _Flying(frame, len(payload))
            self._send(self._flying[self._next])
            self._next += 1
        now = time.monotonic()
        due = min((f.due for f in self._flying.values()), default=now + seconds)
        data = self._read(max(0.0, min(seconds, due - now)))
        if data:
            self._take(data)
        now = time.monotonic()
        for flying in list(self._flying.values()):
            if flying.due <= now:
                self._send(flying)

    def wait(self, seconds: float, silence_s: float, ready: Callable[[], bool]) -> bool:
        """Pump until `ready` (True) or the time is over (False). Silent when no frame of this session comes for silence_s."""
        until = time.monotonic() + seconds
        self.heard_at = time.monotonic()
        while not ready():
            now = time.monotonic()
            if now > until:
                return False
            if now - self.heard_at > silence_s:
                raise Silent()
            self.pump(min(0.5, until - now))
        return True

    @property
    def idle(self) -> bool:
        """Everything that was put has arrived at the other end."""
        return not self._queue and not self._flying

    def _send(self, flying: _Flying) -> None:
        self._order += 1
        if flying.times:
            self.resent += 1
            self._chunk = max(self._chunk * 0.9, _SMALLEST_CHUNK)
        flying.order, flying.times = self._order, flying.times + 1
        self._out(flying.frame)
        # The answer stands behind what the other end may have to say; noise is no reason to wait longer, a busy board is.
        flying.due = self._free_at + (_WAIT_S + WINDOW / self._bytes_per_s) * min(1.2 ** (flying.times - 1), 8.0)

    def _out(self, frame: bytes) -> None:
        self._spoke_at = time.monotonic()
        self._free_at = max(self._free_at, self._spoke_at) + len(frame) / self._bytes_per_s
        self._write(frame)

    def _take(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _LONGEST_LINE:
            self.noise(self.rest)
            self.rest = b""
        answer = False
        controls: List[Frame] = []
        for line in lines:
            frame = decode(line)
            if frame is None or frame.side == self._side:
                self.noise(line)
            elif frame.kind in (b"H", b"I", b"Q", b"B"):
                controls.append(frame)
            elif frame.session == self.session:
                self.heard_at = time.monotonic()
                if frame.kind == b"A":
                    self._acknowledged(frame)
                elif frame.kind in (b"D", b"E"):
                    answer = True
                    self._arrived(frame)
        if answer:
            early = sum(1 << (n - self._expected) for n in self._early)
            self.say(b"A", b"%x" % early, self._expected)
        for frame in controls:
            self.control(frame)

    def _arrived(self, frame: Frame) -> None:
        if self._expected <= frame.number < self._expected + _EARLY:
            self._early[frame.number] = (frame.kind, frame.payload)
        while self._expected in self._early:
            kind, payload = self._early.pop(self._expected)
            self._expected += 1
            self._message += payload
            self.taken += len(payload)
            if len(self._message) > self.limit:
                raise TooMuch()
            if kind == b"E":
                self.messages.append(bytes(self._message))
                self._message.clear()

    def _acknowledged(self, frame: Frame) -> None:
        """Forget what arrived. What was sent before it and did not arrive is lost: lines do not reorder."""
        try:
            early = int(frame.payload, 16)
        except ValueError:
            return
        there = [
            n
            for n in self._flying
            if n < frame.number or (n - frame.number < _EARLY and early >> (n - frame.number) & 1)
        ]
        newest = -1
        for flying in map(self._flying.pop, there):
            newest = max(newest, flying.order)
            self.delivered += flying.size
        self._chunk = min(self._chunk + len(there), CHUNK)
        for flying in [f for f in self._flying.values() if f.order < newest]:
            self._send(flying)
