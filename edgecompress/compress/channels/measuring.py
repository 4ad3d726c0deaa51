"""What channel pruning asks of a device: the multiple that its engine likes, and which cut meets a latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from edgecompress import latency_search
from edgecompress.errors import UserError
from edgecompress.latency_search import Found

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.channels import Params
    from edgecompress.compress.contract import Context

InShape = tuple[int, ...]


class Asking(Protocol):
    """The parameters of a method whose widths are multiples of something."""

    @property
    def multiple(self) -> int | Literal["auto"]: ...

    @property
    def device(self) -> str | None: ...

    @property
    def format(self) -> str: ...


def multiple_for(model: nn.Module, in_shape: InShape, params: Asking, context: Context) -> int:
    """The multiple that widths are rounded to; where it is "auto" the device's, with what was measured among the notes."""
    if params.multiple != "auto":
        return params.multiple
    found = context.bench(params.device, params.format).multiple(model, _image(in_shape))
    context.note("multiple_measured", found)
    return int(found["multiple"])


def _image(shape: InShape) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


class LatencyBudget:
    """A latency that is asked for, against the network as it came into the step."""

    def __init__(self, model: nn.Module, in_shape: InShape, params: Params, context: Context) -> None:
        self._dense, self._in_shape, self._params, self._context = copy.deepcopy(model), in_shape, params, context
        self._reached = 1.0

    def meet(self, candidate: Callable[[int], nn.Module], shares: Sequence[float], part: float) -> Found:
        """The cut that brings `part` of the way to the budget, noted with all that was measured.

        candidate: number → the network of that cut; shares: their fractions of the MACs (see `latency_search.find`).
        UserError for a time in ms that the whole network does not exceed.
        """
        with self._context.bench(self._params.device, self._params.format).against(
            self._dense, _image(self._in_shape)
        ) as ratio_of:
            wanted = self._params.latency
            if isinstance(wanted, str):
                dense_ms = ratio_of.dense_ms()
                wanted = float(wanted.removesuffix("ms")) / dense_ms
                self._context.note("dense_ms", dense_ms)
                if not 0 < wanted < 1:
                    raise UserError(
                        f"latency: {self._params.latency} was asked for; the network as it is takes {dense_ms:.4g} ms",
                        fix="Ask for less, or leave the step out.",
                    )
            assert wanted is not None
            target = 1 + (wanted - 1) * part
            found = latency_search.find(
                lambda number: ratio_of(candidate(number), target), target, shares, start=self._reached
            )
        self._reached = found.nearest.measured.ratio
        self._context.note("latency", found.notes())
        self._context.note("budget_met", found.met)
        if found.reason is not None:
            self._context.note("budget_reason", found.reason)
            self._context.progress.say(f"channels: latency: {found.reason}; {target:.3f} was asked for")
        if found.nearest.measured.busy:
            busy = f"the rounds lie {found.nearest.measured.spread:.0%} apart: other work on the device, the ratio may be wrong"
            self._context.note("latency_warning", busy)
            self._context.progress.say(f"warning: channels: latency: {busy}")
        return found
