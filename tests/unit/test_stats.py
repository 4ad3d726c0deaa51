"""Intervals and tests against published figures, exact enumeration, and their own claim: how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import stats


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_rate_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = stats.wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert stats.wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert stats.wilson(k, n, confidence=0.99)[0] <= low


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        stats.wilson(successes, n)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (120, 1.97993)]
)
def test_student_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert stats.student_quantile(0.975, freedom) == pytest.approx(expected, rel=2e-5)


def strings(both: int, lost: int, won: int, neither: int) -> tuple[str, str]:
    return "1" * both + "1" * lost + "0" * won + "0" * neither, "1" * both + "0" * lost + "1" * won + "0" * neither


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 6), (3, 9), (10, 10), (25, 40)])
def test_mcnemar_is_exact(lost: int, won: int) -> None:
    test = stats.mcnemar(*strings(50, lost, won, 7))
    discordant = lost + won
    tail = sum(math.comb(discordant, k) for k in range(min(lost, won) + 1)) / 2**discordant
    assert test.p == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert (test.lost, test.won, test.images) == (lost, won, 57 + discordant)
    assert test.difference == pytest.approx((won - lost) / test.images)
    assert test.low <= test.difference <= test.high


def test_mcnemar_stays_finite_on_many_images() -> None:
    test = stats.mcnemar(*strings(1_000, 30_000, 20_000, 0))
    assert 0 <= test.p < 1e-100
    assert test.high < 0


def test_mcnemar_sees_what_the_separate_intervals_hide() -> None:
    """20 images lost and 2 won of 2000: a paired difference, though the two Wilson intervals overlap widely."""
    a, b = strings(1780, 20, 2, 198)
    assert stats.mcnemar(a, b).p < 0.001
    assert stats.wilson(b.count("1"), 2000)[1] > stats.wilson(a.count("1"), 2000)[0]


@pytest.mark.parametrize(("a", "b"), [("", ""), ("101", "10"), ("1x1", "101")])
def test_mcnemar_refuses_strings_that_do_not_pair(a: str, b: str) -> None:
    with pytest.raises(ValueError, match="paired"):
        stats.mcnemar(a, b)


def test_the_interval_of_a_paired_difference_holds_the_truth() -> None:
    rng, truth, held = np.random.default_rng(0), -0.02, 0
    for _ in range(400):
        kinds = rng.multinomial(500, [0.86, 0.03, 0.01, 0.10])
        test = stats.mcnemar(*strings(*(int(k) for k in kinds)))
        held += test.low <= truth <= test.high
    assert held / 400 >= 0.93


def test_holm_is_the_step_down_of_the_paper() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(values: list[float]) -> None:
    adjusted = stats.holm(values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, values, strict=True))
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def noisy_blocks(rng: np.random.Generator, blocks: int, level: float = 10.0) -> list[list[float]]:
    """Blocks that differ more between than within themselves, as clocks and caches make them."""
    return [(level + rng.normal(0, 0.3) + rng.normal(0, 0.2, 20)).tolist() for _ in range(blocks)]


def test_the_quantile_is_one_that_was_measured_and_nothing_is_dropped() -> None:
    blocks = [[1.0, 2.0, 3.0], [4.0, 1000.0]]
    assert stats.quantile_with_interval(blocks, 0.5, 0).value == 3.0
    assert stats.quantile_with_interval(blocks, 0.99, 0).value == 1000.0


def test_an_interval_over_two_blocks_spans_both() -> None:
    """With two blocks a resample is one of them twice, or both: the interval is what those medians span."""
    assert stats.quantile_with_interval([[1.0] * 9, [2.0] * 9], 0.5, 0) == (1.0, 1.0, 2.0)


def test_the_interval_of_the_median_holds_the_truth_with_five_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim is 95 %; five blocks can be all on one side once in 16, so that 88 % is what any resampling of them gives."""
    monkeypatch.setattr(stats, "RESAMPLES", 600)
    rng = np.random.default_rng(1)
    estimates = [stats.quantile_with_interval(noisy_blocks(rng, 5), 0.5, i) for i in range(200)]
    assert sum(e.low <= 10 <= e.high for e in estimates) / 200 >= 0.88


def test_resampling_single_inferences_would_be_far_too_sure() -> None:
    """Why blocks: within a block the values agree, and an interval from them alone is a fraction of the honest one."""
    rng = np.random.default_rng(2)
    blocks = noisy_blocks(rng, 10)
    shuffled = rng.permutation(np.concatenate(blocks)).reshape(10, -1).tolist()
    honest, naive = (stats.quantile_with_interval(b, 0.5, 0) for b in (blocks, shuffled))
    assert honest.high - honest.low > 1.5 * (naive.high - naive.low)


@given(
    st.lists(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30), min_size=2, max_size=6),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_quantiles_repeat_lie_in_their_interval_and_among_the_values(blocks: list[list[float]], q: float) -> None:
    estimate = stats.quantile_with_interval(blocks, q, 7)
    values = [v for b in blocks for v in b]
    assert estimate == stats.quantile_with_interval(blocks, q, 7)
    assert estimate.low <= estimate.value <= estimate.high
    assert {estimate.value, estimate.low, estimate.high} <= set(values)
    assert sum(v <= estimate.value for v in values) >= q * len(values) * (1 - 1e-12)


def test_many_samples_use_a_grid_of_ranks_that_is_fine_enough() -> None:
    rng = np.random.default_rng(3)
    blocks = [rng.gamma(2, 1, 20_000).tolist() for _ in range(5)]
    fine = stats.quantile_with_interval(blocks, 0.99, 0)
    assert fine.high - fine.low < 0.2
    assert fine.value == pytest.approx(np.quantile(np.concatenate(blocks), 0.99), rel=1e-3)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [([[1.0]], "at least 2"), ([], "at least 2"), ([[1.0], []], "empty"), ([[1.0], [math.nan]], "finite")],
)
def test_blocks_that_give_no_interval_are_refused(blocks: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stats.quantile_with_interval(blocks, 0.5, 0)


def test_speedup_tells_a_real_gain() -> None:
    rng = np.random.default_rng(4)
    slow, fast = noisy_blocks(rng, 5), noisy_blocks(rng, 5, level=5.0)
    gain = stats.speedup_with_interval(slow, fast, 0)
    assert gain.low < 2 < gain.high
    assert stats.speed_verdict(gain) == "faster"
    assert stats.speed_verdict(stats.speedup_with_interval(fast, slow, 0)) == "slower"


def test_two_measurements_of_the_same_thing_are_rarely_called_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 600)
    rng = np.random.default_rng(5)
    verdicts = [
        stats.speed_verdict(stats.speedup_with_interval(noisy_blocks(rng, 5), noisy_blocks(rng, 5), i))
        for i in range(150)
    ]
    assert verdicts.count(stats.NO_DIFFERENCE) / 150 >= 0.92


def test_speedup_refuses_a_latency_of_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        stats.speedup_with_interval([[1.0], [1.0]], [[1.0], [0.0]], 0)


def test_verdicts_on_accuracy() -> None:
    assert stats.accuracy_verdict(-0.01, 0.01) == "lower"
    assert stats.accuracy_verdict(0.01, 0.01) == "higher"
    assert stats.accuracy_verdict(-0.01, 0.05) == "no measurable difference"
