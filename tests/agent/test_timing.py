"""The timed loop itself, with a step whose duration is known."""

from __future__ import annotations

import gc
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


def test_a_latency_is_the_steps_own_duration() -> None:
    latencies, cut = _timed(lambda _: time.sleep(0.005), 0.1)
    assert not cut
    assert 5 <= len(latencies) <= 20
    assert 5e6 <= min(latencies) < 7e6


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


def test_faster_than_expected_loses_nothing() -> None:
    """The storage was made for one inference: it grows, and every inference is in it."""
    count = 0

    def step(_: Any) -> None:
        nonlocal count
        count += 1

    latencies, cut = _timed(step, 0.05, expected_ns=10**12)
    assert len(latencies) == count > 1000
    assert all(ns >= 0 for ns in latencies) and sum(latencies) <= 1e9
    assert not cut


def test_the_most_that_is_kept_ends_it_and_is_told() -> None:
    latencies, cut = _timed(lambda _: None, 5, at_most=1000, expected_ns=1)
    assert (len(latencies), cut) == (1000, True)


def test_the_least_is_done_however_long_it_takes() -> None:
    latencies, cut = _timed(lambda _: time.sleep(0.002), 0, at_least=10)
    assert (len(latencies), cut) == (10, False)
