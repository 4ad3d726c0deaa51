"""A stream of symbols as the bits of a Huffman code and back, at the speed of numpy.

A long stream is dealt out to lanes, symbol i to lane i mod lanes, and each lane is a bit string of its own, one after the
other without padding: the decoder looks up the next symbol of all lanes at once. The lanes cost their lengths, 2 bytes for
4096 symbols. Bits fill bytes from the lowest up.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import huffman

LANE_SYMBOLS = 4096
MAX_LANES = 4096
_WALKED_LANES = 64
"""Up to so many lanes a walk through one lane after the other is faster than a step through all of them."""
_BLOCK = 1 << 20
"""Symbols that are turned into bits at a time."""


class Damaged(Exception):
    """The bytes are not what the encoder writes. The reader of the file says in which file and tensor."""


def lane_count(symbols: int) -> int:
    """Lanes of a stream of so many symbols: fixed by the format."""
    return min(MAX_LANES, max(1, symbols // LANE_SYMBOLS))


def encode(symbols: NDArray[np.integer], lengths: NDArray[np.integer]) -> bytes:
    """The stream of `symbols` (1-D) under a complete code.

    lengths: of the code, 0 for symbols that do not occur. The stream: the lanes' lengths in bits where there are two lanes
    or more (one byte: their width w of 1 to 4; then w bytes each, lowest first), and the bits.
    """
    if not symbols.size:
        return b""
    lanes = lane_count(symbols.size)
    steps = -(-symbols.size // lanes)
    # One more symbol, of no bits, fills the last row of the grid.
    bits = np.append(np.asarray(lengths, dtype=np.int64), 0)
    codes = np.append(huffman.codes(lengths), np.uint64(0))
    filled = np.full(steps * lanes, len(lengths), dtype=np.uint16)
    filled[: symbols.size] = symbols
    grid = filled.reshape(steps, lanes)
    per_block = max(1, _BLOCK // steps)
    lane_bits = np.zeros(lanes, dtype=np.int64)
    parts: list[NDArray[np.uint64]] = []
    position, carry = 0, np.uint64(0)
    for first in range(0, lanes, per_block):
        block = np.ascontiguousarray(grid[:, first : first + per_block].T)
        length = bits[block]
        lane_bits[first : first + per_block] = length.sum(axis=1)
        words = _pack(codes[block.reshape(-1)], length.reshape(-1), position & 63)
        words[0] |= carry
        position = (position & 63) + int(length.sum())
        parts.append(words[: position >> 6])
        carry = words[position >> 6]
    parts.append(np.array([carry], dtype=np.uint64))
    total = int(lane_bits.sum())
    payload = np.concatenate(parts).astype("<u8").tobytes()[: -(-total // 8)]
    return _lane_header(lane_bits) + payload


def _pack(codes: NDArray[np.uint64], lengths: NDArray[np.int64], offset: int) -> NDArray[np.uint64]:
    """64-bit words with the codes one after the other, the first at bit `offset` of the first word; a word more than needed."""
    ends = np.cumsum(lengths) + offset
    starts = ends - lengths
    words = np.zeros((int(ends[-1]) >> 6) + 2, dtype=np.uint64)
    word, shift = starts >> 6, (starts & 63).astype(np.uint64)
    begins = np.append(0, np.flatnonzero(np.diff(word)) + 1)
    # Codes do not overlap, so their sum is their union.
    words[word[begins]] = np.add.reduceat(codes << shift, begins)
    over = np.flatnonzero((starts & 63) + lengths > 64)
    words[word[over] + 1] |= codes[over] >> (np.uint64(64) - shift[over])
    return words


def _lane_header(lane_bits: NDArray[np.int64]) -> bytes:
    if lane_bits.size == 1:
        return b""
    width = max(1, (int(lane_bits.max()).bit_length() + 7) // 8)
    return bytes([width]) + lane_bits.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


def decode(data: memoryview, count: int, lengths: NDArray[np.integer]) -> tuple[NDArray[np.uint16], int]:
    """`count` symbols from the start of `data` under the code of these lengths: (symbols (count,), bytes used).

    lengths: of a complete code. Nothing larger than about 16 times `data` is allocated. Damaged: bytes that no encoder wrote.
    """
    if not count:
        return np.zeros(0, dtype=np.uint16), 0
    lanes = lane_count(count)
    lane_bits, start = _read_lane_header(data, lanes)
    table = _table(np.asarray(lengths, dtype=np.uint8).tobytes())
    body = data[start:]
    if lanes == 1:
        if count > 8 * len(body):
            raise Damaged("a stream is shorter than its number of symbols")
        longest = min(8 * len(body), count * int(np.max(lengths)))
        symbols, end = _walk(body, 0, longest, count, table)
        return symbols, -(-end // 8)
    total = int(lane_bits.sum())
    in_lane = np.full(lanes, count // lanes, dtype=np.int64)
    in_lane[: count % lanes] += 1
    if total > 8 * len(body) or bool((lane_bits < in_lane).any()):
        raise Damaged("a stream is shorter than its lanes")
    end_byte = -(-total // 8)
    body = body[:end_byte]
    ends = np.cumsum(lane_bits)
    if lanes <= _WALKED_LANES:
        out = np.empty(count, dtype=np.uint16)
        for lane in range(lanes):
            first, last = int(ends[lane] - lane_bits[lane]), int(ends[lane])
            out[lane::lanes], end = _walk(body, first, last, int(in_lane[lane]), table)
            if end != last:
                raise Damaged("a lane does not end where it should")
        return out, start + end_byte
    return _step(body, ends - lane_bits, ends, count, table), start + end_byte


@functools.lru_cache(maxsize=32)
def _table(lengths: bytes) -> NDArray[np.int64]:
    """Many short streams share a code: its table of at most 256 KiB is made once."""
    return huffman.decode_table(np.frombuffer(lengths, dtype=np.uint8))


def _read_lane_header(data: memoryview, lanes: int) -> tuple[NDArray[np.int64], int]:
    if lanes == 1:
        return np.zeros(1, dtype=np.int64), 0
    width = data[0] if len(data) else 0
    if not 1 <= width <= 4 or len(data) < 1 + lanes * width:
        raise Damaged("a stream has no lengths of its lanes")
    read = np.zeros((lanes, 4), dtype=np.uint8)
    read[:, :width] = np.frombuffer(data[1 : 1 + lanes * width], dtype=np.uint8).reshape(lanes, width)
    return read.view("<u4").reshape(-1).astype(np.int64), 1 + lanes * width


def _windows(data: memoryview) -> NDArray[np.int64]:
    """A view of 8 bytes from each byte on, over a copy with zeros behind: element i >> 3 holds bit i and the 56 after it."""
    padded = np.zeros(len(data) + 8, dtype=np.uint8)
    padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return np.ndarray((len(data) + 1,), dtype="<i8", buffer=padded, strides=(1,))


def _walk(
    data: memoryview, first: int, last: int, count: int, table: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], int]:
    """`count` symbols of one lane between two bits: looks up what would start at every bit, then hops. (symbols, end bit)."""
    begin = first >> 3
    view = _windows(data[begin : -(-last // 8)])
    bit = np.arange(first - 8 * begin, last - 8 * begin)
    rows = table[view[bit >> 3] >> (bit & 7) & (table.size - 1)]
    hops = (rows & 15).tolist()
    place, places = 0, []
    try:
        for _ in range(count):
            places.append(place)
            place += hops[place]
    except IndexError:
        raise Damaged("a stream ends too early") from None
    if place > last - first:
        raise Damaged("a stream ends too early")
    return (rows[places] >> 4).astype(np.uint16), first + place


def _step(
    data: memoryview, starts: NDArray[np.int64], ends: NDArray[np.int64], count: int, table: NDArray[np.int64]
) -> NDArray[np.uint16]:
    """All lanes side by side, a symbol of each at a time."""
    lanes = starts.size
    steps, rest = divmod(count, lanes)
    out = np.empty((steps + bool(rest)) * lanes, dtype=np.uint16)
    rows = out.reshape(-1, lanes)
    view, mask = _windows(data), table.size - 1
    per_load = 57 // mask.bit_length()
    offset = starts.copy()
    index, found, length = (np.empty(lanes, dtype=np.int64) for _ in range(3))
    for begin in range(0, len(rows), per_load):
        # A lane of a damaged stream may run past the end: it reads zeros there, and is found out below.
        bits = view[np.minimum(offset >> 3, view.size - 1)]
        bits >>= offset & 7
        for row in range(begin, min(begin + per_load, len(rows))):
            np.bitwise_and(bits, mask, out=index)
            table.take(index, out=found, mode="wrap")
            np.right_shift(found, 4, out=rows[row], casting="unsafe")
            np.bitwise_and(found, 15, out=length)
            if row == steps:
                length[rest:] = 0
            bits >>= length
            offset += length
    if not np.array_equal(offset, ends):
        raise Damaged("a lane does not end where it should")
    return out[:count]
