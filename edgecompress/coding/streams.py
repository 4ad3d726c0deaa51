"""A stream of symbols under a code table as bytes, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import bitstream, range_coder
from edgecompress.coding.table_bytes import HUFFMAN, Table


def encode(symbols: NDArray[np.integer], table: Table) -> bytes:
    """The stream of `symbols` (1-D), each of which the table has. A table of a single symbol takes no bytes."""
    if table.single or not symbols.size:
        return b""
    if table.coder == HUFFMAN:
        return bitstream.encode(symbols, table.costs)
    return range_coder.encode(symbols, table)


def decode(data: memoryview, count: int, table: Table) -> tuple[NDArray[np.uint16], int]:
    """`count` symbols from the start of `data`: (symbols (count,), bytes used). Damaged: bytes that no encoder wrote."""
    if table.single or not count:
        return np.full(count, np.flatnonzero(table.costs)[0], dtype=np.uint16), 0
    if table.coder == HUFFMAN:
        return bitstream.decode(data, count, table.costs)
    return range_coder.decode(data, count, table)
