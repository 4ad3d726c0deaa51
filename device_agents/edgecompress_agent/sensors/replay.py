"""A recorded trace, played back at the speed at which it was recorded. Every figure made with it is labelled as replayed.

Two kinds of file:

- JSON: a trace as a run directory keeps it (`wire.Trace`; also a whole result, whose trace is taken). Its sensor's scope,
  limits and rails are the recording's.
- CSV: a header `seconds,watts` (more columns are read as rails, in watts), then one line for each reading. The seconds may be
  those of a Unix clock.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import stat
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from edgecompress_agent import wire
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import Sample, SensorFault, check_options

OPTIONS: Dict[str, str] = {
    "path": "the recording, .json or .csv, where the sensor is read; absolute or with ~; must be given",
    "loop": "true: begin again at its end; false (default): the trace ends there",
}
_MOST_BYTES = 256 << 20
_LEAST_S, _MOST_S, _MOST_UW = 1e-6, 1e6, 10**12
"""Between two readings, from the first to the last one, and of one: beyond these it is no recording of a board."""


class Replay:
    """An open recording. Its clock starts at the first reading; a reader that comes late gets what it missed, with the
    stamps of when it was due."""

    def __init__(self, recorded: wire.Trace, loop: bool, source: str) -> None:
        self.info = dataclasses.replace(
            recorded.info,
            name="replay",
            description=f"replayed from {source}: {recorded.info.description}",
            replayed=True,
            notes=(
                *recorded.info.notes,
                *_faults(recorded),
                f"recorded by {recorded.info.name}, not at this measurement",
            ),
        )
        self._trace, self._loop = recorded, loop
        first = recorded.t_ns[0]
        self._due_ns = [t - first for t in recorded.t_ns]
        self._period_ns = self._due_ns[-1] + round(recorded.info.interval_s * 1e9)
        self._next = 0
        self._start_ns: Optional[int] = None
        self._closed = False

    def read(self, timeout_s: float) -> Sample:
        """The next value of the recording, when its time has come."""
        if self._start_ns is None:
            self._start_ns = time.monotonic_ns()
        turn, index = divmod(self._next, len(self._due_ns))
        if turn and not self._loop:
            raise SensorFault(f"the recording ended after {self._due_ns[-1] / 1e9:.3g} s")
        at_ns = self._start_ns + turn * self._period_ns + self._due_ns[index]
        wait_s = (at_ns - time.monotonic_ns()) / 1e9
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            raise SensorFault(f"the recording has no value for {timeout_s:g} s")
        if wait_s > 0:
            time.sleep(wait_s)
        if self._closed:
            raise SensorFault("the recording was closed")
        self._next += 1
        rails = {name: values[index] for name, values in self._trace.rails_mw.items()}
        return Sample(at_ns, self._trace.power_uw[index], rails_mw=rails or None)

    def close(self) -> None:
        self._closed = True


def _faults(recorded: wire.Trace) -> List[str]:
    """What was wrong with the recording: its readings do not tell it, each by itself."""
    counts = {"out of range": recorded.overflows, "repeated": recorded.stale, "not read in time": recorded.dropped}
    found = [f"{count} {what}" for what, count in counts.items() if count]
    found += [f"it ended because {recorded.ended_reason}"] if recorded.ended_reason else []
    return [f"of the recorded readings: {', '.join(found)}"] if found else []


def open(options: Dict[str, Any]) -> Replay:
    """The recording of option `path`. AgentError: no such file, or it holds no trace."""
    check_options("replay", options, OPTIONS)
    path, loop = options.get("path"), options.get("loop", False)
    if not isinstance(path, str) or not Path(path).expanduser().is_absolute():
        raise AgentError(f"sensor replay needs the option path, absolute or with ~, not {path!r}")
    if not isinstance(loop, bool):
        raise AgentError(f"sensor replay: loop must be true or false, not {loop!r}")
    file = Path(path).expanduser()
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # a device or a pipe may have no end
            raise AgentError(f"the recording {file} is not a file")
        if found.st_size > _MOST_BYTES:
            raise AgentError(f"{file}: larger than {_MOST_BYTES >> 20} MB")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise AgentError(f"the recording {file} cannot be read: {error}") from None
    try:
        trace = _from_csv(text, file.name) if file.suffix.lower() == ".csv" else _from_json(text)
    except (ValueError, csv.Error) as error:  # WireError is a ValueError
        raise AgentError(f"the recording {file} is not one: {error}") from None
    if len(trace.t_ns) < 2 or any(b <= a for a, b in zip(trace.t_ns, trace.t_ns[1:])):
        raise AgentError(f"the recording {file} needs at least two readings, each later than the one before")
    interval_s = trace.info.interval_s
    if trace.t_ns[-1] - trace.t_ns[0] > _MOST_S * 1e9 or not _LEAST_S <= interval_s <= _MOST_S:
        raise AgentError(
            f"the recording {file} has a reading every {interval_s:.3g} s, and must last {_MOST_S:g} s at most with readings at "
            f"least {_LEAST_S:g} s apart: are its times right?"
        )
    too_much = any(abs(uw) > _MOST_UW for uw in trace.power_uw)
    if too_much or any(abs(mw) > _MOST_UW // 1000 for rail in trace.rails_mw.values() for mw in rail):
        raise AgentError(f"the recording {file} has a power of more than a megawatt: is its unit right?")
    return Replay(trace, loop, file.name)


def probe() -> Optional[str]:
    """None: a recording is asked for, never found."""
    return None


def _from_json(text: str) -> wire.Trace:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    for key in ("result", "power", "trace"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    return wire.from_json(wire.Trace, value)


def _from_csv(text: str, name: str) -> wire.Trace:
    lines = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(lines, [])]
    if header[:2] != ["seconds", "watts"] or len(set(header)) < len(header):
        raise ValueError("its first line must be seconds,watts")
    rows: List[Sequence[float]] = []
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        numbers = _numbers(line)
        if numbers is None or len(numbers) != len(header):
            raise ValueError(f"line {number} is not {len(header)} numbers")
        rows.append(numbers)
    if len(rows) < 2:
        raise ValueError("it has fewer than two readings")
    seconds, watts, *rails = zip(*rows)
    interval_s = statistics.median(b - a for a, b in zip(seconds[:-1], seconds[1:]))
    if interval_s <= 0:
        raise ValueError("its seconds do not grow")
    info = wire.SensorInfo(
        name, "CSV file", "as-wired", interval_s, resolution_w=0.0, gain_error=0.0, offset_error_w=0.0,
        notes=("the file does not tell what the meter's errors are: none are counted",),
    )  # fmt: skip
    return wire.Trace(
        info, _scaled(seconds, 1e9), _scaled(watts, 1e6), {n: _scaled(r, 1e3) for n, r in zip(header[2:], rails)}
    )


def _numbers(line: Sequence[str]) -> Optional[List[float]]:
    try:
        found = [float(cell) for cell in line]
    except ValueError:
        return None
    return found if all(math.isfinite(n) and abs(n) < 1e12 for n in found) else None


def _scaled(values: Sequence[float], factor: float) -> Tuple[int, ...]:
    return tuple(round(v * factor) for v in values)
