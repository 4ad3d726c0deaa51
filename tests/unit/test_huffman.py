"""Canonical Huffman codes against an independent coder, and the bit stream under them."""

from __future__ import annotations

import heapq
import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.coding import bitstream, huffman, streams
from edgecompress.coding.sections import entropy_bits
from edgecompress.coding.table_bytes import CODERS, HUFFMAN, RANGE, Table, read_table, write_table
from edgecompress.coding.tables import table_for
from edgecompress.errors import UserError

COUNTS = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 10**9)), max_size=300)


def optimal_total(counts: list[int]) -> int:
    """Bits of an optimal prefix code: the sum of all merges of the two lightest nodes, found with a heap."""
    heap = [c for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def total(counts: list[int], lengths: list[int]) -> int:
    return sum(c * n for c, n in zip(counts, lengths, strict=True))


@given(COUNTS)
def test_the_code_is_optimal_and_within_one_bit_of_the_entropy(counts: list[int]) -> None:
    lengths = huffman.code_lengths(counts)
    used = [n for c, n in zip(counts, lengths, strict=True) if c]
    assert all(n == 0 for c, n in zip(counts, lengths, strict=True) if not c)
    assert all(n > 0 for n in used)
    if len(used) > 1:
        assert sum(2.0**-n for n in used) == 1
        assert total(counts, lengths) == optimal_total(counts)
    bound = entropy_bits(np.array(counts, dtype=np.int64)) if used else 0.0
    assert bound * (1 - 1e-12) <= total(counts, lengths) <= bound + sum(counts)


@pytest.mark.parametrize("seed", range(6))
def test_random_distributions_of_many_shapes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for shape in (
        rng.geometric(0.1, 5000), rng.zipf(1.3, 5000) % 4000, np.abs(rng.normal(0, 30, 5000)), rng.integers(0, 999, 5000)
    ):  # fmt: skip
        counts = np.bincount(np.asarray(shape).astype(int)).tolist()
        assert total(counts, huffman.code_lengths(counts)) == optimal_total(counts)


def test_the_edges() -> None:
    assert huffman.code_lengths([]) == []
    assert huffman.code_lengths([0, 0]) == [0, 0]
    assert huffman.code_lengths([0, 7, 0]) == [0, 1, 0]
    assert huffman.code_lengths([1, 1]) == [1, 1]
    assert sorted(huffman.code_lengths(np.array([5, 1, 1, 1]))) == [1, 2, 3, 3]
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert max(huffman.code_lengths(fibonacci)) == 39
    for wrong in ([1, -1], [2, 1.5], [3, float("nan")], [3, float("inf")]):
        with pytest.raises(UserError, match="count 1 is"):
            huffman.code_lengths(wrong)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=7), st.integers(3, 5))
def test_under_a_limit_no_code_is_better(counts: list[int], limit: int) -> None:
    lengths = huffman.limited_code_lengths(counts, limit)
    assert max(lengths) <= limit and sum(2.0**-n for n in lengths) == 1
    # Of every set of lengths that a prefix code can have, the shorter ones go to the higher counts.
    falling = sorted(counts, reverse=True)
    best = min(
        total(falling, list(tried))
        for tried in itertools.combinations_with_replacement(range(1, limit + 1), len(counts))
        if sum(2.0**-n for n in tried) <= 1
    )
    assert total(counts, lengths) == best


def test_a_limit_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UserError, match="5 symbols"):
        huffman.limited_code_lengths([1, 2, 4, 8, 16], 2)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=64).filter(lambda c: sum(map(bool, c)) > 1))
def test_codes_are_canonical_and_no_code_starts_another(counts: list[int]) -> None:
    lengths = np.array(huffman.limited_code_lengths(counts, 12))
    assert huffman.is_complete(lengths)
    written = {
        symbol: format(int(code), f"0{lengths[symbol]}b")[::-1]
        for symbol, code in enumerate(huffman.codes(lengths))
        if lengths[symbol]
    }
    for one, other in itertools.permutations(written.values(), 2):
        assert not other.startswith(one)
    in_order = sorted(written, key=lambda s: (lengths[s], s))
    assert sorted(written.values(), key=lambda c: (len(c), c)) == [written[s] for s in in_order]
    table = huffman.decode_table(lengths)
    assert table.size == 1 << lengths.max()
    for symbol, code in enumerate(huffman.codes(lengths)):
        if lengths[symbol]:
            assert table[int(code)] == symbol * 16 + lengths[symbol]


# 8192: two lanes; 260,000: the last that is walked, lane by lane; 270,000: all lanes side by side, with a part of a row.
@pytest.mark.parametrize("count", [2, 3, 4095, 8191, 8192, 8193, 100_001, 260_000, 270_003])
@pytest.mark.parametrize("symbols", [2, 24, 700])
def test_a_stream_comes_back(count: int, symbols: int) -> None:
    rng = np.random.default_rng(count)
    stream = np.minimum(rng.geometric(0.1 if symbols < 100 else 0.01, count) - 1, symbols - 1)
    stream[:2] = 0, 1  # two symbols at least
    counts = np.bincount(stream, minlength=symbols)
    limit = 12 if symbols < 100 else 15
    lengths = np.array(huffman.limited_code_lengths(counts, limit))
    coded = bitstream.encode(stream, lengths)
    found, used = bitstream.decode(memoryview(coded + b"more"), count, lengths)
    assert used == len(coded) and np.array_equal(found, stream)
    lanes = bitstream.lane_count(count)
    assert len(coded) == -(-int(counts @ lengths) // 8) + (1 + 2 * lanes if lanes > 1 else 0)


def test_a_stream_that_is_cut_or_bent_is_found_out() -> None:
    rng = np.random.default_rng(0)
    for count in (5000, 20_000, 300_000):
        stream = rng.integers(0, 20, count) * rng.integers(0, 2, count)
        lengths = np.array(huffman.code_lengths(np.bincount(stream)))
        coded = bitstream.encode(stream, lengths)
        for cut in (0, 1, 9, len(coded) // 2):
            with pytest.raises(bitstream.Damaged):
                bitstream.decode(memoryview(coded[:cut]), count, lengths)
        with pytest.raises(bitstream.Damaged):
            bitstream.decode(memoryview(coded), 60 * count, lengths)
        if bitstream.lane_count(count) > 1:
            bent = bytearray(coded)
            bent[1] ^= 1  # the length of the first lane
            with pytest.raises(bitstream.Damaged):
                bitstream.decode(memoryview(bytes(bent)), count, lengths)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=600).filter(any), st.sampled_from(CODERS))
def test_a_code_table_comes_back(counts: list[int], coder: str) -> None:
    table = table_for(np.array(counts), CODERS.index(coder))
    written = write_table(table)
    found, end = read_table(memoryview(b"\0" + written + b"\xff"), 1)
    assert end == 1 + len(written) and found.coder == table.coder
    size = found.costs.size
    assert np.array_equal(found.costs, table.costs[:size]) and not table.costs[size:].any()


def test_a_long_run_of_one_length_takes_few_bytes() -> None:
    gap = np.zeros(3000, dtype=np.uint8)
    gap[[0, 2999]] = 1
    for costs in (np.full(4096, 12, dtype=np.uint8), gap):
        written = write_table(Table(HUFFMAN, costs))
        assert len(written) < 12
        assert np.array_equal(read_table(memoryview(written), 0)[0].costs, costs)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_code_table_or_refused(data: bytes) -> None:
    try:
        table, _ = read_table(memoryview(data), 0)
    except bitstream.Damaged:
        return
    assert table.coder == RANGE or table.single or huffman.is_complete(table.costs)
    assert table.costs.any() and int(table.costs.max()) <= 31


@pytest.mark.parametrize("count", [1, 2, 500, 100_000])
def test_the_range_coder_is_nearer_to_the_entropy(count: int) -> None:
    pytest.importorskip("constriction")
    rng = np.random.default_rng(count)
    stream = np.minimum(rng.geometric(0.6, count) - 1, 200)
    counts = np.bincount(stream)
    sizes = []
    for coder in (HUFFMAN, RANGE):
        table = table_for(counts, coder)
        coded = streams.encode(stream, table)
        found, used = streams.decode(memoryview(coded + b"more"), count, table)
        assert used == len(coded) and np.array_equal(found, stream)
        sizes.append(len(coded))
    if count == 100_000:
        bound = entropy_bits(counts) / 8
        assert sizes[1] < 1.005 * bound < 1.03 * bound < sizes[0]
        with pytest.raises(bitstream.Damaged):
            streams.decode(memoryview(coded[:-9]), count, table)
        with pytest.raises(bitstream.Damaged):
            streams.decode(memoryview(coded), count - 50, table)


def test_without_constriction_a_range_stream_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(UserError, match="needs the package constriction"):
        streams.encode(np.array([0, 1, 1]), Table(RANGE, np.array([3, 1], dtype=np.uint8)))
