"""From the values that a tensor took on the calibration images to the range that its 8 bits cover.

The values are kept as a histogram of 2,048 equal bins between their minimum and maximum (0 always inside), whose memory does
not grow with the images. Four rules:

- minmax: the range itself: nothing is clipped, and one outlier widens every step.
- percentile: the range that leaves out (100 − p)/2 per cent of the values on each side.
- mse: the range of least mean squared error of the quantised values (the error of rounding and of clipping together).
- entropy: the range whose 128 levels lose least information, as a Kullback-Leibler divergence. Source: Migacz 2017, "8-bit
  inference with TensorRT" (GPU Technology Conference), slides 28 to 38.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgecompress.quantization import Quantization

BINS = 2048
_LEVELS = 256
_ENTROPY_LEVELS = 128
_SHRINK = np.linspace(0.05, 1.0, 96)
"""Fractions of the minimum or maximum that the search of least squared error tries."""


@dataclass(frozen=True)
class Histogram:
    """counts (BINS,) of the values in equal bins from low to high, low ≤ 0 ≤ high."""

    low: float
    high: float
    counts: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[:-1] + edges[1:]) / 2


Feed = Callable[[], Iterable[dict[str, np.ndarray]]]
"""A call that runs the calibration images once and gives, batch by batch, tensor name → its values."""


def collect(feed: Feed) -> dict[str, Histogram]:
    """Tensor name → histogram, in two runs of the images: the first finds the range, the second counts.

    Values beyond ±3e38 are padding (the lowest number or -inf around a max-pooling) and not counted.
    """
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for batch in feed():
        for name, values in batch.items():
            real = _real(values)
            if real.size:
                lows[name] = min(lows.get(name, 0.0), float(real.min()))
                highs[name] = max(highs.get(name, 0.0), float(real.max()))
    counts = {name: np.zeros(BINS, np.int64) for name in lows}
    for batch in feed():
        for name, values in batch.items():
            real = _real(values)
            width = highs.get(name, 0.0) - lows.get(name, 0.0)
            if real.size and width > 0:
                places = ((real.ravel() - lows[name]) * (BINS / width)).astype(np.int32)
                counts[name] += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
    return {name: Histogram(lows[name], highs[name], counts[name]) for name in lows}


def _real(values: np.ndarray) -> np.ndarray:
    return values if np.abs(values).max(initial=0.0) < 3e38 else values[np.abs(values) < 3e38]


def covered(histogram: Histogram, settings: Quantization, *, symmetric: bool = False) -> tuple[float, float]:
    """The range (low ≤ 0 ≤ high) that the settings give a tensor. symmetric: the engine's zero point is 0."""
    if histogram.high <= histogram.low or settings.calibration == "minmax":
        return histogram.low, histogram.high
    if settings.calibration == "percentile":
        return _percentile(histogram, settings.percentile)
    if settings.calibration == "mse":
        return _least_squares(histogram, symmetric)
    return _least_divergence(histogram)


def _percentile(histogram: Histogram, percent: float) -> tuple[float, float]:
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - percent / 100) / 2
    width = (histogram.high - histogram.low) / BINS
    first = int(np.searchsorted(shares, tail, side="right"))
    last = int(np.searchsorted(shares, 1 - tail, side="left"))
    return min(0.0, histogram.low + first * width), max(0.0, histogram.low + (last + 1) * width)


def _least_squares(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    low, high = histogram.low, histogram.high
    if symmetric:
        high = max(-low, high)
        errors = [_squared_error(histogram, -high * share, high * share) for share in _SHRINK]
        best = high * _SHRINK[int(np.argmin(errors))]
        return max(histogram.low, -best), min(histogram.high, best)
    for _ in range(2):  # one side after the other; the second round changes little
        high = histogram.high * _best([_squared_error(histogram, low, histogram.high * s) for s in _SHRINK])
        low = histogram.low * _best([_squared_error(histogram, histogram.low * s, high) for s in _SHRINK])
    return float(low), float(high)


def _best(errors: list[float]) -> float:
    # Of equal errors the widest range: it clips nothing that was not seen in calibration.
    return float(_SHRINK[len(errors) - 1 - int(np.argmin(errors[::-1]))])


def _squared_error(histogram: Histogram, low: float, high: float) -> float:
    """Mean squared error of the values when they are rounded to 256 levels from low to high and clipped to them."""
    step = (high - low) / (_LEVELS - 1)
    if step <= 0:
        return float("inf")
    centres = histogram.centres
    clipped = np.clip(centres, low, high)
    # Inside, the rounding error of values that fill a bin evenly: the bin may be wider or narrower than a step.
    inside = step * step / 12
    return float((histogram.counts * np.where(clipped == centres, inside, (centres - clipped) ** 2)).sum())


def _least_divergence(histogram: Histogram) -> tuple[float, float]:
    limit = max(-histogram.low, histogram.high)
    magnitudes = np.abs(histogram.centres)
    counts = np.bincount(
        np.minimum((magnitudes * (BINS / limit)).astype(np.int64), BINS - 1), weights=histogram.counts, minlength=BINS
    )
    # Exact zeros of a ReLU would outweigh all else; Migacz leaves the first bin out too.
    counts[0] = 0
    if not counts.any():
        return histogram.low, histogram.high
    sizes = range(_ENTROPY_LEVELS, BINS + 1, 8)
    divergences = [_divergence(counts, size) for size in sizes]
    threshold = limit * sizes[int(np.argmin(divergences))] / BINS
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _divergence(counts: np.ndarray, size: int) -> float:
    """KL divergence between the first `size` bins (all beyond counted in the last) and their rendering in 128 levels."""
    reference = counts[:size].copy()
    reference[-1] += counts[size:].sum()
    groups = (np.arange(size) * _ENTROPY_LEVELS) // size
    filled = counts[:size] > 0
    totals = np.bincount(groups, weights=counts[:size], minlength=_ENTROPY_LEVELS)
    members = np.bincount(groups, weights=filled, minlength=_ENTROPY_LEVELS)
    rendered = np.where(filled, (totals / np.maximum(members, 1))[groups], 0.0)
    if not rendered.any():
        return float("inf")
    p, q = reference / reference.sum(), rendered / rendered.sum()
    held = p > 0
    if (q[held] == 0).any():
        # A bin that only the clipped values fill: the smallest share that a rendering has, so that the sum stays finite.
        q = np.where(held & (q == 0), q[q > 0].min() * 1e-3, q)
    return float((p[held] * np.log(p[held] / q[held])).sum())
