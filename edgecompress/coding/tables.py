"""The choice of code tables: which streams of a file share one.

A file's streams are many and often short, so that a table of its own costs some of them more than it saves. The tables
lie in one pool, and each stream names one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import huffman
from edgecompress.coding.table_bytes import write_table

_ROUNDS = 3
_MOST_CANDIDATES = 256
"""Streams, the longest first, that are offered a table of their own."""
_NO_CODE = 1 << 20
"""Bits that a symbol without a code counts: no stream takes such a table."""
_SMOOTHINGS = ((2, 1.3), (6, 1.3), (12, 1.5), (24, 1.5))
"""Of gaps: (symbols that keep their own count, growth of the groups behind them that share their mean)."""

Lengths = NDArray[np.uint8]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """What the choice of tables needs to know of a stream.

    counts: int64 (symbols of the alphabet,). family: streams of one family have like distributions; those of "gaps" fall
    from symbol to symbol, but for the last. raw_bits: what the stream takes without a code, where it can be stored so.
    """

    counts: Counts
    family: str
    raw_bits: int | None = None


def lengths_for(counts: Counts) -> Lengths:
    """Code lengths for decoding by a small table: at most 12 bits, 15 for alphabets with more than 512 used symbols."""
    limit = 12 if int(np.count_nonzero(counts)) <= 512 else huffman.MAX_LENGTH
    return np.array(huffman.limited_code_lengths(counts, limit), dtype=np.uint8)


def cost(counts: Counts, lengths: Lengths) -> int:
    """Bits of a stream under a table that has a code for each of its symbols. A table of one symbol takes no bits."""
    if np.count_nonzero(lengths) == 1:
        return 0
    return int(counts[: lengths.size] @ lengths[: counts.size].astype(np.int64))


def best_table(counts: Counts, family: str) -> tuple[int, Lengths]:
    """(bits of the stream and of its table, the table): the optimal one, or one that is shorter to write and nearly as good."""
    candidates = [lengths_for(counts)]
    if family == "gaps":
        candidates += [_smoothed(counts, kept, growth) for kept, growth in _SMOOTHINGS]
    return min(((_with_table(counts, table), table) for table in candidates), key=lambda pair: pair[0])


def about(counts: Counts, family: str) -> int:
    """Bits of a stream and of a table for it, at most a little above the best: what forms are compared by."""
    if not counts.any():
        return 0
    return _with_table(counts, _smoothed(counts, *_SMOOTHINGS[0]) if family == "gaps" else lengths_for(counts))


def _with_table(counts: Counts, lengths: Lengths) -> int:
    return cost(counts, lengths) + 8 * len(write_table(lengths))


def _smoothed(counts: Counts, kept: int, growth: float) -> Lengths:
    """A code for counts made to fall: its lengths rise from symbol to symbol, which takes few bytes to write."""
    smooth = counts.astype(np.float64)
    start, width = kept, 1.0
    while start < counts.size:
        stop = min(counts.size, start + round(width))
        smooth[start:stop] = smooth[start:stop].mean()
        start, width = stop, width * growth
    weights = np.maximum(np.round(64 * np.minimum.accumulate(smooth)), 1).astype(np.int64)
    # The last symbol is also that of the fillers.
    weights[-1] = max(int(weights[-1]), 64 * int(counts[-1]))
    # Of equal weights the later symbols get the longer codes.
    order = np.lexsort((-np.arange(counts.size), weights))
    lengths = np.zeros(counts.size, dtype=np.uint8)
    lengths[order] = lengths_for(weights[order])
    return lengths


def choose(streams: Sequence[Stream]) -> tuple[list[Lengths], list[int | None]]:
    """Tables for all streams and each stream's table (None: stored raw), the whole near its smallest.

    A facility location by greedy adding: a table joins the pool while the bits that it saves the streams exceed its own.
    Then each table is made anew for the streams that took it, and the choice is made again.
    """
    if not streams:
        return [], []
    longest = sorted(range(len(streams)), key=lambda i: -int(streams[i].counts.sum()))[:_MOST_CANDIDATES]
    own = [best_table(streams[i].counts, streams[i].family)[1] for i in longest]
    families: dict[str, list[Stream]] = {}
    for stream in streams:
        families.setdefault(stream.family, []).append(stream)
    common = [_table_for(members) for members in families.values()]
    best: tuple[int, list[Lengths], list[int | None]] | None = None
    refitted: list[Lengths] = []
    for _ in range(_ROUNDS):
        found = _assign(streams, [*common, *refitted, *own])
        if best is None or found[0] < best[0]:
            best = found
        takers: list[list[Stream]] = [[] for _ in best[1]]
        for stream, pick in zip(streams, best[2], strict=True):
            if pick is not None:
                takers[pick].append(stream)
        refitted = [_table_for(members) for members in takers]
    return best[1], best[2]


def _table_for(members: Sequence[Stream]) -> Lengths:
    total = np.zeros(max(s.counts.size for s in members), dtype=np.int64)
    for stream in members:
        total[: stream.counts.size] += stream.counts
    return best_table(total, members[0].family)[1]


def _assign(streams: Sequence[Stream], tables: list[Lengths]) -> tuple[int, list[Lengths], list[int | None]]:
    """(bits of all streams and tables, the tables that are worth their bytes, each stream's table)."""
    costs = _costs(streams, tables)
    prices = np.array([8 * len(write_table(table)) for table in tables], dtype=np.float64)
    raw = np.array([np.inf if s.raw_bits is None else s.raw_bits for s in streams], dtype=np.float64)
    # Above all that could be saved, so that each stream that cannot be raw has a table in the end.
    most = float(costs.max() + prices.sum()) + 1
    now = np.minimum(raw, most)
    open_tables: list[int] = []
    while True:
        gains = np.maximum(now[:, None] - costs, 0).sum(axis=0) - prices
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        open_tables.append(best)
        now = np.minimum(now, costs[:, best])
    picks: list[int | None] = []
    for place in range(len(streams)):
        pick = min(open_tables, key=lambda t: costs[place, t], default=None)
        picks.append(None if pick is None or raw[place] <= costs[place, pick] else pick)
    used = sorted({pick for pick in picks if pick is not None})
    total = int(prices[used].sum()) + int(now.sum())
    return total, [tables[t] for t in used], [None if pick is None else used.index(pick) for pick in picks]


def _costs(streams: Sequence[Stream], tables: Sequence[Lengths]) -> NDArray[np.float64]:
    """Bits of each stream under each table (streams, tables): whole numbers, so that no order of adding changes them."""
    size = max([*(s.counts.size for s in streams), *(t.size for t in tables)])
    lengths = np.full((len(tables), size), _NO_CODE, dtype=np.float64)
    for row, table in zip(lengths, tables, strict=True):
        used = np.flatnonzero(table)
        row[used] = 0 if used.size == 1 else table[used]
    found = np.empty((len(streams), len(tables)))
    for place, stream in enumerate(streams):
        found[place] = lengths[:, : stream.counts.size] @ stream.counts.astype(np.float64)
    return found
