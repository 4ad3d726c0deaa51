"""The relative index: the paper's figure, any positions, and wrong requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.coding import relative_index
from edgecompress.errors import UserError


def test_the_figure_of_the_paper() -> None:
    """Figure 2 of Han, Mao & Dally 2016: 3 bits, non-zeros at 1, 4 and 15; the distance of 11 takes a filler of 8."""
    index = relative_index.encode([1, 4, 15], 3)
    assert (index.gaps + 1).tolist() == [2, 3, 8, 3]  # the first counted from -1 on
    assert index.filler.tolist() == [False, False, True, False]
    assert relative_index.decode(index, 3).tolist() == [1, 4, 15]


@given(st.sets(st.integers(0, 5000), max_size=200), st.integers(1, 12))
def test_positions_come_back(places: set[int], bits: int) -> None:
    positions = sorted(places)
    index = relative_index.encode(positions, bits)
    assert relative_index.decode(index, bits).tolist() == positions
    assert not len(index.gaps) or int(index.gaps.max()) < 1 << bits
    assert (index.gaps[index.filler] == (1 << bits) - 1).all()
    # The fewest entries: a filler for each full step in a distance.
    fillers = sum((p - before - 1) >> bits for p, before in zip(positions, [-1, *positions], strict=False))
    assert int(index.filler.sum()) == fillers


def test_fillers_are_as_many_as_the_density_tells() -> None:
    """Independent weights of density d: q / (1 - q) fillers a non-zero, q = (1 - d)^(2^b)."""
    kept = np.random.default_rng(0).random(2_000_000) < 0.05
    index = relative_index.encode(np.flatnonzero(kept), 5)
    q = 0.95**32
    assert index.filler.sum() / kept.sum() == pytest.approx(q / (1 - q), rel=0.02)


@pytest.mark.parametrize(
    ("positions", "bits", "message"),
    [
        ([4, 1], 3, "do not rise"),
        ([1, 1], 3, "do not rise"),
        ([-1, 2], 3, "do not rise"),
        ([0.5], 3, "whole numbers"),
        ([1], 0, "0 bits"),
        ([1], 13, "13 bits"),
    ],
)
def test_a_wrong_request_is_one_message(positions: list[int], bits: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        relative_index.encode(positions, bits)


def test_decode_refuses_what_no_encode_returned() -> None:
    index = relative_index.encode([7], 3)
    with pytest.raises(UserError, match="does not fit in 2 bits"):
        relative_index.decode(index, 2)
    with pytest.raises(UserError, match="as many gaps"):
        relative_index.decode(relative_index.RelativeIndex(index.gaps, np.zeros(3, dtype=bool)))
