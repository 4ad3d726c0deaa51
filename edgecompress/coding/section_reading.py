"""A section of the container back to the tensor that it holds. Every length is checked before memory is taken for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import streams
from edgecompress.coding.bitstream import Damaged
from edgecompress.coding.sections import CHUNK, DENSE, GAPS, PLANES, RAW, SUPPORT, Bits
from edgecompress.coding.table_bytes import Table, read_varint

Tables = Sequence[Table]


def form(data: memoryview) -> int:
    """The form of a section, an index into `sections.FORMS`. Damaged: an empty section or an unknown form."""
    found = data[0] & 15 if len(data) else -1
    if not RAW <= found <= SUPPORT or (found != GAPS and data[0] >> 4):
        raise Damaged("a section is of no known form")
    return found


def read(data: memoryview, elements: int, size: int, tables: Tables) -> Bits:
    """The bit patterns (elements,) of `size` bytes each; of any form but SUPPORT, which another tensor tells.

    Memory: the tensor, at most 8 bytes for each of its elements beside it, 16 times `data`, and some MB. Damaged: bytes
    that no encoder wrote.
    """
    kind = form(data)
    dtype = np.dtype(f"<u{size}")
    if kind == RAW:
        if len(data) != 1 + elements * size:
            raise Damaged("a raw section has another length than its tensor")
        return np.frombuffer(data, dtype=dtype, offset=1).copy()
    if kind == PLANES:
        return _read_planes(data, elements, size, tables)
    if kind == GAPS:
        return _read_gaps(data, elements, dtype, tables)
    if kind == DENSE:
        return _read_dense(data, elements, dtype, tables)
    raise Damaged("a section that stands for another tensor's zeros is where there is none")


def _table(data: memoryview, at: int, tables: Tables) -> tuple[Table, int]:
    number, at = read_varint(data, at)
    if number >= len(tables):
        raise Damaged("a section names a code table that there is not")
    return tables[number], at


def _codebook(data: memoryview, at: int, values: int, dtype: np.dtype[np.unsignedinteger]) -> tuple[Bits, int]:
    """The values with a zero before them, so that symbol 0 stands for zero."""
    end = at + values * dtype.itemsize
    if end > len(data):
        raise Damaged("a codebook is longer than its section")
    codebook = np.zeros(values + 1, dtype=dtype)
    codebook[1:] = np.frombuffer(data[at:end], dtype=dtype)
    return codebook, end


def _symbols(data: memoryview, at: int, count: int, below: int, table: Table) -> tuple[NDArray[np.uint16], int]:
    symbols, used = streams.decode(data[at:], count, table)
    if count and int(symbols.max()) >= below:
        raise Damaged("a stream holds a symbol outside its alphabet")
    return symbols, at + used


def _end(data: memoryview, at: int) -> None:
    if at != len(data):
        raise Damaged("a section goes on behind its end")


def _read_gaps(data: memoryview, elements: int, dtype: np.dtype[np.unsignedinteger], tables: Tables) -> Bits:
    index_bits = (data[0] >> 4) + 1
    entries, at = read_varint(data, 1)
    values, at = read_varint(data, at)
    if entries > elements:
        raise Damaged("an index has more entries than its tensor has elements")
    if not entries:
        _end(data, at)
        return np.zeros(elements, dtype=dtype)
    value_table, at = _table(data, at, tables)
    gap_table, at = _table(data, at, tables)
    codebook, at = _codebook(data, at, values, dtype)
    symbols, at = _symbols(data, at, entries, values + 1, value_table)
    gaps, at = _symbols(data, at, entries, 1 << index_bits, gap_table)
    _end(data, at)
    tensor = np.zeros(elements, dtype=dtype)
    before = -1
    for start in range(0, entries, CHUNK):
        places = gaps[start : start + CHUNK].astype(np.int64)
        places += 1
        places[0] += before
        np.cumsum(places, out=places)
        before = int(places[-1])
        if before >= elements:
            raise Damaged("an index goes beyond its tensor")
        # Fillers write the zero that is there already.
        tensor[places] = codebook[symbols[start : start + CHUNK]]
    return tensor


def _read_dense(data: memoryview, elements: int, dtype: np.dtype[np.unsignedinteger], tables: Tables) -> Bits:
    values, at = read_varint(data, 1)
    if not elements:
        _end(data, at)
        return np.zeros(0, dtype=dtype)
    table, at = _table(data, at, tables)
    codebook, at = _codebook(data, at, values, dtype)
    symbols, at = _symbols(data, at, elements, values + 1, table)
    _end(data, at)
    tensor = np.empty(elements, dtype=dtype)
    for start in range(0, elements, CHUNK):
        tensor[start : start + CHUNK] = codebook[symbols[start : start + CHUNK]]
    return tensor


def _read_planes(data: memoryview, elements: int, size: int, tables: Tables) -> Bits:
    numbers, at = [], 1
    for _ in range(size):
        number, at = read_varint(data, at)
        if number > len(tables):
            raise Damaged("a section names a code table that there is not")
        numbers.append(number)
    raw = sum(elements for number in numbers if not number)
    if raw > len(data) - at:
        raise Damaged("a section is shorter than its raw bytes")
    tensor = np.empty((elements, size), dtype=np.uint8)
    for place, number in enumerate(numbers):
        if number:
            symbols, at = _symbols(data, at, elements, 256, tables[number - 1])
            tensor[:, place] = symbols
        else:
            plane = np.frombuffer(data[at : at + elements], dtype=np.uint8)
            if plane.size != elements:
                raise Damaged("a section is shorter than its raw bytes")
            tensor[:, place] = plane
            at += elements
    _end(data, at)
    return tensor.reshape(-1).view(f"<u{size}")
