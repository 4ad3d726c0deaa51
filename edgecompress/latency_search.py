"""Find the cut whose latency is a wanted fraction of the dense network's, with few measurements.

Pure: what measures is passed in. The candidates are numbered from the dense network (0) to the deepest cut, and latency is
taken to fall along them; a measurement's noise may break that a little, which costs a measurement and not the result.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress import stats

TOLERANCE = 0.02
MOST = 9
CALM = 0.25
"""Rounds of one network that lie farther apart tell of other work: an inference longer than a time slice is slowed by it, a shorter
one is not, and no ratio of the two is to be trusted."""
_SECANTS = 4
"""After so many measurements the bracket is halved: latency has a step there, which a secant only creeps up to."""


@dataclass(frozen=True)
class LatencyRatio:
    """A candidate's latency over the dense network's, both measured in the same rounds; dense_ms, candidate_ms: medians
    over the rounds.

    ratio: median over the rounds of the ratio within each. low, high: its 95 % interval. spread: how far the rounds of one
    network lie apart (longest / shortest - 1), the greater of both.
    """

    ratio: float
    low: float
    high: float
    dense_ms: float
    candidate_ms: float
    rounds: int
    spread: float

    @property
    def busy(self) -> bool:
        """Whether the rounds lie so far apart that other work must have slowed the longer network more than the shorter."""
        return self.spread > CALM


def ratio_of(dense_ms: Sequence[float], candidate_ms: Sequence[float]) -> LatencyRatio:
    """From the latencies of both in two or more rounds, in the order of the rounds: what slows a whole round cancels."""
    ratios = [c / d for c, d in zip(candidate_ms, dense_ms, strict=True)]
    found = stats.quantile_with_interval([[r] for r in ratios], 0.5, seed=0)
    return LatencyRatio(
        found.value, found.low, found.high,
        stats.quantile(dense_ms, 0.5), stats.quantile(candidate_ms, 0.5), len(ratios),
        max(max(taken) / min(taken) - 1 for taken in (dense_ms, candidate_ms)),
    )  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One candidate that was measured. share: its multiply-accumulates over the dense network's."""

    index: int
    share: float
    measured: LatencyRatio


@dataclass(frozen=True)
class Found:
    """The candidate that came nearest, and everything that was measured on the way, in order.

    met: within TOLERANCE of the target. reason: why not, when it is not. out_of_reach: the deepest cut is still too slow.
    """

    target: float
    nearest: Sample
    samples: tuple[Sample, ...]
    met: bool
    reason: str | None
    out_of_reach: bool

    @property
    def index(self) -> int:
        return self.nearest.index

    def notes(self) -> dict[str, Any]:
        """Plain JSON for the step's record."""
        return {
            "target": self.target,
            "met": self.met,
            "reason": self.reason,
            **_plain(self.nearest),
            "measured": [_plain(sample) for sample in self.samples],
        }


def _plain(sample: Sample) -> dict[str, Any]:
    m = sample.measured
    return {
        "latency_ratio": m.ratio,
        "low": m.low,
        "high": m.high,
        "dense_ms": m.dense_ms,
        "ms": m.candidate_ms,
        "rounds": m.rounds,
        "spread": m.spread,
        "macs_left": sample.share,
    }


def find(measure: Callable[[int], LatencyRatio], target: float, shares: Sequence[float], start: float = 1.0) -> Found:
    """The candidate whose latency is nearest to `target` times the dense network's, among those it measures.

    measure: a candidate's number → its latency ratio; called for no number twice, and never for 0, the dense network.
    shares: of each candidate its fraction of the dense network's multiply-accumulates, from 1.0 downwards: what the guesses
    are made from. The first guess is that latency follows them; then a secant within the bracket, later its
    half. At most MOST measurements. start: the ratio of candidate 0, where that has been cut before. ValueError unless
    0 < target < 1 and there is a cut.
    """
    if not 0 < target < 1 or len(shares) < 2:
        raise ValueError(f"target {target} among {len(shares)} candidates")
    last, samples = len(shares) - 1, list[Sample]()
    above, below = (0, shares[0], start), None  # (number, share, ratio) next to the target on either side
    guess: int | None = _nearest(shares, shares[0] * target / start)
    while guess is not None and len(samples) < MOST:
        sample = Sample(guess, shares[guess], measure(guess))
        samples.append(sample)
        ratio = sample.measured.ratio
        if abs(ratio / target - 1) <= TOLERANCE:
            break
        if ratio > target:
            above = (guess, sample.share, ratio)
        else:
            below = (guess, sample.share, ratio)
        guess = _next(shares, target, above, below, halve=len(samples) > _SECANTS)
    nearest = min(samples, key=lambda s: abs(s.measured.ratio / target - 1))
    met = abs(nearest.measured.ratio / target - 1) <= TOLERANCE
    unreached = not met and below is None and above[0] == last
    return Found(target, nearest, tuple(samples), met, None if met else _why(nearest, guess, unreached), unreached)


_Point = tuple[int, float, float]


def _next(shares: Sequence[float], target: float, above: _Point, below: _Point | None, *, halve: bool) -> int | None:
    """The number to measure next, strictly between those that are known on either side; None: there is none."""
    last = len(shares) - 1
    if below is None:
        if above[0] == last:
            return None
        # latency falls more slowly than the share: the step is made half as long again, so that a bracket is found soon
        step = 1.5 * (1 - target / above[2])
        return min(max(_nearest(shares, above[1] * (1 - step)), above[0] + 1), last)
    first, end = above[0] + 1, below[0] - 1
    if first > end:
        return None
    part = (above[2] - target) / (above[2] - below[2])
    guess = _nearest(shares, above[1] + part * (below[1] - above[1]))
    return (first + end) // 2 if halve else min(max(guess, first), end)


def _nearest(shares: Sequence[float], share: float) -> int:
    """The number, from 1 on, of the candidate whose share is nearest; shares fall."""
    place = bisect.bisect_left(shares, -share, key=lambda s: -s)
    around = [k for k in (place - 1, place) if 1 <= k < len(shares)]
    return min(around, key=lambda k: abs(shares[k] - share)) if around else (1 if place < 1 else len(shares) - 1)


def _why(nearest: Sample, guess: int | None, unreached: bool) -> str:
    m = nearest.measured
    got = f"{m.ratio:.3f} (95 % interval {m.low:.3f} to {m.high:.3f})"
    if unreached:
        return f"the deepest cut still takes {got} of the dense network's latency"
    if guess is None:
        return f"the nearest cut takes {got}: the next one in either direction is farther away"
    return f"the nearest of {MOST} measured cuts takes {got}"
