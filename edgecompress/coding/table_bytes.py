"""Numbers and code tables as few bytes, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import huffman
from edgecompress.coding.bitstream import Damaged

_FIRST_LENGTH = 4


def write_varint(number: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, the top bit set on all but the last."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """A LEB128 number below 2^63 at byte `at`, and the byte behind it."""
    number = 0
    for place in range(9):
        if at + place >= len(data):
            break
        byte = data[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise Damaged("a number ends too early or is too large")


def write_table(lengths: NDArray[np.uint8]) -> bytes:
    """The first used symbol and the number of symbols from there to the last used one (two varints), then their lengths.

    A length, against the used one before it (4 before the first): 0 the same, 10 one more, 110 one less, 1110 unused, 1111
    and four bits for any other. After an unused symbol one bit comes before: 0 unused again, 1 the length as above. 1111 and
    four zeros: the symbol before again and again; how often follows in Elias' gamma code, counted in binary digits by
    zeros. Bits fill bytes from the lowest up.
    """
    used = np.flatnonzero(lengths)
    first, last = int(used[0]), int(used[-1])
    span = lengths[first : last + 1]
    starts = np.flatnonzero(np.diff(span, prepend=0))
    bits: list[int] = []
    previous, unused = _FIRST_LENGTH, False
    for start, stop in zip(starts, np.append(starts[1:], span.size), strict=True):
        length, again = int(span[start]), int(stop - start) - 1
        if unused:
            bits.append(1)
        if not length:
            bits += [1, 1, 1, 0]
        elif length - previous in (0, 1, -1):
            bits += [0] if length == previous else [1, 0] if length > previous else [1, 1, 0]
        else:
            bits += [1, 1, 1, 1, *(length >> i & 1 for i in range(4))]
        previous, unused = length or previous, not length
        digits = again.bit_length()
        if again > (not length) + 7 + 2 * digits:
            bits += [1] * unused + [1, 1, 1, 1, 0, 0, 0, 0] + [0] * (digits - 1)
            bits += [again >> i & 1 for i in reversed(range(digits))]
        else:
            bits += [0] * again
    packed = np.packbits(np.array(bits, dtype=np.uint8), bitorder="little").tobytes()
    return write_varint(first) + write_varint(last - first + 1) + packed


class _BitReader:
    def __init__(self, data: memoryview) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").tolist()
        self.read = 0

    def bit(self) -> int:
        if self.read == len(self._bits):
            raise Damaged("a code table ends too early")
        self.read += 1
        return int(self._bits[self.read - 1])

    def ones(self, most: int) -> int:
        """How many ones come before a zero, which is read too; `most` at most."""
        for number in range(most):
            if not self.bit():
                return number
        return most

    def gamma(self) -> int:
        digits = 1
        while not self.bit():
            digits += 1
            if digits > 16:
                raise Damaged("a code table repeats too often")
        number = 1
        for _ in range(digits - 1):
            number = number << 1 | self.bit()
        return number


def read_table(data: memoryview, at: int) -> tuple[NDArray[np.uint8], int]:
    """A table from byte `at` on, and the byte behind it. Damaged: no table, or one that is no complete code."""
    first, at = read_varint(data, at)
    count, at = read_varint(data, at)
    end = first + count
    if not count or end > huffman.MAX_SYMBOLS:
        raise Damaged("a code table has no symbols or too many")
    bits = _BitReader(data[at : at + 2 * count + 2])  # 9 bits a symbol at most
    lengths = np.zeros(end, dtype=np.uint8)
    previous, unused, symbol = _FIRST_LENGTH, False, first
    while symbol < end:
        if unused and not bits.bit():
            symbol += 1
            continue
        kind = bits.ones(4)
        length = (previous, previous + 1, previous - 1, 0)[kind] if kind < 4 else sum(bits.bit() << i for i in range(4))
        if kind == 4 and not length:
            again = bits.gamma()
            if symbol + again > end or symbol == first:
                raise Damaged("a code table repeats too often")
            lengths[symbol : symbol + again] = lengths[symbol - 1]
            symbol += again
            continue
        if length > huffman.MAX_LENGTH:
            raise Damaged("a code table has a code that is too long")
        lengths[symbol] = length
        previous, unused, symbol = length or previous, not length, symbol + 1
    if np.count_nonzero(lengths) != 1 and not huffman.is_complete(lengths):
        raise Damaged("a code table is no prefix code")
    return lengths, at + -(-bits.read // 8)
