"""Canonical Huffman codes: optimal lengths, lengths under a limit, codes, and the table that decodes them.

Huffman 1952 (the two-queue form of Van Leeuwen 1976 over sorted counts); Larmore & Hirschberg 1990 (package-merge) for the
limit. A code is told by its lengths alone: codes are numbered by (length, symbol), as in DEFLATE (RFC 1951, 3.2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecompress.errors import UserError

MAX_LENGTH = 15
"""Longest code that `decode_table` takes, in bits: four bits tell a length, and the table has 2^15 rows at most."""
MAX_SYMBOLS = 4096
"""Most symbols of an alphabet that `decode_table` takes."""


def code_lengths(counts: Sequence[int] | NDArray[np.integer]) -> list[int]:
    """Lengths in bits of an optimal (Huffman) prefix code: one for each count, 0 for a count of 0.

    A single used symbol gets length 1, as a prefix code needs. Of all optimal codes this is one with the shortest longest
    code. Same counts, same lengths. UserError: a count that is negative or no whole number.
    """
    checked = _checked(counts)
    order = sorted((i for i, count in enumerate(checked) if count), key=checked.__getitem__)
    lengths = [0] * len(checked)
    if len(order) == 1:
        lengths[order[0]] = 1
    if len(order) < 2:
        return lengths
    # Two queues: the leaves by count, and the inner nodes, which come into being in order of weight.
    n = len(order)
    weights = [checked[i] for i in order]
    parents = [0] * (2 * n - 1)
    leaf, inner = 0, n
    for node in range(n, 2 * n - 1):
        total = 0
        for _ in range(2):
            # Of equal weights the leaf first: that keeps the tree flat.
            if inner == node or (leaf < n and weights[leaf] <= weights[inner]):
                taken, leaf = leaf, leaf + 1
            else:
                taken, inner = inner, inner + 1
            total += weights[taken]
            parents[taken] = node
        weights.append(total)
    depths = [0] * (2 * n - 1)
    for node in range(2 * n - 3, -1, -1):
        depths[node] = depths[parents[node]] + 1
    for rank, symbol in enumerate(order):
        lengths[symbol] = depths[rank]
    return lengths


def limited_code_lengths(counts: Sequence[int] | NDArray[np.integer], limit: int) -> list[int]:
    """Lengths of the best prefix code whose codes have at most `limit` bits (package-merge); optimal where that fits.

    UserError: as `code_lengths`; more used symbols than 2^limit.
    """
    lengths = code_lengths(counts)
    if max(lengths, default=0) <= limit:
        return lengths
    order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: int(counts[i]))
    n = len(order)
    if n > 1 << limit:
        raise UserError(f"{n} symbols have no prefix code of {limit} bits", fix="Allow longer codes.")
    leaves = np.array([int(counts[i]) for i in order], dtype=np.int64)
    merged, is_leaf = leaves, np.ones(n, dtype=bool)
    levels = [is_leaf]
    for _ in range(limit - 1):
        pairs = merged[: merged.size // 2 * 2].reshape(-1, 2).sum(axis=1)
        candidates = np.concatenate([leaves, pairs])
        ranks = np.argsort(candidates, kind="stable")
        merged, is_leaf = candidates[ranks], ranks < n
        levels.append(is_leaf)
    depth = np.zeros(n, dtype=np.int64)
    taken = 2 * n - 2
    for is_leaf in reversed(levels):
        cheapest = int(is_leaf[:taken].sum())
        depth[:cheapest] += 1
        taken = 2 * (taken - cheapest)
    limited = [0] * len(lengths)
    for rank, symbol in enumerate(order):
        limited[symbol] = int(depth[rank])
    return limited


def _checked(counts: Sequence[int] | NDArray[np.integer]) -> list[int]:
    checked = []
    for place, count in enumerate(counts):
        if not (count >= 0 and count % 1 == 0):  # so that NaN fails too
            raise UserError(f"count {place} is {count}", fix="Counts are whole numbers of 0 or more.")
        checked.append(int(count))
    return checked


def is_complete(lengths: NDArray[np.integer]) -> bool:
    """Whether every string of bits is the start of some code (its Kraft sum is 1), as of a Huffman code of two symbols or more."""
    used = np.asarray(lengths, dtype=np.int64)
    used = used[used > 0]
    return used.size > 1 and int(used.max()) <= MAX_LENGTH and int((1 << (MAX_LENGTH - used)).sum()) == 1 << MAX_LENGTH


def codes(lengths: NDArray[np.integer]) -> NDArray[np.uint64]:
    """The canonical code of each symbol, its first bit lowest (a stream is filled from the lowest bit up); 0 for the unused.

    lengths: 0 to 15 bits each, of a prefix code.
    """
    found = np.zeros(len(lengths), dtype=np.uint64)
    code, previous = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if length:
            code <<= length - previous
            found[symbol] = int(format(code, f"0{length}b")[::-1], 2)
            code, previous = code + 1, length
    return found


def decode_table(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """The table that the next bits of a stream look up: shape (2^longest,), each row symbol · 16 + length.

    lengths: of a complete code (`is_complete`) of at most 4096 symbols.
    """
    longest = int(np.max(lengths))
    table = np.zeros(1 << longest, dtype=np.int64)
    for symbol, code in enumerate(codes(lengths)):
        length = int(lengths[symbol])
        if length:
            table[int(code) :: 1 << length] = symbol << 4 | length
    return table
