"""Intervals and paired tests for the report: each figure comes with what it can be trusted to.

Three rules behind the choices. A latency's neighbours in time are alike, so intervals resample whole blocks, never single
inferences. Two variants are scored on the same images, so their accuracies are compared image by image, not as two
unrelated rates. And an effect that the data cannot tell from chance is called `NO_DIFFERENCE`, not a small gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_DIFFERENCE = "no measurable difference"
CONFIDENCE = 0.95
ALPHA = 0.05
RESAMPLES = 4000
GRID = 4096
"""Values that a resampled quantile can take: all that were measured, or so many evenly spaced ranks of them."""


class Estimate(NamedTuple):
    """A figure and its interval, all in the unit of the data."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Accuracy of `b` minus accuracy of `a` on the same images, both in [0, 1].

    lost: images that only `a` has right; won: images that only `b` has right. p: exact two-sided McNemar test.
    low, high: interval of the difference (Bonett and Price 2012, adjusted Wald).
    """

    images: int
    lost: int
    won: int
    difference: float
    low: float
    high: float
    p: float


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval (low, high) of a proportion, within [0, 1] (Wilson 1927). ValueError unless 0 ≤ successes ≤ n, n > 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    # at the ends the exact bound is 0 or 1; the formula misses it by a rounding error
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def quantile_with_interval(
    blocks: Sequence[Sequence[float]], q: float, seed: int, confidence: float = CONFIDENCE
) -> Estimate:
    """The q-quantile of all values of all blocks, and its interval by a bootstrap over blocks.

    The value is the smallest one with at least a fraction q of all values at or below it: one that was really measured.
    Nothing is dropped. The interval is the expanded percentile interval (Hesterberg 2015), which is honest for the five or
    so blocks of a measurement, where the plain one is too narrow. ValueError on fewer than 2 blocks, an empty one, a
    value that is not finite.
    """
    return quantiles_with_intervals(blocks, (q,), seed, confidence)[0]


def quantiles_with_intervals(
    blocks: Sequence[Sequence[float]], qs: Sequence[float], seed: int, confidence: float = CONFIDENCE
) -> list[Estimate]:
    """As `quantile_with_interval`, several quantiles from the same resamples."""
    arrays = _checked(blocks)
    pooled = np.concatenate(arrays)
    values = np.quantile(pooled, qs, method="inverted_cdf")
    draws = _resampled_quantiles(arrays, qs, np.random.default_rng(seed))
    estimates = []
    for value, column in zip(values, draws.T, strict=True):
        low, high = _expanded_percentile(column, len(arrays), confidence)
        estimates.append(Estimate(float(value), min(low, float(value)), max(high, float(value))))
    return estimates


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value with at least a fraction q of all at or below it."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), q, method="inverted_cdf"))


def speedup_with_interval(
    reference: Sequence[Sequence[float]], variant: Sequence[Sequence[float]], seed: int, confidence: float = CONFIDENCE
) -> Estimate:
    """Median latency of `reference` over that of `variant` (above 1: the variant is faster) and its interval.

    Blocks of the two are resampled independently: they are two measurements. ValueError as in `quantile_with_interval`,
    and when a latency is not above 0.
    """
    first, second = _checked(reference), _checked(variant)
    if min(float(a.min()) for a in (*first, *second)) <= 0:
        raise ValueError("a latency is not above 0")
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)]
    ratios = _resampled_quantiles(first, (0.5,), streams[0]) / _resampled_quantiles(second, (0.5,), streams[1])
    value = quantile(np.concatenate(first).tolist(), 0.5) / quantile(np.concatenate(second).tolist(), 0.5)
    low, high = _expanded_percentile(ratios[:, 0], min(len(first), len(second)), confidence)
    return Estimate(value, min(low, value), max(high, value))


def mcnemar(a: str, b: str, confidence: float = CONFIDENCE) -> PairedTest:
    """Paired comparison of two strings of '0' and '1', one character per image in the same order.

    ValueError when they are empty, differ in length or hold other characters.
    """
    if not a or len(a) != len(b) or set(a + b) - {"0", "1"}:
        raise ValueError("a paired test needs two strings of 0 and 1 for the same images")
    n = len(a)
    lost = sum(x == "1" and y == "0" for x, y in zip(a, b, strict=True))
    won = sum(x == "0" and y == "1" for x, y in zip(a, b, strict=True))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = z * math.sqrt((p_lost + p_won - (p_won - p_lost) ** 2) / (n + 2))
    centre = p_won - p_lost
    return PairedTest(
        n, lost, won, (won - lost) / n, max(-1.0, centre - half), min(1.0, centre + half), _exact_binomial(lost, won)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for being many (Holm 1979), in the given order: a verdict at 5 % then holds for all together."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def accuracy_verdict(difference: float, p: float, alpha: float = ALPHA) -> str:
    """'lower', 'higher' or `NO_DIFFERENCE`, from a paired difference and its (adjusted) p value."""
    if p >= alpha or difference == 0:
        return NO_DIFFERENCE
    return "lower" if difference < 0 else "higher"


def speed_verdict(speedup: Estimate) -> str:
    """'faster', 'slower' or, when the interval holds 1, `NO_DIFFERENCE`."""
    if speedup.low <= 1 <= speedup.high:
        return NO_DIFFERENCE
    return "faster" if speedup.value > 1 else "slower"


def _checked(blocks: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
    arrays = [np.asarray(block, dtype=np.float64) for block in blocks]
    if len(arrays) < 2:
        raise ValueError(f"an interval over blocks needs at least 2 blocks, not {len(arrays)}")
    if any(a.ndim != 1 or a.size == 0 for a in arrays):
        raise ValueError("a block is empty")
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("a value is not finite")
    return arrays


def _resampled_quantiles(
    arrays: list[NDArray[np.float64]], qs: Sequence[float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Quantiles (RESAMPLES, len(qs)) of resamples that draw as many blocks as there are, with replacement."""
    n = len(arrays)
    pooled = np.sort(np.concatenate(arrays))
    ranks = np.unique(np.linspace(0, pooled.size - 1, min(pooled.size, GRID)).round().astype(np.int64))
    grid = pooled[ranks]
    # below[b, k]: how many values of block b are at or below grid[k]; a resample's counts are a weighted sum of its rows
    below = np.stack([np.searchsorted(np.sort(a), grid, side="right") for a in arrays]).astype(np.float64)
    drawn = rng.integers(0, n, size=(RESAMPLES, n))
    weights = np.stack([(drawn == b).sum(axis=1) for b in range(n)], axis=1)
    # few blocks have few different resamples (126 for 5): each is computed once, known by its counts read as one number
    keys = weights @ (n + 1) ** np.arange(n) if n <= 12 else np.arange(RESAMPLES)
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    distinct = weights[first]
    result = np.empty((len(distinct), len(qs)))
    for start in range(0, len(distinct), 256):
        counts = distinct[start : start + 256].astype(np.float64) @ below
        for j, q in enumerate(qs):
            # the rounding error of q · n must not skip a rank; an integer count is never this near by chance
            needed = np.maximum(q * counts[:, -1:] - 1e-9, 0.5)
            result[start : start + 256, j] = grid[(counts >= needed).argmax(axis=1)]
    drawn_quantiles: NDArray[np.float64] = result[which.reshape(-1)]
    return drawn_quantiles


def _expanded_percentile(draws: NDArray[np.float64], n: int, confidence: float) -> tuple[float, float]:
    """Percentile interval at levels widened for n blocks: Φ(±√(n/(n−1)) · t) (Hesterberg 2015, section 3.3)."""
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile((1 + confidence) / 2, n - 1))
    low, high = np.quantile(draws, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile (0.5 < probability < 1) of Student's t with a whole number of degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while _student_two_sided(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_two_sided(middle, freedom) < 2 * probability - 1 else (low, middle)
    return (low + high) / 2


def _student_two_sided(t: float, freedom: int) -> float:
    """P(|T| ≤ t): the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine_squared = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine_squared * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _exact_binomial(lost: int, won: int) -> float:
    """Two-sided p value of `lost` against `won` when both are equally likely."""
    n, k = lost + won, min(lost, won)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(x) for x in logs))
