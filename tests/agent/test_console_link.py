"""The frames of a serial console and their repair, over a line in memory that damages, loses and inserts bytes."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest
from edgecompress_agent import console_link
from edgecompress_agent.console_link import Broken, Link, TooMuch, decode, encode, pack, unpack

KERNEL = b"[   12.345678] brcmfmac: F1 signature read @0x18000000=0x15264345\r\n"


@pytest.mark.parametrize("seven_bit", [True, False])
def test_a_frame_carries_every_byte_in_printable_ones_and_starts_as_a_comment(seven_bit: bool) -> None:
    payload = bytes(range(256)) + b"=" * 20 + b"#\n\r\x03\x04\x11\x13"
    frame = encode(b"h", b"D", b"0a1b2c", 0x123, payload, seven_bit=seven_bit)
    assert frame.startswith(b"#") and frame.endswith(b"\n") and frame.count(b"#") == 1
    assert not any(byte < 32 or byte in (0x7F, 0xFF) for byte in frame[:-1])
    assert not seven_bit or max(frame) < 128
    found = decode(frame[:-1])
    assert found == (b"h", b"D", seven_bit, b"0a1b2c", 0x123, payload)
    assert decode(frame[:-1] + b"\r") == found
    assert decode(b"raspberrypi login: " + frame[:-1]) == found


@pytest.mark.parametrize("seven_bit", [True, False])
def test_a_frame_with_one_bit_changed_one_byte_lost_or_a_message_in_it_is_none(seven_bit: bool) -> None:
    frame = encode(b"b", b"E", b"0a1b2c", 7, bytes(range(40)), seven_bit=seven_bit)[:-1]
    for at in range(len(frame)):
        assert decode(frame[:at] + frame[at + 1 :]) is None
        for bit in range(8):
            damaged = bytearray(frame)
            damaged[at] ^= 1 << bit
            assert decode(bytes(damaged)) is None
        if at:
            assert all(decode(line) is None for line in (frame[:at] + KERNEL + frame[at:]).split(b"\n"))


def test_a_message_is_bounded_and_whole() -> None:
    assert unpack(pack(b'{"a":1}', b"x\n\x00"), 100) == (b'{"a":1}', b"x\n\x00")
    with pytest.raises(TooMuch):
        unpack(zlib.compress(b"{}\n" + bytes(50_000_000), 9), 1000)  # 50 KB that would be 50 MB
    for bad in (b"no zlib", pack(b"{}", b"cut")[:-3], zlib.compress(b"without a header")):
        with pytest.raises(Broken):
            unpack(bad, 1000)


class Wire:
    """Both directions, and both ends; `harm` does to what is written what the line does. No time passes but in the links' waits."""

    def __init__(self, harm: Callable[[bytes], bytes], *, seven_bit: bool = False) -> None:
        self.ways = {b"h": bytearray(), b"b": bytearray()}
        self.harm = harm
        self.longest = 0
        self.host, self.board = (self._end(side, seven_bit) for side in (b"h", b"b"))

    def _end(self, side: bytes, seven_bit: bool) -> Link:
        out, into = self.ways[side], self.ways[b"b" if side == b"h" else b"h"]

        def read(seconds: float) -> bytes:
            data = bytes(into)
            into.clear()
            return data

        def write(data: bytes) -> None:
            out.extend(self.harm(data))
            self.longest = max(self.longest, len(out))

        return Link(read, write, b"00000a", side=side, seven_bit=seven_bit, bytes_per_s=1e6)

    def run(self, done: Callable[[], bool]) -> None:
        for _ in range(2_000_000):
            if done():
                return
            self.host.pump(0.0)
            self.board.pump(0.0)
        raise AssertionError("it does not end")


@pytest.mark.parametrize(("flips", "drops", "messages"), [(0.0, 0.0, 0.0), (5e-4, 5e-4, 0.0), (0.0, 0.0, 1e-3)])
def test_messages_arrive_whole_and_in_order_both_ways_over_a_bad_line(
    flips: float, drops: float, messages: float
) -> None:
    dice = random.Random(3)
    harmed = 0

    def harm(data: bytes) -> bytes:
        nonlocal harmed
        out = bytearray()
        for byte in data:
            chance = dice.random()
            if chance < messages:
                out += KERNEL
            if messages <= chance < messages + drops:
                continue
            out.append(byte ^ 0x10 if messages + drops <= chance < messages + drops + flips else byte)
        harmed += bytes(out) != data
        return bytes(out)

    wire = Wire(harm)
    sent = [dice.randbytes(n) for n in (0, 1, 511, 512, 513, 9000, 3, 20_000)]
    for message in sent:
        wire.host.put(message)
        wire.board.put(message[::-1])
    wire.run(lambda: len(wire.host.messages) == len(wire.board.messages) == len(sent))
    assert list(wire.board.messages) == sent
    assert list(wire.host.messages) == [m[::-1] for m in sent]
    wire.run(lambda: wire.host.idle and wire.board.idle)
    assert wire.host.delivered == wire.host.put_bytes == sum(map(len, sent))
    assert (harmed > 0) == (wire.host.resent + wire.board.resent > 0)
    assert harmed == 0 or harmed > 10


def test_what_is_on_the_way_fits_into_a_terminals_buffer() -> None:
    wire = Wire(lambda data: data, seven_bit=True)
    wire.host.put(bytes(range(256)) * 400)
    for _ in range(50):
        wire.host.pump(0.0)  # the board is busy: it reads nothing
    assert 2000 < wire.longest < 4095


def test_an_echo_is_not_an_answer() -> None:
    wire = Wire(lambda data: data)
    seen: list[bytes] = []
    wire.host.noise = seen.append
    wire.host.put(b"question")
    wire.host.pump(0.0)
    echo = bytes(wire.ways[b"h"])
    wire.ways[b"b"].extend(echo)
    wire.host.pump(0.0)
    assert not wire.host.messages
    assert [console_link.decode(line) for line in seen] == [console_link.decode(echo[:-1])]


def test_a_message_without_an_end_is_cut_off() -> None:
    wire = Wire(lambda data: data)
    wire.host.limit = 5000
    wire.board.put(bytes(100_000))
    with pytest.raises(TooMuch):
        wire.run(lambda: False)
