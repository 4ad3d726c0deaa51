"""A microcontroller with a power monitor (an INA219, say) that prints `millis,volts,milliamps` lines on a serial line.

Source: the format is this project's own; limits are those of an INA219 (TI SBOS448, grade A: 0.5 %
of current and of voltage, 0.1 mV of the shunt) with a 0.1 Ω shunt of 1 %, and may be given for another meter.

A value belongs to the moment that the microcontroller says, in its own clock of 1 ms steps. Lines arrive late by an unknown,
varying time (USB adapters collect bytes for up to 16 ms), but never early: the smallest lag so far ties the two clocks
together. The tie may rise by 200 ppm, more than two crystals differ, so that it follows their drift.

Scope: as wired, which only who wired it knows: the device profile says.
"""

from __future__ import annotations

import collections
import re
import time
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Tuple

from edgecompress_agent import option_values, serial_port
from edgecompress_agent.byte_source import Lines
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import Sample, SensorFault, check_options
from edgecompress_agent.wire import SensorInfo

OPTIONS: Dict[str, str] = {
    "port": "Device file of the serial line, such as /dev/ttyUSB0. Needed.",
    "baud": "Speed in baud; default 115200.",
    "resolution_w": "One step of the power reading in W; default 0.005 (an INA219 at 5 V and steps of 1 mA).",
    "gain_error": "Limit of the meter's gain error as a fraction; default 0.02.",
    "offset_error_w": "Limit of the meter's offset error in W; default 0.005.",
}

_LINE = re.compile(r"\s*([0-9]{1,10})\s*,\s*(-?[0-9]{1,3}(?:\.[0-9]{0,9})?)\s*,\s*(-?[0-9]{1,6}(?:\.[0-9]{0,9})?)\s*")
_WRAP_MS = 1 << 32
_FIRST_S = 8.0
"""Opening the line resets many boards: boot loader and start take some seconds."""
_TRIAL_LINES = 12
_BAD_LINES = 3
_DRIFT = 200e-6
_JUMP_NS = 250_000_000


class Line(NamedTuple):
    """millis: the meter's clock. power_uw: volts times milliamperes, with the sign of the current."""

    millis: int
    power_uw: int


def parse_csv(line: str) -> Optional[Line]:
    """The reading in a line, or None when it is not one."""
    found = _LINE.fullmatch(line)
    if not found:
        return None
    millis, volts, milliamps = int(found.group(1)), float(found.group(2)), float(found.group(3))
    return Line(millis, round(1e3 * volts * milliamps)) if millis < _WRAP_MS and volts >= 0 else None


class _Clocks:
    """The meter's clock told by the host's. `tie_ns`: what to add to the meter's time."""

    def __init__(self) -> None:
        self._tie_ns: Optional[float] = None
        self._meter_ns, self._wraps = -1, 0

    def stamp(self, millis: int, arrived_ns: int) -> Optional[Tuple[int, bool]]:
        """(time on the host's monotonic clock, repeated), or None when the meter's clock jumped."""
        wraps = self._wraps
        if self._meter_ns >= 0 and self._meter_ns // 1_000_000 % _WRAP_MS > _WRAP_MS - 60_000 > 60_000 > millis:
            wraps += 1
        meter_ns = (millis + wraps * _WRAP_MS) * 1_000_000
        lag = float(arrived_ns - meter_ns)
        if self._tie_ns is None:
            tie = lag
        else:
            passed = meter_ns - self._meter_ns
            if passed < 0 or self._tie_ns - lag > _JUMP_NS + 0.01 * passed:
                return None
            tie = min(self._tie_ns + _DRIFT * passed, lag)
        repeated = meter_ns == self._meter_ns
        self._tie_ns, self._meter_ns, self._wraps = tie, meter_ns, wraps
        return round(meter_ns + tie), repeated


class _SerialCsv:
    def __init__(self, port: str, speed: int, limits: Tuple[float, float, float]) -> None:
        self._port, self._lines, self._clocks = port, Lines(), _Clocks()
        self._pending: Deque[Tuple[int, str]] = collections.deque()
        self._skip = True  # the first line has probably lost its beginning
        self._last_ns = 0
        self._source = serial_port.open_port(port, speed)
        try:
            interval_s = self._interval(speed)
        except AgentError:
            self.close()
            raise
        self.info = SensorInfo(
            name="serial_csv",
            description=f"serial meter at {port}, {speed} baud, about {1 / interval_s:.3g} lines a second",
            scope="as-wired",
            interval_s=interval_s,
            resolution_w=limits[0],
            gain_error=limits[1],
            offset_error_w=limits[2],
            notes=("stamps are the meter's own clock, tied to this one by the shortest lag of a line",),
        )

    def _interval(self, speed: int) -> float:
        """Seconds between two lines: the median of the first ones. AgentError when no lines come, or others."""
        deadline, text = time.monotonic() + _FIRST_S, ""
        seen: List[int] = []
        jumps = 0
        while len(seen) < _TRIAL_LINES:
            try:
                arrived_ns, text = self._next(deadline - time.monotonic())
            except SensorFault as fault:
                if not text:
                    raise AgentError(
                        f"{fault}: is it the right line, at {speed} baud, and does the meter print?"
                    ) from None
                if len(seen) < 3:
                    raise AgentError(
                        f"{self._port} prints no lines of millis,volts,milliamps (at {speed} baud), but {text[:80]!r}"
                    ) from None
                break
            line = parse_csv(text)
            if line is None:  # what a board prints while it starts
                continue
            if self._clocks.stamp(line.millis, arrived_ns) is None:
                jumps += 1
                if jumps == 1:  # one broken number
                    continue
                seen, self._clocks = (
                    [],
                    _Clocks(),
                )  # it was the number before that was broken, or the board has started anew
                self._clocks.stamp(line.millis, arrived_ns)
            jumps = 0
            seen.append(line.millis)
        steps = sorted(seen[i] - seen[i - 1] for i in range(1, len(seen)) if seen[i] > seen[i - 1])
        if not steps:
            raise AgentError(
                f"{self._port}: the meter's clock stands still: its lines begin with {seen[-1]} again and again"
            )
        return steps[len(steps) // 2] / 1000

    def read(self, timeout_s: float) -> Sample:
        deadline, text = time.monotonic() + timeout_s, ""
        for _ in range(_BAD_LINES):
            arrived_ns, text = self._next(deadline - time.monotonic())
            line = parse_csv(text)
            stamped = line and self._clocks.stamp(line.millis, arrived_ns)
            if line and stamped:
                self._last_ns = max(stamped[0], self._last_ns + 1)
                return Sample(self._last_ns, line.power_uw, stale=stamped[1])
        what = "its clock jumped (it was reset?)" if parse_csv(text) else "they are no readings"
        raise SensorFault(
            f"{self._port}: {_BAD_LINES} lines in a row cannot be used, {what}; the last one is {text[:80]!r}"
        )

    def _next(self, timeout_s: float) -> Tuple[int, str]:
        deadline = time.monotonic() + timeout_s
        while not self._pending:
            data = self._source.read(max(0.0, deadline - time.monotonic()))
            now = time.monotonic_ns()
            if data is None:
                raise SensorFault(f"{self._port} sent no line for {timeout_s:.1f} s")
            if not data:
                raise SensorFault(f"{self._port} is gone: unplugged?")
            lines = self._lines.feed(data)
            if lines and self._skip:
                self._skip, lines = False, lines[1:]
            self._pending.extend((now, line) for line in lines if line.strip())
        return self._pending.popleft()

    def close(self) -> None:
        self._source.close()


def open(options: Dict[str, Any]) -> _SerialCsv:
    """AgentError: an unknown option, no port, no permission (with the group), no lines, lines of another kind."""
    check_options("serial_csv", options, OPTIONS)
    port = option_values.text("serial_csv", options, "port")
    if port is None:
        there = ", ".join(serial_port.ports()) or "none"
        raise AgentError(f"sensor serial_csv needs the option port, a serial line; here are: {there}")
    speed = option_values.choice("serial_csv", options, "baud", 115200, serial_port.SPEEDS)
    limits = (
        option_values.number("serial_csv", options, "resolution_w", 0.005, 0, 10),
        option_values.number("serial_csv", options, "gain_error", 0.02, 0, 0.5),
        option_values.number("serial_csv", options, "offset_error_w", 0.005, 0, 10),
    )
    return _SerialCsv(port, speed, limits)


def probe() -> Optional[str]:
    """None: a serial line does not tell what hangs on it, and opening one resets many boards. It has to be named."""
    return None
