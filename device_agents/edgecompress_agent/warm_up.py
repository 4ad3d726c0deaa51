"""Warming up: for as long as was asked, and then on until the latencies are steady, within a limit."""

from __future__ import annotations

import statistics
from array import array
from typing import Callable, Optional, Sequence, Tuple

STEADY = 0.05
"""The medians of two parts that follow one another differ by this fraction at most: as the blocks of a steady timing."""
PARTS, MOST_PARTS = 4, 16
"""Parts of the time that was asked for, and how many of them a warm-up has at most."""

Run = Callable[[float, int], Tuple["array[int]", bool]]
"""Inferences for so many seconds, at most so many: (latencies in ns, whether their number ended it)."""


def warm_up(run: Run, seconds: float, most: int) -> Tuple["array[int]", Optional[str]]:
    """(latencies in ns, a sentence when they were not steady in the end or `most` of them ended it early).

    Clocks rise, caches fill and other work ends in a time that nobody knows before: the medians of the last two parts tell.
    """
    taken, cut = run(seconds, most)
    part_ns = seconds * 1e9 / PARTS
    if cut:
        return taken, f"the warm-up ended before {seconds:g} s, after {len(taken)} inferences"
    if not seconds:
        return taken, None
    before, last = _last_two(taken, part_ns)
    spent_ns = float(sum(taken))
    for _ in range(MOST_PARTS - PARTS):
        if _apart(before, last) <= STEADY or spent_ns >= MOST_PARTS * part_ns or len(taken) >= most:
            break
        more, _ = run(seconds / PARTS, most - len(taken))
        taken.extend(more)
        spent_ns += sum(more)
        before, last = last, statistics.median(more)
    if _apart(before, last) <= STEADY:
        return taken, None
    return taken, (
        f"not steady after a warm-up of {spent_ns / 1e9:.2g} s: the medians of its last two parts lie "
        f"{100 * _apart(before, last):.0f} % apart"
    )


def _last_two(taken: Sequence[int], part_ns: float) -> Tuple[float, float]:
    """Medians of the last but one and of the last part; each has one inference at least (the first is the last of one alone)."""
    first = last = _start(taken, len(taken), part_ns)
    if last:
        first = _start(taken, last, part_ns)
    return statistics.median(taken[first : last or None]), statistics.median(taken[last:])


def _start(taken: Sequence[int], end: int, part_ns: float) -> int:
    """Where the part begins that ends before position `end`."""
    start, spent = end, 0
    while start > 0 and spent < part_ns:
        start -= 1
        spent += taken[start]
    return start


def _apart(before: float, last: float) -> float:
    return abs(last - before) / max(min(before, last), 1.0)
