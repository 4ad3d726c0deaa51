"""The ranges of activations, from values whose best range is known."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.histograms import BINS, Histogram, collect, covered
from edgecompress.quantization import Quantization


def of(values: np.ndarray) -> Histogram:
    parts = np.array_split(values.astype(np.float32), 3)
    return collect(lambda: ({"t": part} for part in parts))["t"]


def test_a_histogram_holds_every_value_and_zero() -> None:
    values = np.linspace(2.0, 6.0, 1000)
    histogram = of(values)
    assert (histogram.low, histogram.high) == (0.0, 6.0)
    assert histogram.counts.sum() == 1000 and histogram.counts.shape == (BINS,)
    assert histogram.counts[: BINS // 3 - 1].sum() == 0


def test_values_that_only_pad_are_left_out() -> None:
    values = np.concatenate([np.linspace(-1, 1, 100), [np.finfo(np.float32).min]])
    assert of(values).low == -1.0


def test_minmax_covers_all_and_percentile_leaves_out_its_share() -> None:
    values = np.linspace(0.0, 10.0, 100_001)
    assert covered(of(values), Quantization()) == (0.0, 10.0)
    low, high = covered(of(values), Quantization("percentile", percentile=90.0))
    # 5 % on each side; the lower side cannot rise above 0
    assert low == 0.0 and high == pytest.approx(9.5, abs=0.01)


@pytest.mark.parametrize("symmetric", [False, True])
def test_least_squares_is_the_best_of_all_ranges(symmetric: bool) -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 50_000), [40.0]])
    low, high = covered(of(values), Quantization("mse"), symmetric=symmetric)

    def error(a: float, b: float) -> float:
        scale = (b - a) / 255
        zero = np.round(-a / scale)
        return float(((np.clip(np.round(values / scale), -zero, 255 - zero) * scale - values) ** 2).mean())

    reached = error(low, high) if not symmetric else error(-max(-low, high), max(-low, high))
    fractions = np.linspace(0.05, 1, 40)
    best = min(error(values.min() * a, values.max() * b) for a in fractions for b in fractions)
    if symmetric:
        best = min(error(-40.0 * b, 40.0 * b) for b in fractions)
    assert reached <= best * 1.1
    assert reached < error(-40.0 if symmetric else values.min(), 40.0)


def test_entropy_clips_a_lone_outlier_and_keeps_an_even_spread() -> None:
    values = np.random.default_rng(1).normal(0, 1, 100_000)
    low, high = covered(of(np.append(values, 60.0)), Quantization("entropy"))
    assert -low < 6 and 2 < high < 30
    even = np.random.default_rng(2).uniform(0, 4, 100_000)
    assert covered(of(even), Quantization("entropy"))[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("values", [np.zeros(10), np.full(10, 3.0), np.array([-2.0, 0.0])])
def test_odd_tensors_have_a_range_within_their_values(rule: str, values: np.ndarray) -> None:
    low, high = covered(of(values), Quantization(rule))  # type: ignore[arg-type]
    assert min(0.0, values.min()) <= low <= 0 <= high <= max(0.0, values.max())
