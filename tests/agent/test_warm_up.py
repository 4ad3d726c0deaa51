"""The warm-up's end, on latencies that are known beforehand."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from edgecompress_agent.warm_up import warm_up

MS = 1_000_000


def engine(latency_ns: Callable[[float], int]) -> Callable[[float, int], tuple[array[int], bool]]:
    """Inferences on a clock of its own. latency_ns: of the inference that begins at this second."""
    now = 0

    def run(seconds: float, most: int) -> tuple[array[int], bool]:
        nonlocal now
        end, taken = now + seconds * 1e9, array("q")
        while True:
            taken.append(latency_ns(now / 1e9))
            now += taken[-1]
            if now >= end or len(taken) == most:
                return taken, now < end

    return run


def test_a_steady_engine_is_warmed_up_for_as_long_as_was_asked() -> None:
    taken, note = warm_up(engine(lambda t: MS), 1.0, 10**6)
    assert (sum(taken), note) == (1000 * MS, None)


def test_it_goes_on_until_the_latencies_are_steady() -> None:
    taken, note = warm_up(engine(lambda t: MS + int(2 * MS * max(0.0, 1.6 - t))), 1.0, 10**6)
    assert note is None
    assert 1.9e9 < sum(taken) < 2.4e9 and set(taken[-300:]) == {MS}


def test_a_start_that_is_slow_is_forgotten_within_the_time_that_was_asked() -> None:
    taken, note = warm_up(engine(lambda t: 5 * MS if t < 0.4 else MS), 1.0, 10**6)
    assert note is None and sum(taken) <= 1_000 * MS


def test_one_that_is_never_steady_ends_at_the_limit_and_is_told() -> None:
    taken, note = warm_up(engine(lambda t: MS + int(MS * (t // 0.25 % 2))), 1.0, 10**6)
    assert 3.9e9 < sum(taken) < 4.3e9
    assert note is not None and "not steady after a warm-up of 4" in note and "100 % apart" in note


@pytest.mark.parametrize("latency_s", [0.3, 0.9, 2.0, 30.0])
def test_a_slow_model_is_not_kept_warming_up(latency_s: float) -> None:
    taken, _ = warm_up(engine(lambda t: int(latency_s * 1e9 * (1 + t % 0.7))), 1.0, 10**6)
    assert len(taken) >= 1
    assert sum(taken) <= max(4e9, latency_s * 1e9) + 2 * latency_s * 1e9


def test_nothing_was_asked() -> None:
    taken, note = warm_up(engine(lambda t: MS), 0.0, 10**6)
    assert (len(taken), note) == (1, None)


def test_no_more_inferences_than_are_kept() -> None:
    taken, note = warm_up(engine(lambda t: MS), 1.0, 100)
    assert len(taken) == 100 and note == "the warm-up ended before 1 s, after 100 inferences"
    taken, note = warm_up(engine(lambda t: MS + int(MS * (t // 0.25 % 2))), 1.0, 1000)
    assert len(taken) == 1000 and note is not None and "not steady" in note
