"""From a sensor to a trace: a thread that reads, and a store of bounded size that it reads into.

The thread sleeps in the kernel until the sensor has a new value, holds Python's lock for the few µs that it takes to keep it,
and leaves the CPUs of the inference alone where it may. Nothing that the source says is left out or mended: stale repeats,
overflows, gaps and a clock that goes backwards stay in the trace and are counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from array import array
from typing import Dict, List, Optional, Sequence, Tuple

from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import Sample, Sensor, SensorFault
from edgecompress_agent.wire import SensorInfo, Trace

MOST_NUMBERS = 1 << 19
"""That a trace holds: 262,144 readings of power alone (4 MB; 4 minutes at 1 kHz), fewer with rails."""
_LATE = 1.5
"""Intervals after the reading before."""


class Recorder:
    """The store. `add` keeps every sample until it is full; then pairs of neighbours become one, weighted by the time that
    each stands for, so that the integral stays, and from there on so many samples go into one as are in those.

    interval_s: the sensor's nominal one. most_numbers: bound of what is stored (stamps, powers and rails alike).
    """

    def __init__(self, interval_s: float, most_numbers: int = MOST_NUMBERS) -> None:
        self._interval_ns = interval_s * 1e9
        self._most_numbers = most_numbers
        self._most = max(4, most_numbers // 4 * 2)
        self._t_ns, self._power_uw = array("q"), array("q")
        self._rails: Dict[str, "array[int]"] = {}
        self._together = 1
        self._group: List[Sample] = []
        """Samples that will become one, and before them the last of the group before (for the time that the first stands for)."""
        self._last: Optional[Sample] = None
        self.count = self.stale = self.overflows = self.late = self.dropped = 0
        """Samples so far, and how many of them were what `wire.Trace` says."""

    @property
    def last_ns(self) -> Optional[int]:
        """The stamp of the newest sample."""
        return None if self._last is None else self._last.t_ns

    def add(self, sample: Sample) -> None:
        """Keep a sample. SensorFault when its rails are not those of the samples before."""
        last = self._last
        if last is None:
            self._rails = {name: array("q") for name in sample.rails_mw or {}}
            self._most = max(4, self._most_numbers // (2 + len(self._rails)) // 2 * 2)
        else:
            step_ns = sample.t_ns - last.t_ns
            if step_ns > _LATE * self._interval_ns:
                self.late += 1
                self.dropped += round(step_ns / self._interval_ns) - 1
        if (sample.rails_mw or {}).keys() != self._rails.keys():
            had, has = ", ".join(self._rails) or "none", ", ".join(sample.rails_mw or {}) or "none"
            raise SensorFault(f"its rails changed from {had} to {has}")
        self.stale += sample.stale
        self.overflows += sample.overflow
        self.count += 1
        self._last = sample
        if self._together == 1:
            self._store(sample.t_ns, sample.power_uw, sample.rails_mw or {})
        else:
            self._group.append(sample)
            # the last one's weight needs its successor: it stays behind, and the group is complete with the next
            if len(self._group) == self._together + 2:
                self._store_group(self._group)
                del self._group[: self._together]
        if len(self._t_ns) >= self._most:
            self._halve()

    def trace(self, info: SensorInfo, ended_reason: Optional[str] = None) -> Trace:
        """What was kept so far. The nominal interval is that of the values kept, and a note says when they were joined."""
        t_ns, power_uw = self._t_ns[:], self._power_uw[:]
        rails = {name: values[:] for name, values in self._rails.items()}
        for sample in self._group[1:]:  # too few for one more: as they are
            t_ns.append(sample.t_ns)
            power_uw.append(sample.power_uw)
            for name, values in rails.items():
                values.append((sample.rails_mw or {})[name])
        if self._together > 1:
            note = f"the trace was too long to keep: {self._together} readings are averaged into one"
            info = dataclasses.replace(
                info, interval_s=info.interval_s * self._together, notes=(*info.notes, note)
            )  # fmt: skip
        return Trace(
            info,
            tuple(t_ns),
            tuple(power_uw),
            {name: tuple(values) for name, values in rails.items()},
            stale=self.stale,
            overflows=self.overflows,
            late=self.late,
            ended_reason=ended_reason,
            dropped=self.dropped,
        )

    def _store(self, t_ns: int, power_uw: int, rails_mw: Dict[str, int]) -> None:
        self._t_ns.append(t_ns)
        self._power_uw.append(power_uw)
        for name, values in self._rails.items():
            values.append(rails_mw[name])

    def _store_group(self, group: Sequence[Sample]) -> None:
        """One value of all samples but the first and the last, which are there for their stamps."""
        weights = _weights([s.t_ns for s in group])[1:-1]
        inner = group[1:-1]
        self._store(
            _mean([s.t_ns for s in inner], weights),
            _mean([s.power_uw for s in inner], weights),
            {name: _mean([(s.rails_mw or {})[name] for s in inner], weights) for name in self._rails},
        )

    def _halve(self) -> None:
        """Join all neighbours, an even number of values. Some 50 ms for a full store on a small board, once in minutes."""
        weights = _weights(self._t_ns)
        pairs = list(zip(weights[::2], weights[1::2]))
        for column in (self._t_ns, self._power_uw, *self._rails.values()):
            joined = [a + (b - a) * v // (u + v) for a, b, (u, v) in zip(column[::2], column[1::2], pairs)]
            column[:] = array("q", joined)
        if self._together == 1:
            assert self._last is not None
            self._group = [self._last]
        self._together *= 2


def _weights(t_ns: Sequence[int]) -> List[int]:
    """Twice the time that each stamp stands for in the trapezoid rule. All equal when the clock went backwards between them."""
    found = [after - before for before, after in zip((t_ns[0], *t_ns[:-1]), (*t_ns[1:], t_ns[-1]))]
    return found if min(found) > 0 else [1] * len(t_ns)


def _mean(values: Sequence[int], weights: Sequence[int]) -> int:
    first = values[0]  # differences from it: products of stamps and weights would not lose anything, but grow long
    return first + round(sum((v - first) * w for v, w in zip(values, weights)) / sum(weights))


class Sampler:
    """The thread. A context manager: reads from its beginning to its end, or until the sensor fails.

    cpus: those that the thread may run on; None: those of the process. It closes the sensor at the end.
    """

    def __init__(self, sensor: Sensor, cpus: Optional[Sequence[int]] = None, most_numbers: int = MOST_NUMBERS) -> None:
        self._sensor, self._cpus = sensor, cpus
        self.info = sensor.info
        self._most_numbers = most_numbers
        self._recorder = Recorder(self.info.interval_s, most_numbers)
        self._stopping = False
        self._lock = threading.Lock()  # of the recorder, whose columns have to be of one length when they are copied
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.timeout_s = max(2.0, 5 * self.info.interval_s)
        """After so long without a new value, the sensor is taken for dead."""
        self.ended: Optional[str] = None
        """Why it reads no more, though nobody stopped it."""

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    @property
    def count(self) -> int:
        """Readings so far."""
        return self._recorder.count

    def forget(self) -> None:
        """Begin the trace anew (a reading that is just being kept may go with the old one)."""
        self._recorder = Recorder(self.info.interval_s, self._most_numbers)

    def wait_for(self, t_ns: int) -> bool:
        """Wait until there is a reading of this moment or later: whether there is one. False when the sensor failed."""
        end = time.monotonic() + self.timeout_s
        while (self._recorder.last_ns or 0) < t_ns or not self.count:
            if self.ended is not None or time.monotonic() > end:
                return False
            time.sleep(min(self.info.interval_s, 0.05))
        return True

    def so_far(self) -> Trace:
        """What was read until now. The thread reads on."""
        with self._lock:
            return self._recorder.trace(self.info, self.ended)

    def stop(self) -> Trace:
        """End the thread, let go of the sensor, and give what was read."""
        self._end()
        return self._recorder.trace(self.info, self.ended)

    def _end(self) -> None:
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join(min(2 * self.info.interval_s, self.timeout_s) + 0.5)
        self._sensor.close()
        self._thread.join(self.timeout_s)

    def _run(self) -> None:
        reason: Optional[str] = "it failed in a way that it should not (the log says how)"
        try:
            if self._cpus:
                with contextlib.suppress(OSError):  # 0: the calling thread
                    os.sched_setaffinity(0, self._cpus)
            read, timeout_s = self._sensor.read, self.timeout_s
            while not self._stopping:
                sample = read(timeout_s)
                with self._lock:
                    self._recorder.add(sample)
            reason = None
        except (AgentError, OSError) as error:
            reason = str(error)
        finally:
            # a reading that was broken off by `stop` is no failure
            self.ended = None if self._stopping else reason


def spare_cpus(taken: Optional[Tuple[int, ...]]) -> Optional[List[int]]:
    """CPUs for the sampler when the inference is pinned to `taken`: all others; None where there is no choice. To be asked
    before the process is pinned."""
    if taken is None or not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(os.sched_getaffinity(0) - set(taken)) or None
