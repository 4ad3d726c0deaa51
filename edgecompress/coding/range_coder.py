"""Streams by constriction's range coder (asymmetric numeral systems): nearer to the entropy than whole bits a symbol.

The library (Bamler 2022, https://bamler-lab.github.io/constriction; MIT, Apache-2.0 or BSL-1.0) is optional: the extra
`range`. It is needed to write such a stream and to read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding.bitstream import Damaged
from edgecompress.coding.table_bytes import MAX_COST, Table, read_varint, write_varint
from edgecompress.errors import UserError

OVERHEAD_BITS = 24
"""What a stream takes beside its symbols, about: its length, and the half-used last word."""


def costs_for(counts: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The costs of a table for these counts: probabilities to half a bit, which loses about 0.1 % of a stream."""
    costs = np.zeros(counts.size, dtype=np.uint8)
    used = np.flatnonzero(counts)
    share = counts[used] / counts[used].sum()
    costs[used] = np.clip(np.round(1 - 2 * np.log2(share)), 1, MAX_COST)
    return costs


def probabilities(costs: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of the used symbols, in order."""
    weights = np.exp2((1.0 - costs[costs > 0]) / 2)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def encode(symbols: NDArray[np.integer], table: Table) -> bytes:
    """varint bytes, then constriction's 32-bit words of the ANS coder, lowest byte first, without the zero bytes at the end."""
    stream = _library().stream
    numbers = np.zeros(table.costs.size, dtype=np.int32)
    used = np.flatnonzero(table.costs)
    numbers[used] = np.arange(used.size)
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(numbers[symbols], _model(stream, table))
    data: bytes = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return write_varint(len(data)) + data


def decode(data: memoryview, count: int, table: Table) -> tuple[NDArray[np.uint16], int]:
    """`count` symbols from the start of `data`: (symbols (count,), bytes used). `count` is checked by the caller: a stream may
    take much less than a bit a symbol. Damaged: bytes that no encoder wrote."""
    stream = _library().stream
    length, start = read_varint(data, 0)
    if length > len(data) - start or (length and not data[start + length - 1]):
        raise Damaged("a stream is longer than its section")
    words = np.frombuffer(bytes(data[start : start + length]) + b"\0" * (-length % 4), dtype="<u4").astype(np.uint32)
    coder = stream.stack.AnsCoder(words)
    found = coder.decode(_model(stream, table), count)
    if not coder.is_empty():
        raise Damaged("a stream does not end where it should")
    return np.flatnonzero(table.costs).astype(np.uint16)[found], start + length


def _model(stream: Any, table: Table) -> Any:
    return stream.model.Categorical(probabilities(table.costs), perfect=False)


def _library() -> Any:
    try:
        import constriction
    except ImportError:
        raise UserError(
            "a range-coded stream needs the package constriction", fix="pip install 'edgecompress[range]'"
        ) from None
    return constriction
