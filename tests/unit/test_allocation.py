"""ERK and the uniform allocation against their definitions, without torch."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.allocation import erk, uniform

CONV = {"first": (16, 3, 3, 3), "middle": (32, 16, 3, 3), "wide": (128, 128, 3, 3), "last": (10, 128)}
SIZES = {name: math.prod(shape) for name, shape in CONV.items()}


def test_erk_by_hand():
    """Raw densities: sums 25, 54, 262, 138 over 432, 4608, 147456, 1280. At 5 % kept `last` and `first` would exceed 1."""
    total = round(0.05 * sum(SIZES.values()))
    assert total == 7689
    counts = erk(CONV, SIZES, total)
    # first round: ε = 7689 / 479 = 16.05 → first 401, middle 867, wide 4206, last 2215 > 1280
    # second: ε = (7689 − 1280) / 341 = 18.79 → first 470 > 432; third: ε = (7689 − 1712) / 316 = 18.91
    assert counts == {"first": 432, "middle": 1021, "wide": 4956, "last": 1280}


def test_erk_without_a_full_layer_has_densities_in_the_ratio_of_the_paper():
    counts = erk(CONV, SIZES, 4000)
    epsilon = 4000 / sum(sum(shape) for shape in CONV.values())
    for name, (n_out, n_in, *kernel) in CONV.items():
        density = epsilon * (n_in + n_out + sum(kernel)) / (n_in * n_out * math.prod(kernel))
        assert counts[name] == pytest.approx(density * SIZES[name], abs=1)


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_erk_keeps_exactly_the_total_and_no_more_than_is_alive(shapes, alive_fraction, keep):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    alive = {name: math.ceil(alive_fraction * math.prod(shape)) for name, shape in named.items()}
    total = round(keep * sum(alive.values()))
    counts = erk(named, alive, total)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= alive[name] for name in named)
    # whoever is not full has its share of one ε
    partial = [name for name in named if counts[name] < alive[name]]
    epsilons = [(counts[name] - 1) / sum(named[name]) for name in partial]
    assert all((counts[name] + 1) / sum(named[name]) > max(epsilons) - 1e-9 for name in partial)


def test_uniform_rounds_halves_to_even_in_each_layer():
    assert uniform({"a": 5, "b": 7, "c": 10}, {"a": 0.5, "b": 0.5, "c": 0.9}) == {"a": 2, "b": 4, "c": 1}
