"""Interleaving: each variant is measured in several rounds, in the order A B C, C B A, …, so that a drift of the device cancels.

A device warms up, its clock moves, somebody logs in: measured one after the other, the later variant would carry all of it.
Each round starts the engine anew, so that what varies from start to start is part of the spread, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import chain

from edgecompress_agent import wire

from edgecompress.study import MeasureSpec


def share(measure: MeasureSpec, number: int) -> MeasureSpec:
    """What one round does of the whole: its part of the time and of the blocks. Only the first scores, and times operators."""
    return measure.model_copy(
        update={
            "min_s": measure.min_s / measure.rounds,
            "blocks": max(1, math.ceil(measure.blocks / measure.rounds)),
            "score_on": measure.score_on if number == 0 else "none",
            "profile_ops": measure.profile_ops and number == 0,
            "power": measure.power
            and measure.power.model_copy(update={"windows": math.ceil(measure.power.windows / measure.rounds)}),
        }
    )


def merge(results: Sequence[wire.Result]) -> wire.Result:
    """One result of a variant's rounds, in their order: blocks, warm-ups, conditions and warnings of all; raw, nothing averaged.

    The power passes are joined (`wire.Power` says how).
    Predictions, load time, first inference and operators' times are the first round's; the peak memory is the largest.
    """
    first = results[0]
    peaks = [r.peak_rss_bytes for r in results if r.peak_rss_bytes is not None]
    return dataclasses.replace(
        first,
        conditions=tuple(chain.from_iterable(r.conditions for r in results)),
        warmup_ns=tuple(chain.from_iterable(r.warmup_ns for r in results)),
        blocks=tuple(chain.from_iterable(r.blocks for r in results)),
        peak_rss_bytes=max(peaks, default=None),
        power=_joined([r.power for r in results if r.power is not None]),
        power_reason=next((r.power_reason for r in results if r.power_reason), None),
        warnings=tuple(dict.fromkeys(chain.from_iterable(r.warnings for r in results))),
    )


def _joined(passes: Sequence[wire.Power]) -> wire.Power | None:
    """The power passes of the rounds as one; rails that not all of them have are left out."""
    if not passes:
        return None
    traces = [p.trace for p in passes]
    rails = [name for name in traces[0].rails_mw if all(name in t.rails_mw for t in traces)]
    widest = max(traces, key=lambda t: t.info.interval_s)  # a trace that was thinned out says so in its sensor's notes
    trace = wire.Trace(
        info=widest.info,
        t_ns=tuple(chain.from_iterable(t.t_ns for t in traces)),
        power_uw=tuple(chain.from_iterable(t.power_uw for t in traces)),
        rails_mw={name: tuple(chain.from_iterable(t.rails_mw[name] for t in traces)) for name in rails},
        stale=sum(t.stale for t in traces),
        overflows=sum(t.overflows for t in traces),
        late=sum(t.late for t in traces),
        ended_reason=next((t.ended_reason for t in traces if t.ended_reason), None),
        dropped=sum(t.dropped for t in traces),
        clock_error_s=max(t.clock_error_s for t in traces),
    )
    return wire.Power(trace, tuple(chain.from_iterable(p.windows for p in passes)))
