"""Positions of the non-zero weights as gaps of few bits (Han, Mao & Dally 2016, "Deep Compression", section 2 and figure 2).

Each entry stores its distance to the entry before it less one, in b bits; the entry before the first stands at -1. A
distance above 2^b is bridged by fillers: entries that advance by 2^b and hold a weight of zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecompress.errors import UserError

MAX_BITS = 12


class RelativeIndex(NamedTuple):
    """gaps: uint16 (entries,), each stored gap, 0 to 2^bits - 1. filler: bool (entries,), the entries of weight zero."""

    gaps: NDArray[np.uint16]
    filler: NDArray[np.bool_]


def encode(positions: Iterable[int] | NDArray[np.integer], bits: int) -> RelativeIndex:
    """The relative index of positions (rising, from 0 on) with gaps of `bits` bits, 1 to 12.

    Positions 1, 4, 15 with 3 bits, figure 2 of the paper: distances 2, 3, 8 (filler), 3, stored as 1, 2, 7, 2. UserError:
    positions that do not rise or are negative, another number of bits.
    """
    places = np.asarray(positions if isinstance(positions, np.ndarray) else list(positions))
    if places.size and (places.ndim != 1 or not np.issubdtype(places.dtype, np.integer)):
        raise UserError("positions are no list of whole numbers", fix="Give the flat positions of the non-zeros.")
    gaps = (np.diff(places.astype(np.int64), prepend=-1) - 1).astype(np.int64)
    if gaps.size and int(gaps.min()) < 0:
        raise UserError("positions do not rise from 0 on", fix="Give each position once, in order.")
    return split(gaps, bits)


def split(gaps: NDArray[np.integer], bits: int) -> RelativeIndex:
    """Gaps of any size (distance - 1, each 0 or more) as entries of `bits` bits, the fillers of a gap before it."""
    if not 1 <= bits <= MAX_BITS:
        raise UserError(f"an index of {bits} bits", fix=f"Give 1 to {MAX_BITS} bits.")
    over = gaps >> bits
    if not over.any():
        return RelativeIndex(gaps.astype(np.uint16), np.zeros(gaps.size, dtype=bool))
    places = np.cumsum(over + 1) - 1
    stored = np.full(int(places[-1]) + 1, (1 << bits) - 1, dtype=np.uint16)
    filler = np.ones(stored.size, dtype=bool)
    stored[places] = gaps & ((1 << bits) - 1)
    filler[places] = False
    return RelativeIndex(stored, filler)


def decode(index: RelativeIndex, bits: int | None = None) -> NDArray[np.int64]:
    """The positions (int64, rising) of the entries that are no fillers.

    bits: where given, a stored gap that does not fit in so many is a UserError.
    """
    gaps, filler = (np.asarray(part) for part in index)
    if gaps.size != filler.size:
        raise UserError("a relative index has as many gaps as entries", fix="Give what `encode` returned.")
    if bits is not None and gaps.size and int(gaps.max()) >> bits:
        raise UserError(f"a stored gap does not fit in {bits} bits", fix="Give the bits that it was encoded with.")
    places: NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)
    places += np.arange(places.size)
    return places[~filler.astype(bool)]
