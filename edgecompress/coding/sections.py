"""One tensor as a section of the container: which form it takes, the streams that it is made of, and back.

Deep Compression (Han, Mao & Dally 2016, sections 2 to 4): the few values of a tensor as a codebook, its non-zeros as
numbers into it, their places as relative indices, both by canonical Huffman codes. Nothing is rounded: a tensor is taken
as bit patterns, and the forms only differ in bytes. `docs/ecz-format.md` has every byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import relative_index, streams
from edgecompress.coding.table_bytes import HUFFMAN, Table, write_varint
from edgecompress.coding.tables import Stream, about, cost, table_for

RAW, GAPS, DENSE, PLANES, SUPPORT = range(5)
FORMS = ("raw", "gaps", "dense", "planes", "support")

FEW_VALUES = 256
"""Most distinct non-zero values of a tensor that is coded by a codebook."""
CHUNK = 1 << 20
"""Elements that are worked on at a time, so that the memory beside the tensor itself stays small."""

DTYPES = {
    "BOOL": (1, "u"), "U8": (1, "u"), "I8": (1, "i"), "F8_E4M3": (1, "f"), "F8_E5M2": (1, "f"),
    "U16": (2, "u"), "I16": (2, "i"), "F16": (2, "f"), "BF16": (2, "f"),
    "U32": (4, "u"), "I32": (4, "i"), "F32": (4, "f"), "U64": (8, "u"), "I64": (8, "i"), "F64": (8, "f"),
}  # fmt: skip
"""safetensors' names of the element types → (bytes, unsigned, signed or float: how their values are put in order)."""

Bits = NDArray[np.unsignedinteger]
"""A tensor as the bit patterns of its elements: 1-D, in memory order, little-endian."""


@dataclass(frozen=True)
class Coded:
    """A tensor whose form is chosen and whose streams are not yet written.

    form: index into FORMS. before: bytes of the section before the numbers of its tables. streams: what `tables.choose`
    wants to know of each stream, and its symbols (1-D). codebook: bit patterns of the values, ascending. index_bits: of a
    relative index, else 0. entries: of the index, fillers included. kept: elements that are not zero. fixed: (weight bits,
    index bits, entries) of the smallest fixed-width form, what the paper has before Huffman coding.
    bound_bits: the entropy of the values (among the non-zeros) and of the gaps (of any size) by their own counts; of a
    dense form that of the values with zero; None where there is no codebook.
    """

    form: int
    elements: int
    kept: int
    before: bytes
    streams: tuple[tuple[Stream, NDArray[np.integer]], ...] = ()
    codebook: bytes = b""
    values: int = 0
    index_bits: int = 0
    entries: int = 0
    fixed: tuple[int, int, int] | None = None
    bound_bits: float | None = None


def plan(bits: Bits, kind: str, *, support_of: Bits | None = None) -> Coded:
    """The cheapest form of a tensor by the exact bits of each (its own code tables counted).

    kind: "u", "i" or "f", see DTYPES. support_of: for a mask, the tensor that it belongs to: a mask that is 1 exactly where
    that tensor is not zero takes no bytes.
    """
    kept = int(np.count_nonzero(bits))
    if support_of is not None and _is_support(bits, support_of):
        return Coded(SUPPORT, bits.size, kept, bytes([SUPPORT]))
    size = bits.dtype.itemsize
    raw = Coded(RAW, bits.size, kept, bytes([RAW]))
    found = _few_values(bits)
    few = None if found is None else _few(bits, kept, _in_order(found, kind))
    if few is not None and 2 * _bits_alone(few, size) < 8 * size * bits.size:
        return few
    candidates = [raw, _planes(bits, kept)] + ([] if few is None else [few])
    return min(candidates, key=lambda c: _bits_alone(c, size))


def _is_support(mask: Bits, of: Bits) -> bool:
    return mask.size == of.size and all(
        np.array_equal(mask[i : i + CHUNK], (of[i : i + CHUNK] != 0).astype(mask.dtype))
        for i in range(0, mask.size, CHUNK)
    )


def _few_values(bits: Bits) -> Bits | None:
    """The distinct non-zero patterns; None where there are more than FEW_VALUES."""
    found = np.zeros(0, dtype=bits.dtype)
    # A short first piece tells most float tensors in no time.
    for start, stop in _pieces(bits.size, first=4096):
        piece = bits[start:stop]
        found = np.union1d(found, piece[piece != 0])
        if found.size > FEW_VALUES:
            return None
    return found


def _pieces(size: int, first: int = CHUNK) -> Iterator[tuple[int, int]]:
    start, stop = 0, min(first, size)
    while start < size:
        yield start, stop
        start, stop = stop, min(stop + CHUNK, size)


def _in_order(patterns: Bits, kind: str) -> Bits:
    """Patterns by the value that they stand for, so that neighbours in the codebook have like counts."""
    if kind == "u":
        return np.sort(patterns)
    top = patterns.dtype.type(1 << (8 * patterns.dtype.itemsize - 1))
    flipped = patterns ^ top
    if kind == "f":
        flipped = np.where(patterns & top, ~patterns, flipped)
    return patterns[np.argsort(flipped)]


def _sparse_parts(bits: Bits, kept: int, codebook: Bits) -> tuple[NDArray[np.uint16], NDArray[np.integer]]:
    """Of each non-zero: its number in the codebook, from 1 on, and its distance to the one before less one."""
    by_pattern = np.argsort(codebook)
    patterns, numbers = codebook[by_pattern], (by_pattern + 1).astype(np.uint16)
    values = np.empty(kept, dtype=np.uint16)
    gaps: NDArray[np.integer] = np.empty(kept, dtype=np.uint32 if bits.size < 1 << 32 else np.int64)
    done, before = 0, -1
    for start, stop in _pieces(bits.size):
        piece = bits[start:stop]
        places = np.flatnonzero(piece)
        if not places.size:
            continue
        values[done : done + places.size] = numbers[np.searchsorted(patterns, piece[places])]
        gaps[done : done + places.size] = np.diff(places, prepend=before - start) - 1
        done, before = done + places.size, start + int(places[-1])
    return values, gaps


def histogram(symbols: NDArray[np.integer], size: int = 0) -> NDArray[np.int64]:
    """How often each symbol occurs: int64 (at least `size`,). A piece at a time: bincount copies to 8 bytes an element."""
    total = np.zeros(size, dtype=np.int64)
    for start, stop in _pieces(symbols.size):
        counts = np.bincount(symbols[start:stop], minlength=total.size)
        if counts.size > total.size:
            total = np.concatenate([total, np.zeros(counts.size - total.size, dtype=np.int64)])
        total = total + counts
    return total


def entropy_bits(counts: NDArray[np.integer]) -> float:
    """Bits that a sequence with these counts takes at least when each symbol is coded alone: n · H."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum())


def _few(bits: Bits, kept: int, codebook: Bits) -> Coded:
    """A tensor of few values: by the places of its non-zeros, or every element by its number where that is cheaper."""
    values, gaps = _sparse_parts(bits, kept, codebook)
    counts = histogram(values, codebook.size + 1)
    with_zeros = counts.copy()
    with_zeros[0] = bits.size - kept
    sizes, times = _gap_counts(gaps)
    total, index_bits = _index_bits(counts, sizes, times)
    fixed = _fixed_width(codebook.size, bits.size, sizes, times)
    bound = entropy_bits(counts) + entropy_bits(times)
    if bits.size and about(with_zeros, "dense") < total:
        parts = ((Stream(with_zeros, "dense"), _numbered(bits, values)),)
        before = bytes([DENSE]) + write_varint(codebook.size)
        bound = min(bound, entropy_bits(with_zeros))
        return Coded(
            DENSE, bits.size, kept, before, parts, codebook.tobytes(), codebook.size, 0, bits.size, fixed, bound
        )
    index = relative_index.split(gaps, index_bits)
    symbols = values
    if index.filler.any():
        symbols = np.zeros(index.gaps.size, dtype=np.uint16)
        symbols[~index.filler] = values
    before = bytes([GAPS | (index_bits - 1) << 4]) + write_varint(symbols.size) + write_varint(codebook.size)
    counts[0] = symbols.size - kept
    coded = ((Stream(counts, "values"), symbols), (Stream(histogram(index.gaps), "gaps"), index.gaps))
    return Coded(
        GAPS, bits.size, kept, before, coded if kept else (), codebook.tobytes(), codebook.size, index_bits, symbols.size,
        fixed, bound,
    )  # fmt: skip


def _gap_counts(gaps: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different gaps and how often each occurs."""
    if gaps.size and int(gaps.max()) < CHUNK:
        counts = histogram(gaps)
        sizes = np.flatnonzero(counts)
        return sizes, counts[sizes]
    sizes, times = np.unique(gaps, return_counts=True)
    return sizes.astype(np.int64), times


def _index_bits(values: NDArray[np.int64], sizes: NDArray[np.int64], times: NDArray[np.int64]) -> tuple[float, int]:
    """The width of the index for which the Huffman codes of both streams are the shortest: (bits, with tables; width).

    The bits of each width are exact, the fillers counted out. Tables are left out of the comparison: streams share them.
    """
    choices = []
    for width in range(1, relative_index.MAX_BITS + 1):
        fillers = int((sizes >> width) @ times)
        stored = np.bincount(sizes & ((1 << width) - 1), times, 1 << width if fillers else 0).astype(np.int64)
        stored[-1:] += fillers
        with_fillers = values.copy()
        with_fillers[0] = fillers
        choices.append((_coded_bits(stored) + _coded_bits(with_fillers), width, stored, with_fillers))
        if not fillers:
            break
    _, width, stored, with_fillers = min(choices, key=lambda choice: choice[:2])
    return about(stored, "gaps") + about(with_fillers, "values"), width


def _coded_bits(counts: NDArray[np.int64]) -> float:
    return cost(counts, table_for(counts, HUFFMAN)) if counts.any() else 0


def _fixed_width(
    values: int, elements: int, sizes: NDArray[np.int64], times: NDArray[np.int64]
) -> tuple[int, int, int]:
    """(weight bits, index bits, entries) of the smallest form without entropy coding; index bits 0: every element is an entry."""
    choices = [(elements * values.bit_length(), values.bit_length(), 0, elements)]
    for width in range(1, relative_index.MAX_BITS + 1):
        fillers = int((sizes >> width) @ times)
        weight_bits = (values - (not fillers)).bit_length() if values else 0
        entries = int(times.sum()) + fillers
        choices.append((entries * (weight_bits + width), weight_bits, width, entries))
    return min(choices)[1:]


def _numbered(bits: Bits, values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Every element's number in the codebook, 0 for zero."""
    symbols = np.zeros(bits.size, dtype=np.uint16)
    done = 0
    for start, stop in _pieces(bits.size):
        places = np.flatnonzero(bits[start:stop])
        symbols[start + places] = values[done : done + places.size]
        done += places.size
    return symbols


def _planes(bits: Bits, kept: int) -> Coded:
    """Bytes of like weight together: the byte with the exponents has few values, those of the fraction stay raw."""
    size = bits.dtype.itemsize
    bytes_of = bits.view(np.uint8).reshape(-1, size)
    parts = tuple(
        (Stream(histogram(bytes_of[:, i], 256), f"plane {i} of {size}", raw_bits=8 * bits.size), bytes_of[:, i])
        for i in range(size)
    )
    return Coded(PLANES, bits.size, kept, bytes([PLANES]), parts if bits.size else ())


def _bits_alone(coded: Coded, size: int) -> float:
    if coded.form == RAW:
        return 8 * size * coded.elements
    total: float = 8 * (len(coded.codebook) + len(coded.before) + len(coded.streams))
    for stream, _ in coded.streams:
        own = about(stream.counts, stream.family)
        total += own if stream.raw_bits is None else min(own, stream.raw_bits)
    return total


def write(coded: Coded, bits: Bits, tables: Sequence[Table], picks: Sequence[int | None]) -> tuple[bytes, ...]:
    """The parts of the section: its head, then each of its streams. picks: the table of each stream, None for raw."""
    if coded.form == RAW or (coded.form == PLANES and all(pick is None for pick in picks)):
        return bytes([RAW]), bits.tobytes()
    head = coded.before
    for pick in picks:
        head += write_varint(0 if pick is None else pick + 1) if coded.form == PLANES else write_varint(pick or 0)
    parts = [head + coded.codebook]
    for (_, symbols), pick in zip(coded.streams, picks, strict=True):
        parts.append(np.ascontiguousarray(symbols).tobytes() if pick is None else streams.encode(symbols, tables[pick]))
    return tuple(parts)
