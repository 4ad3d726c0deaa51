"""Power of an NVIDIA Jetson as its own `tegrastats` prints it: one line each interval, rails of the INA3221 monitors.

Source: NVIDIA Jetson Linux Developer Guide, "tegrastats Utility". Of a rail's figures (now/average) the first is used; the
integral is taken from the stamps. The tool's own time stamp has steps of 1 s, so that a line is stamped when it arrives.
Lines that waited in the pipe while nobody read get the times at which they must have been printed: one interval apart, the
last one now.

Scope: that of the board's total, see jetson_power. tegrastats does not tell whether a monitor has renewed its value, so that
no sample is called stale. Cost: the tool runs beside the inference; its CPU time grows with the rate.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Deque, Dict, Optional, Tuple

from edgecompress_agent import jetson_power, option_values
from edgecompress_agent.byte_source import ByteSource, Lines
from edgecompress_agent.errors import AgentError
from edgecompress_agent.jetson_power import total_mw
from edgecompress_agent.sensors import Sample, SensorFault, check_options
from edgecompress_agent.tegrastats_line import Reading, parse_line, short
from edgecompress_agent.wire import SensorInfo

__all__ = ["OPTIONS", "Reading", "open", "parse_line", "probe", "total_mw"]

OPTIONS: Dict[str, str] = {
    "interval_ms": "Milliseconds between two lines, 10 to 10000; default 100.",
    "board": "The board whose total is wanted, such as 'AGX Orin'; default: by its device tree, else by its rails.",
    "command": "Path or name of the tool; default tegrastats.",
}

_BAD_LINES = 3
"""So many lines in a row that are no reading end the trace; single ones (a message between two lines) are left out."""


class _Tegrastats:
    """The running tool."""

    def __init__(self, command: str, interval_ms: int, board: Optional[str]) -> None:
        self._interval_ns = interval_ms * 1_000_000
        self._pending: Deque[Tuple[int, str]] = collections.deque()
        self._lines, self._last_ns = Lines(), 0
        try:
            self._process = subprocess.Popen(
                [command, "--interval", str(interval_ms)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            raise AgentError(f"{command} cannot be started: {error.strerror}") from None
        assert self._process.stdout is not None
        self._source = ByteSource(os.dup(self._process.stdout.fileno()), "tegrastats")
        self._process.stdout.close()
        try:
            reading = self._first(command, interval_ms)
            self._policy, self.info = _describe(reading, interval_ms, board)
        except AgentError:
            self.close()
            raise
        self._rails = tuple(reading.rails_mw)

    def _first(self, command: str, interval_ms: int) -> Reading:
        """The first line that is one. AgentError when it has no rails, or when none comes."""
        reading, line = Reading(), ""
        for _ in range(10):
            try:
                _, line = self._next(5 + 2 * interval_ms / 1000)
            except SensorFault as fault:  # what it said before it ended is mostly why
                raise AgentError(f"{fault}; it printed {short(line)}" if line else str(fault)) from None
            reading = parse_line(line)
            if reading.rails_mw:
                return reading
            if line.split()[:1] == ["RAM"] or " RAM " in line:
                who = "" if os.geteuid() == 0 else " without root"
                raise AgentError(
                    f"{command} prints no power rails{who}: either this board has no power monitor (Jetson Nano 2GB), or it shows "
                    "its rails to root only; the sensor hwmon reads them without, else measure with an INA219 or a USB meter"
                )
        raise AgentError(f"{command} does not print what tegrastats prints: {reading.reason}")

    def read(self, timeout_s: float) -> Sample:
        deadline, line = time.monotonic() + timeout_s, ""
        if time.monotonic_ns() - self._last_ns > 20 * self._interval_ns:
            self._forget()
        for _ in range(_BAD_LINES):
            t_ns, line = self._next(deadline - time.monotonic())
            rails = parse_line(line).rails_mw
            if all(rail in rails for rail in self._rails):
                power_mw = sum(rails[rail] for rail in self._policy.rails)
                return Sample(t_ns, 1000 * power_mw, rails_mw={rail: rails[rail] for rail in self._rails})
        raise SensorFault(
            f"tegrastats changed its format: {_BAD_LINES} lines in a row lack rails that the first one had; "
            f"the last one is {short(line)}"
        )

    def _forget(self) -> None:
        """Throw away what was printed while nobody read: with a full pipe the tool has stopped, and the times are not known."""
        self._pending.clear()
        waiting = self._source.read(0)
        while waiting:
            self._lines.feed(waiting)
            waiting = self._source.read(0)

    def _next(self, timeout_s: float) -> Tuple[int, str]:
        """The next line and its moment. SensorFault when there is none."""
        deadline = time.monotonic() + timeout_s
        while not self._pending:
            data = self._source.read(max(0.0, deadline - time.monotonic()))
            now = time.monotonic_ns()
            if data is None:
                raise SensorFault(f"tegrastats printed nothing for {timeout_s:.1f} s")
            if not data:
                raise SensorFault(f"tegrastats {self._end()}")
            lines = [line for line in self._lines.feed(data) if line.strip()]
            self._pending.extend((now - (len(lines) - 1 - i) * self._interval_ns, line) for i, line in enumerate(lines))
        t_ns, line = self._pending.popleft()
        self._last_ns = max(t_ns, self._last_ns + 1)
        return self._last_ns, line

    def _end(self) -> str:
        """How the tool, whose output has ended, itself ended."""
        try:
            status = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return f"ended with exit status {status}" if status >= 0 else f"was killed by signal {-status}"

    def close(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._process.terminate()
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._source.close()


def _describe(reading: Reading, interval_ms: int, board: Optional[str]) -> Tuple[jetson_power.Policy, SensorInfo]:
    """The board's policy and what is known of the sensor. AgentError when the total cannot be told from the rails."""
    model = board or _model()
    if board is None and model is not None and jetson_power.named(model)[1].startswith("the board "):
        model = None  # a carrier's own name: the rails have to tell
    policy, reason = jetson_power.policy_for(reading.rails_mw, model)
    if policy is None:
        raise AgentError(f"tegrastats: {reason}")
    info = SensorInfo(
        name="tegrastats",
        description=f"{policy.board}: {'+'.join(policy.rails)} of tegrastats, every {interval_ms} ms",
        scope=policy.scope,
        interval_s=interval_ms / 1000,
        resolution_w=policy.resolution_w,
        gain_error=jetson_power.GAIN_ERROR,
        offset_error_w=policy.offset_error_w,
        notes=(
            "limits are those of the INA3221 with a 1 % shunt; the step is the coarsest rail's",
            "tegrastats does not tell whether a monitor has renewed its value: repeats are not counted as stale",
        ),
    )
    return policy, info


def _model() -> Optional[str]:
    try:
        text = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip("\0 \n") or None


def open(options: Dict[str, Any]) -> _Tegrastats:
    """Start the tool. AgentError: an unknown option, no tool, no rails (without root), rails of no known board."""
    check_options("tegrastats", options, OPTIONS)
    interval_ms = round(option_values.number("tegrastats", options, "interval_ms", 100, 10, 10_000))
    board = option_values.text("tegrastats", options, "board")
    command = option_values.text("tegrastats", options, "command") or "tegrastats"
    if board is not None:
        policy, reason = jetson_power.named(board)
        if policy is None:
            raise AgentError(f"sensor tegrastats: {reason}")
    path = shutil.which(command)
    if path is None:
        raise AgentError(f"{command} is not on this device: NVIDIA's Jetson Linux has it, as /usr/bin/tegrastats")
    return _Tegrastats(path, interval_ms, board)


def probe() -> Optional[str]:
    """Whether the tool is there. It is not started: its first line would take longer than a probe may."""
    path = shutil.which("tegrastats")
    return path and f"{path} (NVIDIA Jetson)"
