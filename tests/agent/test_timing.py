"""The timed loop itself, with a step whose duration is known."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from edgecompress_agent import measure, wire
from edgecompress_agent.engines import Engine

INFO = wire.EngineInfo("litert", "none", "0", "0", (), 1, (), ())


def _timed(step: Callable[[Any], Any], seconds: float, **changes: int) -> tuple[list[int], bool]:
    arguments = {"at_least": 1, "at_most": 10**6, "expected_ns": 10**6, **changes}
    latencies, cut = measure._timed(Engine(INFO, list, step), ["a", "b", "c"], seconds, **arguments)
    return list(latencies), cut


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A clock that stands still but when a step says how many ns it took."""
    now = 0

    def goes_on(ns: int) -> None:
        nonlocal now
        now += ns

    monkeypatch.setattr("edgecompress_agent.measure.time.monotonic_ns", lambda: now)
    return goes_on


def test_a_latency_is_the_steps_own_duration(clock: Callable[[int], None]) -> None:
    taken = itertools.cycle((5_000_000, 6_000_000))
    latencies, cut = _timed(lambda _: clock(next(taken)), 0.1)
    assert not cut
    assert latencies == [5_000_000, 6_000_000] * 9 + [5_000_000]


def test_a_latency_is_in_real_time() -> None:
    assert min(_timed(lambda _: time.sleep(0.005), 0.1)[0]) >= 5e6


def test_inputs_are_taken_in_turn_and_nothing_is_collected_meanwhile() -> None:
    seen: list[tuple[str, bool]] = []
    _timed(lambda feed: seen.append((feed, gc.isenabled())), 0, at_least=7)
    assert seen == [(name, False) for name in "abcabca"]
    assert gc.isenabled()


def test_the_collector_is_back_after_a_failure() -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("engine")

    with pytest.raises(RuntimeError):
        _timed(fail, 1)
    assert gc.isenabled()


def test_faster_than_expected_loses_nothing(clock: Callable[[int], None]) -> None:
    """The storage was made for one inference: it grows, and every inference is in it."""
    taken = itertools.count(10_000)
    latencies, cut = _timed(lambda _: clock(next(taken)), 0.05, expected_ns=10**12)
    assert len(latencies) > 1000 and latencies == list(range(10_000, 10_000 + len(latencies)))
    assert not cut


def test_the_most_that_is_kept_ends_it_and_is_told() -> None:
    latencies, cut = _timed(lambda _: None, 5, at_most=1000, expected_ns=1)
    assert (len(latencies), cut) == (1000, True)


def test_the_least_is_done_however_long_it_takes() -> None:
    latencies, cut = _timed(lambda _: time.sleep(0.002), 0, at_least=10)
    assert (len(latencies), cut) == (10, False)
