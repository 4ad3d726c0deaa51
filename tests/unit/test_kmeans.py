"""One-dimensional k-means against the definition and against the optimum by dynamic programming."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress import kmeans
from edgecompress.errors import UserError

INITS = ("linear", "density", "forgy")
NUMBERS = st.lists(st.one_of(st.floats(-4, 4, width=32), st.integers(-3, 3).map(float)), min_size=1, max_size=60)


def optimum(numbers: np.ndarray, k: int) -> float:
    """The smallest sum of squared differences of k clusters: the plain O(k n²) recursion over sorted numbers."""
    x = np.sort(numbers.astype(np.float64))
    n = len(x)
    cost = np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            cost[i, j] = ((x[i:j] - x[i:j].mean()) ** 2).sum()
    best = cost[0].copy()
    best[0] = 0
    for _ in range(k - 1):
        best = np.array([min(best[i] + cost[i, j] for i in range(j + 1)) for j in range(n + 1)])
    return float(best[n])


@settings(max_examples=200, deadline=None)
@given(NUMBERS, st.data())
def test_what_it_returns_is_a_k_means(numbers, data):
    x = np.array(numbers)
    k = data.draw(st.integers(1, len(np.unique(x))))
    init = data.draw(st.sampled_from(INITS))
    found = kmeans.cluster(x, k, init=init, seed=data.draw(st.integers(0, 9)))
    assert found.centres.shape == (k,) and (np.diff(found.centres) > 0).all()
    assert found.labels.dtype == np.int32 and set(found.labels.tolist()) == set(range(k)), "no cluster is empty"
    distance = np.abs(x[:, None] - found.centres)
    own = distance[np.arange(len(x)), found.labels]
    assert (own <= distance.min(1) + 1e-9).all(), "every number has the centre nearest to it"
    for label in range(k):
        assert found.centres[label] == pytest.approx(x[found.labels == label].mean(), abs=1e-9)
    assert found.sse == pytest.approx((own**2).sum(), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=14), st.data())
def test_it_is_not_below_the_optimum_and_many_starts_reach_it(numbers, data):
    x = np.array(numbers)
    k = data.draw(st.integers(1, len(np.unique(x))))
    best = optimum(x, k)
    errors = [kmeans.cluster(x, k, init=init).sse for init in INITS]
    errors += [kmeans.cluster(x, k, init="forgy", seed=seed).sse for seed in range(100)]
    assert min(errors) >= best - 1e-9
    assert min(errors) == pytest.approx(best, abs=1e-7)


def test_the_order_of_the_numbers_does_not_matter():
    x = np.random.default_rng(1).normal(size=500)
    order = np.random.default_rng(2).permutation(500)
    for init in INITS:
        one, two = kmeans.cluster(x, 9, init=init), kmeans.cluster(x[order], 9, init=init)
        np.testing.assert_array_equal(one.centres, two.centres)
        np.testing.assert_array_equal(one.labels[order], two.labels)


def test_as_many_values_as_numbers_lose_nothing_and_one_value_is_the_mean():
    x = np.random.default_rng(0).normal(size=300).astype(np.float32).repeat(2)
    for init in INITS:
        assert kmeans.cluster(x, 300, init=init).sse == 0
        assert kmeans.cluster(x, 1, init=init).centres[0] == pytest.approx(x.astype(np.float64).mean())


def test_initialisations():
    x = np.array([0.0] * 90 + list(range(1, 11)))
    runs = kmeans._Runs(*(v.astype(float) for v in np.unique(x, return_counts=True)))
    np.testing.assert_allclose(kmeans._start(runs, 5, "linear", 0), [0, 2.5, 5, 7.5, 10])
    np.testing.assert_allclose(kmeans._start(runs, 10, "density", 0), [0] * 9 + [5])
    forgy = kmeans._start(runs, 4, "forgy", 3)
    assert set(forgy) <= set(x) and len(set(forgy)) == 4
    assert not np.array_equal(forgy, kmeans._start(runs, 4, "forgy", 4))


def test_large_numbers_close_to_each_other_do_not_cancel():
    x = 1e6 + np.array([0, 1, 2, 100, 101, 102]) * 1e-3
    found = kmeans.cluster(x, 2)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.sse == pytest.approx(2 * 2e-6, rel=1e-3)


@pytest.mark.parametrize("k", [0, 4, -1])
def test_more_values_than_there_are_is_a_clear_message(k):
    with pytest.raises(UserError, match=f"{k} values were asked for, and there are 3 distinct numbers"):
        kmeans.cluster(np.array([1.0, 2.0, 2.0, 3.0]), k)


def test_a_million_numbers_take_seconds_and_not_minutes():
    x = np.random.default_rng(0).standard_t(3, 1_000_000).astype(np.float32)
    began = time.process_time()
    found = kmeans.cluster(x, 32)
    assert len(found.centres) == 32 and time.process_time() - began < 60
