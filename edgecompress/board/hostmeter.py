"""A meter that hangs at the workstation: the agent's own sensors, read here, while the agent runs the power pass on the board.

Two clocks have to become one. A clock pair is the board's monotonic clock, asked for over the link: it lies between this
machine's clock before the question and after the answer. Most of that time goes by before the answer, while Python starts on
the board, so the pair is narrowed by the moment at which the kernel there started the process. Pairs are taken before, during
(outside the power pass, which a question would disturb) and after; offset and drift are fitted by weighted least squares, and
what the fit leaves open goes into the trace as `clock_error_s`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from edgecompress_agent import sensors, wire
from edgecompress_agent.sampler import Sampler

from edgecompress.board.agent import Agent
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed

_PAIRS = 5
"""Before, and again after: the narrowest of them decide."""
_MOST_NUMBERS = 1 << 22
"""Of the trace: 33 minutes at 1 kHz; this machine has more memory than a board."""
_QUARTZ = 100e-6
"""How far two clocks drift apart at most, as a fraction: twice what a cheap quartz does over its temperatures."""
_RUNAWAY = 10 * _QUARTZ


@dataclass(frozen=True)
class Pair:
    """The offset (board minus host, ns) lies between low_ns and high_ns at the host's time at_ns."""

    at_ns: int
    low_ns: int
    high_ns: int

    @property
    def offset_ns(self) -> float:
        return (self.low_ns + self.high_ns) / 2

    @property
    def half_ns(self) -> float:
        """At least 1 µs: nothing crosses a link faster."""
        return max((self.high_ns - self.low_ns) / 2, 1e3)


def pair_of(before_ns: int, clock: wire.Clock, after_ns: int) -> Pair:
    """From one question and its answer."""
    low, high = clock.monotonic_ns - after_ns, clock.monotonic_ns - before_ns
    if clock.started_ns is not None:
        started = clock.started_ns - before_ns
        high = started if low <= started < high else high
    return Pair((before_ns + after_ns) // 2, low, high)


@dataclass(frozen=True)
class Alignment:
    """board = host + offset_ns + drift · (host - origin_ns), known to within error_s."""

    origin_ns: int
    offset_ns: float
    drift: float
    error_s: float

    def on_board(self, host_ns: int) -> int:
        return host_ns + round(self.offset_ns + self.drift * (host_ns - self.origin_ns))


def align(pairs: Sequence[Pair]) -> Alignment:
    """Weighted least squares; each pair weighs as its width says. StepFailed when the clocks run apart as no clocks do.

    The drift is left out where the pairs are too wide for the time between them to tell one. The error is a limit: a pair
    says that the fit is off by no more than its own residual and half width there, and what is off is a straight line, so
    between the best pair of the first half of the time and that of the second it is nowhere more than at the worse of the two.
    """
    weights = [1 / p.half_ns**2 for p in pairs]
    total = sum(weights)
    origin = round(sum(w * p.at_ns for w, p in zip(weights, pairs, strict=True)) / total)
    offset = sum(w * p.offset_ns for w, p in zip(weights, pairs, strict=True)) / total
    narrowest = min(p.half_ns for p in pairs)
    spread = sum(w * (p.at_ns - origin) ** 2 for w, p in zip(weights, pairs, strict=True))
    first, last = min(p.at_ns for p in pairs), max(p.at_ns for p in pairs)
    drift = 0.0
    if last > first and narrowest / (last - first) < _QUARTZ / 2:
        slope = sum(w * (p.at_ns - origin) * (p.offset_ns - offset) for w, p in zip(weights, pairs, strict=True))
        drift = slope / spread
    if abs(drift) > _RUNAWAY:
        raise StepFailed(f"the clocks of host and board run apart by {1e6 * drift:+.0f} ppm: one of them was set")
    off_ns = {p.at_ns: abs(p.offset_ns - offset - drift * (p.at_ns - origin)) + p.half_ns for p in pairs}
    middle = (first + last) / 2
    early = min(off for at, off in off_ns.items() if at <= middle)
    late = min(off for at, off in off_ns.items() if at >= middle)
    return Alignment(origin, offset, drift, max(early, late) / 1e9)


class HostMeter:
    """The meter of a device profile, open, and the clock pairs of one job. A context manager: reads while it is entered.

    AgentError when it cannot be opened.
    """

    def __init__(self, profile: DeviceProfile, agent: Agent) -> None:
        self._profile, self._agent = profile, agent
        self._sampler = Sampler(sensors.open_sensor(profile.sensor, profile.sensor_options), most_numbers=_MOST_NUMBERS)
        self._pairs: list[Pair] = []
        self._since_ns = 0

    def __enter__(self) -> HostMeter:
        with ExitStack() as unless_done:  # nobody calls __exit__ after an error here, and the meter would stay taken
            unless_done.enter_context(self._sampler)
            self._take_pairs(_PAIRS)
            unless_done.pop_all()
        self._forget()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.__exit__(kind, error, trace)

    def job(self, job: wire.Job) -> wire.Job:
        """The job as the board gets it: it runs the pass, and leaves the sensor to this machine."""
        if job.power is None:
            return job
        plan = dataclasses.replace(job.power, host_interval_s=self._sampler.info.interval_s)
        return dataclasses.replace(job, sensor="none", sensor_options={}, power=plan)

    def between(self) -> None:
        """The job runs, and is not in its power pass: take a pair. A long wait's readings are let go of before they fill
        the store; few are not, because the pass may have begun since the board said how it stands."""
        if self._sampler.count > _MOST_NUMBERS // 16:
            self._forget()
        self._take_pairs(1)

    def _forget(self) -> None:
        self._sampler.forget()
        self._since_ns = time.monotonic_ns()

    def join(self, result: wire.Result) -> wire.Result:
        """The job's result with the meter's trace, on the board's clock; or with the reason why there is none."""
        host_end_ns = time.monotonic_ns()
        self._sampler.wait_for(host_end_ns)
        trace = self._sampler.stop()
        result = dataclasses.replace(result, sensor=self._profile.sensor)
        if result.status != "ok" or not result.windows:
            return result
        if not trace.t_ns:
            return _without(result, trace.ended_reason or "the meter at this machine gave no reading")
        try:  # the measurement is here and its job is gone from the board: what comes too late costs the energy only
            self._take_pairs(_PAIRS)
            clocks = align(self._pairs)
        except StepFailed as error:
            return _without(result, str(error))
        if result.windows[0].start_ns < clocks.on_board(self._since_ns):
            return _without(
                result, "nobody read the meter at this machine during the power pass: the job was joined later"
            )
        trace = dataclasses.replace(
            trace, t_ns=tuple(clocks.on_board(t) for t in trace.t_ns), clock_error_s=clocks.error_s
        )
        power = wire.Power(trace, result.windows)
        return dataclasses.replace(result, power=power, power_reason=trace.ended_reason, windows=())

    def _take_pairs(self, count: int) -> None:
        for _ in range(count):
            self._pairs.append(pair_of(*self._agent.clock()))


def _without(result: wire.Result, reason: str) -> wire.Result:
    return dataclasses.replace(result, power=None, power_reason=reason, windows=())
