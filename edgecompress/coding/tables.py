"""The choice of code tables: which streams of a file share one.

A file's streams are many and often short, so that a table of its own costs some of them more than it saves. The tables
lie in one pool, and each stream names one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecompress.coding import huffman, range_coder
from edgecompress.coding.table_bytes import CODERS, HUFFMAN, RANGE, Table, write_table
from edgecompress.errors import UserError, near_misses

_ROUNDS = 3
_MOST_CANDIDATES = 256
"""Streams, the longest first, that are offered a table of their own."""
_NO_CODE = 1 << 20
"""Bits that a symbol without a code counts: no stream takes such a table."""
_UNIT = 256
"""Costs are whole numbers of 1/256 bit, so that no order of adding changes a sum."""
_SMOOTHINGS = ((2, 1.3), (6, 1.3), (12, 1.5), (24, 1.5))
"""Of gaps: (symbols that keep their own count, growth of the groups behind them that share their mean)."""

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


def coders(name: str) -> tuple[int, ...]:
    """The coders that a choice may take: "huffman" alone, or with "range" whichever is the smaller for a stream."""
    if name not in CODERS:
        raise UserError(f"{name!r} is no coder", where="coder", fix=near_misses(name, CODERS))
    return (HUFFMAN, RANGE) if name == CODERS[RANGE] else (HUFFMAN,)


def table_for(counts: Counts, coder: int) -> Table:
    """The best table without regard to its bytes. Huffman codes have at most 12 bits (15 for alphabets with more than 512 used
    symbols), so that decoding them takes a small table."""
    if coder == RANGE:
        return Table(RANGE, range_coder.costs_for(counts))
    limit = 12 if int(np.count_nonzero(counts)) <= 512 else huffman.MAX_LENGTH
    return Table(HUFFMAN, np.array(huffman.limited_code_lengths(counts, limit), dtype=np.uint8))


def cost(counts: Counts, table: Table) -> float:
    """Bits of a stream under a table that has a code for each of its symbols: exact for Huffman codes, else near."""
    unit_costs, overhead = _unit_costs(table)
    return int(counts[: unit_costs.size] @ unit_costs[: counts.size]) / _UNIT + overhead


def written_bits(counts: Counts, table: Table, written: bytes) -> int:
    """Bits of a stream as it was written: of Huffman codes the sum of their lengths, without lanes and padding."""
    return round(cost(counts, table)) if table.coder == HUFFMAN else 8 * len(written)


def _unit_costs(table: Table) -> tuple[NDArray[np.int64], int]:
    """Each symbol's cost in 1/256 bit, and the bits that a stream takes beside."""
    found = np.zeros(table.costs.size, dtype=np.int64)
    used = table.costs > 0
    if table.single:
        return found, 0
    if table.coder == HUFFMAN:
        found[used] = _UNIT * table.costs[used].astype(np.int64)
        return found, 0
    found[used] = np.round(-_UNIT * np.log2(range_coder.probabilities(table.costs)))
    return found, range_coder.OVERHEAD_BITS


def best_table(counts: Counts, family: str, allowed: Sequence[int]) -> tuple[float, Table]:
    """(bits of the stream and of its table, the table): the best one, or one that is shorter to write and nearly as good."""
    candidates = [table_for(counts, coder) for coder in allowed]
    if family == "gaps":
        candidates += [_smoothed(counts, *setting, coder) for setting in _SMOOTHINGS for coder in allowed]
    return min(((_with_table(counts, table), table) for table in candidates), key=lambda pair: pair[0])


def about(counts: Counts, family: str) -> float:
    """Bits of a stream by Huffman codes and of a table for it, at most a little above the best: what forms are compared by."""
    if not counts.any():
        return 0
    setting = _SMOOTHINGS[0]
    return _with_table(counts, _smoothed(counts, *setting, HUFFMAN) if family == "gaps" else table_for(counts, HUFFMAN))


def _with_table(counts: Counts, table: Table) -> float:
    return cost(counts, table) + 8 * len(write_table(table))


def _smoothed(counts: Counts, kept: int, growth: float, coder: int) -> Table:
    """A table for counts made to fall: its costs rise from symbol to symbol, which takes few bytes to write."""
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
    costs = np.zeros(counts.size, dtype=np.uint8)
    costs[order] = table_for(weights[order], coder).costs
    return Table(coder, costs)


def choose(streams: Sequence[Stream], allowed: Sequence[int] = (HUFFMAN,)) -> tuple[list[Table], list[int | None]]:
    """Tables for all streams and each stream's table (None: stored raw), the whole near its smallest.

    A facility location by greedy adding: a table joins the pool while the bits that it saves the streams exceed its own.
    Then each table is made anew for the streams that took it, and the choice is made again.
    """
    if not streams:
        return [], []
    longest = sorted(range(len(streams)), key=lambda i: -int(streams[i].counts.sum()))[:_MOST_CANDIDATES]
    families: dict[str, list[Stream]] = {}
    for stream in streams:
        families.setdefault(stream.family, []).append(stream)
    candidates = [
        _common(members, coder)
        for members in [*families.values(), *([streams[i]] for i in longest)]
        for coder in allowed
    ]
    best = _assign(streams, candidates)
    refitted: list[Table] = []
    for number in range(_ROUNDS):
        found = _assign(streams, refitted + candidates) if number else best
        if found[0] < best[0]:
            best = found
        takers: list[list[Stream]] = [[] for _ in best[1]]
        for stream, pick in zip(streams, best[2], strict=True):
            if pick is not None:
                takers[pick].append(stream)
        refitted = [_common(members, table.coder) for members, table in zip(takers, best[1], strict=True)]
    return best[1], best[2]


def _common(members: Sequence[Stream], coder: int) -> Table:
    total = np.zeros(max(s.counts.size for s in members), dtype=np.int64)
    for stream in members:
        total[: stream.counts.size] += stream.counts
    return best_table(total, members[0].family, [coder])[1]


def _assign(streams: Sequence[Stream], tables: list[Table]) -> tuple[float, list[Table], list[int | None]]:
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
    total = float(prices[used].sum() + now.sum())
    return total, [tables[t] for t in used], [None if pick is None else used.index(pick) for pick in picks]


def _costs(streams: Sequence[Stream], tables: Sequence[Table]) -> NDArray[np.float64]:
    """Bits of each stream under each table (streams, tables)."""
    size = max([*(s.counts.size for s in streams), *(t.costs.size for t in tables)])
    units = np.full((len(tables), size), _NO_CODE * _UNIT, dtype=np.float64)
    overheads = np.zeros(len(tables))
    for place, table in enumerate(tables):
        used = np.flatnonzero(table.costs)
        costs, overheads[place] = _unit_costs(table)
        units[place, used] = costs[used]
    found = np.empty((len(streams), len(tables)))
    for place, stream in enumerate(streams):
        found[place] = units[:, : stream.counts.size] @ stream.counts.astype(np.float64) / _UNIT + overheads
    return found
