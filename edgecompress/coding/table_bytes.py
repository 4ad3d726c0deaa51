"""Numbers and code tables as few bytes, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import huffman
from edgecompress.coding.bitstream import Damaged

HUFFMAN, RANGE = range(2)
CODERS = ("huffman", "range")
MAX_COST = 31
"""Largest cost of a symbol of a range table."""
_FIRST_COST = 4
_EXPLICIT_BITS = 5


@dataclass(frozen=True)
class Table:
    """How the symbols of a stream are coded.

    coder: index into CODERS. costs: uint8 (symbols of the alphabet,), 0 for a symbol that does not occur; HUFFMAN: the
    lengths of a complete code in bits; RANGE: a probability of 2^(-(cost - 1) / 2) to the others', 31 at most.
    """

    coder: int
    costs: NDArray[np.uint8]

    @property
    def single(self) -> bool:
        """Whether one symbol is used, so that a stream takes no bytes."""
        return int(np.count_nonzero(self.costs)) == 1


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


def write_table(table: Table) -> bytes:
    """The first used symbol · 2 + the coder and the number of symbols from there to the last used one (varints), then their costs.

    A cost, against the used one before it (4 before the first): 0 the same; 10, 110, 1110 and a sign (1: less) one, two,
    three more or less; 11110 unused; 11111 and five bits for any other. After an unused symbol one bit comes before: 0
    unused again, 1 the cost as above. 11111 and five zeros: as the symbol before again and again; how often follows in
    Elias' gamma code. Bits fill bytes from the lowest up.
    """
    used = np.flatnonzero(table.costs)
    first, last = int(used[0]), int(used[-1])
    span = table.costs[first : last + 1]
    starts = np.flatnonzero(np.diff(span, prepend=0))
    bits: list[int] = []
    previous, unused = _FIRST_COST, False
    for start, stop in zip(starts, np.append(starts[1:], span.size), strict=True):
        cost, again = int(span[start]), int(stop - start) - 1
        if unused:
            bits.append(1)
        step = cost - previous
        if not cost:
            bits += [1, 1, 1, 1, 0]
        elif not step:
            bits.append(0)
        elif abs(step) <= 3:
            bits += [1] * abs(step) + [0, int(step < 0)]
        else:
            bits += [1] * 5 + [cost >> i & 1 for i in range(_EXPLICIT_BITS)]
        previous, unused = cost or previous, not cost
        digits = again.bit_length()
        if again > unused + 10 + 2 * digits - 1:
            bits += [1] * unused + [1] * 5 + [0] * _EXPLICIT_BITS + [0] * (digits - 1)
            bits += [again >> i & 1 for i in reversed(range(digits))]
        else:
            bits += [0] * again
    packed = np.packbits(np.array(bits, dtype=np.uint8), bitorder="little").tobytes()
    return write_varint(first << 1 | table.coder) + write_varint(last - first + 1) + packed


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


def read_table(data: memoryview, at: int) -> tuple[Table, int]:
    """A table from byte `at` on, and the byte behind it. Damaged: no table, or one of lengths that are no complete code."""
    first, at = read_varint(data, at)
    count, at = read_varint(data, at)
    coder, first = first & 1, first >> 1
    end = first + count
    if not count or end > huffman.MAX_SYMBOLS:
        raise Damaged("a code table has no symbols or too many")
    bits = _BitReader(data[at : at + 2 * count + 2])  # 11 bits a symbol at most
    costs = np.zeros(end, dtype=np.uint8)
    previous, unused, symbol = _FIRST_COST, False, first
    while symbol < end:
        if unused and not bits.bit():
            symbol += 1
            continue
        kind = bits.ones(5)
        if kind == 5:
            cost = sum(bits.bit() << i for i in range(_EXPLICIT_BITS))
        elif kind == 4:
            cost = 0
        else:
            cost = previous + (kind and (-kind if bits.bit() else kind))
        if kind == 5 and not cost:
            again = bits.gamma()
            if symbol + again > end or symbol == first:
                raise Damaged("a code table repeats too often")
            costs[symbol : symbol + again] = costs[symbol - 1]
            symbol += again
            continue
        if not 0 <= cost <= (MAX_COST if coder == RANGE else huffman.MAX_LENGTH):
            raise Damaged("a code table has a code that is too long")
        costs[symbol] = cost
        previous, unused, symbol = cost or previous, not cost, symbol + 1
    table = Table(coder, costs)
    if not costs.any() or not (coder == RANGE or table.single or huffman.is_complete(costs)):
        raise Damaged("a code table is no prefix code")
    return table, at + -(-bits.read // 8)
