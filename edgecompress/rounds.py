"""Interleaving: each variant is measured in several rounds, in the order A B C, C B A, …, so that a drift of the device cancels.

A device warms up, its clock moves, somebody logs in: measured one after the other, the later variant would carry all of it.
Each round starts the engine anew, so that what varies from start to start is part of the spread, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

from edgecompress_agent import wire

from edgecompress.study import MeasureSpec

Item = TypeVar("Item")


def order(items: Sequence[Item], rounds: int) -> Iterator[tuple[int, Item]]:
    """(round, item): all items forwards, then backwards, then forwards …"""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            yield number, item


def share(measure: MeasureSpec, number: int) -> MeasureSpec:
    """What one round does of the whole: its part of the time and of the blocks. The first round alone scores."""
    return measure.model_copy(
        update={
            "min_s": measure.min_s / measure.rounds,
            "blocks": max(1, math.ceil(measure.blocks / measure.rounds)),
            "score_on": measure.score_on if number == 0 else "none",
        }
    )


def merge(results: Sequence[wire.Result]) -> wire.Result:
    """One result of a variant's rounds, in their order: blocks, warm-ups, conditions and warnings of all; raw, nothing averaged.

    Predictions, load time and first inference are the first round's; the peak memory is the largest.
    """
    first = results[0]
    peaks = [r.peak_rss_bytes for r in results if r.peak_rss_bytes is not None]
    return dataclasses.replace(
        first,
        conditions=tuple(chain.from_iterable(r.conditions for r in results)),
        warmup_ns=tuple(chain.from_iterable(r.warmup_ns for r in results)),
        blocks=tuple(chain.from_iterable(r.blocks for r in results)),
        peak_rss_bytes=max(peaks, default=None),
        warnings=tuple(dict.fromkeys(chain.from_iterable(r.warnings for r in results))),
    )
