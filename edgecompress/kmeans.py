"""k-means in one dimension: k values for many numbers, so that the sum of squared differences to the nearest is small.

The numbers are sorted once, and equal ones are taken together; a cluster is then a run of them, and prefix sums give its
mean and its error without looking at its members. Lloyd's iterations cost O(k log n) each and end where nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgecompress.errors import UserError

Init = Literal["linear", "density", "forgy"]


@dataclass(frozen=True, eq=False)
class Clusters:
    """centres: float64 (k,), increasing. labels: int32 (n,), the centre of each number. sse: Σ (x − c)². iterations: Lloyd's."""

    centres: np.ndarray
    labels: np.ndarray
    sse: float
    iterations: int


def cluster(numbers: np.ndarray, k: int, *, init: Init = "linear", seed: int = 0) -> Clusters:
    """k clusters of the numbers (1-D, finite), none of them empty: a local optimum, found by Lloyd's algorithm.

    init: "linear": centres evenly from the smallest to the largest number; "density": at even steps of the cumulative
    distribution; "forgy": k of the distinct numbers at random, by the seed. A centre that no number is nearest to is moved to the
    number that is farthest from its own. UserError: k below 1, or more than there are distinct numbers.
    """
    distinct, inverse, counts = np.unique(np.asarray(numbers, np.float64), return_inverse=True, return_counts=True)
    if not 1 <= k <= len(distinct):
        raise UserError(
            f"{k} values were asked for, and there are {len(distinct)} distinct numbers",
            fix=f"Ask for 1 to {len(distinct)}." if len(distinct) else "Give numbers to cluster.",
        )
    # About their mean, so that squares of large numbers close to each other do not cancel.
    middle = float(np.average(distinct, weights=counts))
    runs = _Runs(distinct - middle, counts)
    centres = _start(runs, k, init, seed)
    bounds = runs.bounds(centres)
    # The error falls with every new partition; that the rounding of ties might lead back to an old one ends the search too.
    seen: set[bytes] = set()
    while bounds.tobytes() not in seen:
        seen.add(bounds.tobytes())
        centres = runs.means(bounds)
        bounds = runs.bounds(centres)
    # Neither rounding nor the shift may carry a centre out of its run.
    centres = np.clip(runs.means(bounds) + middle, distinct[bounds[:-1]], distinct[bounds[1:] - 1])
    labels = np.repeat(np.arange(k, dtype=np.int32), np.diff(bounds))[inverse.reshape(-1)]
    return Clusters(centres, labels, float(runs.errors(bounds).sum()), len(seen))


class _Runs:
    """Sorted distinct numbers and how often each occurs. Bounds (k + 1 positions, 0 first) cut them into k runs."""

    def __init__(self, distinct: np.ndarray, counts: np.ndarray) -> None:
        self.numbers = distinct
        zero = np.zeros(1)
        self.count = np.concatenate([zero, np.cumsum(counts, dtype=np.float64)])
        self.sum = np.concatenate([zero, np.cumsum(counts * distinct)])
        self.squares = np.concatenate([zero, np.cumsum(counts * distinct**2)])

    def means(self, bounds: np.ndarray) -> np.ndarray:
        means: np.ndarray = np.diff(self.sum[bounds]) / np.diff(self.count[bounds])
        # Rounding must not carry a mean out of its run: the order of the centres is the order of the runs.
        return np.clip(means, self.numbers[bounds[:-1]], self.numbers[bounds[1:] - 1])

    def errors(self, bounds: np.ndarray) -> np.ndarray:
        """Σ (x − mean)² of each run."""
        within = np.diff(self.squares[bounds]) - np.diff(self.sum[bounds]) ** 2 / np.diff(self.count[bounds])
        single = np.diff(bounds) == 1  # exactly 0, not what rounding leaves of it
        return np.where(single, 0.0, np.maximum(within, 0.0))

    def bounds(self, centres: np.ndarray) -> np.ndarray:
        """Each number to its nearest centre (of two as near, the lower); runs that would be empty taken off the widest."""
        cuts = np.searchsorted(self.numbers, (centres[1:] + centres[:-1]) / 2, side="right")
        bounds = np.concatenate([[0], cuts, [len(self.numbers)]])
        while (np.diff(bounds) == 0).any():
            bounds = self._fill(bounds)
        return bounds

    def _fill(self, bounds: np.ndarray) -> np.ndarray:
        """Take one empty run away, and cut off the number that is farthest from its run's mean."""
        empty = int(np.flatnonzero(np.diff(bounds) == 0)[0])
        bounds = np.delete(bounds, empty)
        full = np.flatnonzero(np.diff(bounds) > 1)
        starts, ends = bounds[full], bounds[full + 1]
        means = (self.sum[ends] - self.sum[starts]) / (self.count[ends] - self.count[starts])
        below, above = means - self.numbers[starts], self.numbers[ends - 1] - means
        widest = int(np.argmax(np.maximum(below, above)))
        cut = starts[widest] + 1 if below[widest] >= above[widest] else ends[widest] - 1
        return np.insert(bounds, full[widest] + 1, cut)


def _start(runs: _Runs, k: int, init: Init, seed: int) -> np.ndarray:
    numbers = runs.numbers
    if init == "linear":
        return np.linspace(numbers[0], numbers[-1], k) if k > 1 else np.array([(numbers[0] + numbers[-1]) / 2])
    if init == "density":
        ranks = (np.arange(k) + 0.5) / k * runs.count[-1]
        return numbers[np.searchsorted(runs.count[1:], ranks)]
    return np.sort(np.random.default_rng(seed).choice(numbers, k, replace=False))
