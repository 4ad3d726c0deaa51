"""The resource-constrained walk against a case worked by hand, and what holds of every walk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.compress.amc.environment import Choice, Environment
from edgecompress.compress.amc.walk import chain, constrained


def test_the_walk_of_a_chain_worked_by_hand():
    # Three layers, F = 100, 200, 50; a depth-wise layer of 10 before the layer 1, one of 20 before the layer 2. Whole: 380.
    used = chain([100, 200, 50], [0, 10, 20])
    assert used([1, 1, 1]) == 380
    budget = 0.5 * 380
    keep = [1.0, 0.2, 0.2]
    # Layer 0 reads the image: whatever the agent asks for, it stays whole.
    assert constrained(0.3, 0, keep, used, budget) == 1.0
    # t = 1: this = F0·k0 + F1·k2 + B1 = 100 + 40 + 10 = 150; other = B0·k0 + F2·k2·1 + B2·k2 = 0 + 10 + 4 = 14.
    # (190 − 14) / 150 = 1.1733: not a limit yet.
    assert constrained(0.9, 1, keep, used, budget) == pytest.approx(0.9)
    keep[1] = 0.9
    # t = 2: this = F1·k1 + F2·1 + B2 = 180 + 50 + 20 = 250; other = F0·1·k1 + B1·k1 = 90 + 9 = 99. (190 − 99) / 250 = 0.364.
    assert constrained(0.7, 2, keep, used, budget) == pytest.approx(0.364)
    keep[2] = 0.364
    assert used(keep) == pytest.approx(budget)
    # A smaller wish is granted, and what is left of the budget stays unspent; nothing goes below its least.
    assert constrained(0.3, 2, [1.0, 0.9, 0.2], used, budget) == pytest.approx(0.3)
    assert constrained(-5.0, 2, [1.0, 0.9, 0.2], used, budget) == pytest.approx(0.2)
    assert constrained(7.0, 2, [1.0, 0.9, 0.2], used, float("inf")) == 1.0


def test_halving_comes_to_the_closed_form_and_serves_where_there_is_none():
    used = chain([100, 200, 50], [0, 10, 20])
    keep = [1.0, 0.9, 0.2]
    assert constrained(0.7, 2, keep, used, 190, linear=False) == pytest.approx(0.364, abs=1e-9)
    assert constrained(0.9, 0, [0.1], lambda k: 100 * k[0] ** 2, 25, linear=False) == pytest.approx(0.5, abs=1e-9)


def test_a_chain_needs_as_many_buffers_as_layers():
    with pytest.raises(ValueError, match="3 layers and 1 buffers"):
        chain([1, 2, 3], [1])


def choices(sizes, step=1, least=0.2):
    return [
        Choice(f"g{i}", size, step, least, (float(i), 0.0, float(size), 8.0, 1.0, 3.0, float(size * 72)), 72.0 * size)
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("size", "step", "keep", "units"),
    [
        (16, 8, 0.2, 8), (16, 8, 0.51, 8), (16, 8, 0.55, 16), (20, 8, 0.95, 16), (20, 8, 1.0, 20), (20, 8, 0.3, 8), (4, 8, 0.5, 4),
        (10, 1, 0.01, 1),
    ],
)  # fmt: skip
def test_ratios_are_rounded_up_to_the_step(size, step, keep, units):
    assert choices([size], step)[0].units(keep) == units


def test_levels_go_down_and_up_one_by_one():
    choice = choices([20], step=8, least=0.2)[0]
    assert (choice.lowest, choice.levels) == (8, 3)
    assert [choice.below(20), choice.below(16), choice.below(8)] == [16, 8, None]
    assert [choice.above(8), choice.above(16), choice.above(20)] == [16, 20, None]


def chain_env(sizes, share, step=1, spread=False):
    made = choices(sizes, step)
    work = [72.0 * c.size * n for c, n in zip(made, [*sizes[1:], 10], strict=True)]

    def used(keep):
        return chain(work)([*keep])

    return Environment(made, macs=used, used=used, budget=share * used([1.0] * len(sizes)), spread=spread)


def test_the_state_is_the_ten_numbers_of_the_authors_code():
    env = chain_env([8, 16, 32], 0.5)
    whole = env.used([1, 1, 1])
    first = env.state(0, [0.25, 0.2, 0.2], 1.0)
    assert first.dtype == np.float32 and first.shape == (10,)
    assert first == pytest.approx([0, 0, 0, 0, 0, 0, 0, 0, (72 * 16 + 72 * 32) / whole, 1])
    second = env.state(1, [0.25, 0.2, 0.2], 0.25)
    reduced = 1 - env.used([0.25, 1, 1]) / whole
    assert second == pytest.approx([0.5, 0, 8 / 24, 0, 0, 0, 8 / 24, reduced, 72 * 32 / whole, 0.25], rel=1e-6)
    assert env.state(2, [0.25, 0.5, 0.2], 0.5)[0] == 1.0


any_chain = given(
    sizes=st.lists(st.integers(2, 70), min_size=1, max_size=8), share=st.floats(0.05, 1.0), step=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 1000),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@any_chain
def test_no_walk_exceeds_a_budget_that_the_lowest_keeps(sizes, share, step, seed):
    env = chain_env(sizes, share, step)
    rng = np.random.default_rng(seed)
    for units in (env.walk(rng.random(len(sizes)).tolist()), env.walk([1.0] * len(sizes)), env.uniform()):
        assert all(c.lowest <= n <= c.size for c, n in zip(env.choices, units, strict=True))
        assert all(n % c.step == 0 or n == c.size for c, n in zip(env.choices, units, strict=True))
        assert env.fits(units) or not env.fits(env.lowest())


@settings(deadline=None, max_examples=60)
@any_chain
def test_what_a_walk_leaves_is_spread_over_all_choices(sizes, share, step, seed):
    actions = np.random.default_rng(seed).random(len(sizes)).tolist()
    left = chain_env(sizes, share, step).walk(actions)
    env = chain_env(sizes, share, step, spread=True)
    spread = env.walk(actions)
    assert all(a <= b for a, b in zip(left, spread, strict=True))
    assert env.fits(spread) or not env.fits(env.lowest())
    more = tuple(c.above(n) or n for c, n in zip(env.choices, spread, strict=True))
    assert spread == env.whole() or not env.fits(more)


def test_all_is_kept_where_the_budget_allows_it():
    env = chain_env([8, 16, 32], 1.0)
    assert env.walk([1.0, 1.0, 1.0]) == env.whole() == env.uniform()
    assert env.walk([0.0, 0.0, 0.0]) == env.lowest()
