"""The search for a cut by its latency: on latencies that follow the arithmetic, that come in steps, that are noisy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.latency_search import MOST, TOLERANCE, LatencyRatio, find, ratio_of

SHARES = [1.0 - 0.9 * k / 150 for k in range(151)]


class Device:
    """Answers ratio(share) for a candidate, and remembers which it was asked for."""

    def __init__(self, ratio, shares=SHARES) -> None:
        self.ratio, self.shares, self.asked = ratio, shares, []

    def __call__(self, index: int) -> LatencyRatio:
        self.asked.append(index)
        value = self.ratio(self.shares[index])
        return LatencyRatio(value, 0.99 * value, 1.01 * value, 10.0, 10.0 * value, 3, 0.02)


@pytest.mark.parametrize(
    "ratio",
    [lambda s: s, lambda s: 0.3 + 0.7 * s, lambda s: s**0.5, lambda s: s**2, lambda s: np.ceil(s * 40) / 40],
    ids=["proportional", "fixed part", "root", "square", "steps"],
)
@pytest.mark.parametrize("target", [0.75, 0.5, 0.4])
def test_it_comes_within_2_percent_in_a_few_measurements(ratio, target):
    device = Device(ratio)
    found = find(device, target, SHARES)
    assert found.met and found.reason is None and abs(found.nearest.measured.ratio / target - 1) <= TOLERANCE
    assert len(device.asked) <= 5 and len(set(device.asked)) == len(device.asked) and 0 not in device.asked
    assert found.notes()["met"] and len(found.notes()["measured"]) == len(device.asked)


def test_a_target_between_two_cuts_is_said_with_the_nearest():
    shares = [1.0, 0.8, 0.6, 0.4, 0.2]
    device = Device(lambda s: s, shares)
    found = find(device, 0.47, shares)
    assert found.index == 3 and not found.met and not found.out_of_reach
    assert "0.400" in found.reason and sorted(device.asked) == [2, 3]


def test_a_target_out_of_reach_is_said_with_the_least():
    device = Device(lambda s: 0.6 + 0.4 * s)
    found = find(device, 0.5, SHARES)
    assert found.out_of_reach and not found.met and found.index == len(SHARES) - 1
    assert "0.640" in found.reason and len(device.asked) <= MOST


def test_the_mildest_cut_that_is_too_fast_already_is_the_nearest():
    shares = [1.0, 0.5, 0.2]
    found = find(Device(lambda s: s, shares), 0.9, shares)
    assert found.index == 1 and not found.met and not found.out_of_reach


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6), target=st.floats(0.15, 0.95), noise=st.floats(0, 0.1),
    shares=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=80),
)  # fmt: skip
def test_whatever_is_measured_it_ends_and_gives_the_nearest(seed, target, noise, shares):
    generator = np.random.default_rng(seed)
    falling = [1.0, *sorted(shares, reverse=True)]
    device = Device(lambda s: float(s * np.exp(generator.normal(0, noise))), falling)
    found = find(device, target, falling)
    assert len(device.asked) == len(set(device.asked)) == len(found.samples) <= MOST
    assert all(1 <= index < len(falling) for index in device.asked)
    off = [abs(s.measured.ratio / target - 1) for s in found.samples]
    assert abs(found.nearest.measured.ratio / target - 1) == min(off)
    assert found.met == (min(off) <= TOLERANCE) == (found.reason is None)


def test_what_slows_a_round_cancels_in_the_ratio():
    slowed = [1.0, 3.0, 1.1, 2.0, 1.0]
    found = ratio_of([10 * s for s in slowed], [4 * s for s in slowed])
    assert found.ratio == pytest.approx(0.4) and found.low == pytest.approx(0.4) and found.high == pytest.approx(0.4)
    assert (found.dense_ms, found.candidate_ms, found.rounds) == pytest.approx((11, 4.4, 5))
    assert found.spread == pytest.approx(2.0) and found.busy
    disturbed = ratio_of([10] * 5, [4, 4.1, 9, 3.9, 4])
    assert disturbed.ratio == pytest.approx(0.4) and disturbed.high > 0.41 and disturbed.busy
    assert not ratio_of([10, 11, 10], [5, 5, 5.1]).busy


@pytest.mark.parametrize(("target", "shares"), [(0.0, SHARES), (1.0, SHARES), (0.5, [1.0])])
def test_what_cannot_be_searched_is_refused(target, shares):
    with pytest.raises(ValueError, match="target"):
        find(Device(lambda s: s), target, shares)
