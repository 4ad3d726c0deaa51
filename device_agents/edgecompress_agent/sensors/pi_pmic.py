"""The rails of a Raspberry Pi 5 (500, Compute Module 5) as its power management chip measures them: `vcgencmd pmic_read_adc`.

Source: Raspberry Pi documentation, "vcgencmd: pmic_read_adc", and the output of boards. Lines such as
`VDD_CORE_A current(7)=1.54489000A` and `VDD_CORE_V volt(15)=0.88725180V`: the numbers in brackets differ between the two
and are out of order, so that they are paired by name. EXT5V_V (the input) and BATT_V have no current.

Scope: PMIC rails. Their sum is NOT the input power: the converters' losses, USB ports and whatever hangs on 5 V are missing.
No accuracy is published: gain and offset limits here are assumptions and say so. Every reading starts a process, which costs
the workload something: `open` measures how long one takes and notes it.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

from edgecompress_agent import option_values
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import Sample, SensorFault, check_options
from edgecompress_agent.wire import SensorInfo

OPTIONS: Dict[str, str] = {
    "interval_s": "Seconds between two readings, 0.05 to 10; default 0.2.",
    "command": "Path or name of the tool; default vcgencmd.",
}

CORE = "VDD_CORE"
"""The processor's rail. Without it the sum says nothing of an inference."""
RESOLUTION_W = 0.008
"""One step of VDD_CORE, the coarsest rail: its currents are multiples of 8.93 mA, at about 0.9 V."""
GAIN_ERROR, OFFSET_ERROR_W = 0.05, 0.05
"""Assumed: nobody publishes them."""

_VALUE = re.compile(
    r"\s*([A-Za-z0-9_]{1,40})_([AV])\s+(current|volt)\([0-9]{1,3}\)=(-?[0-9]{1,3}(?:\.[0-9]{1,12})?)([AV])\s*"
)
_BAD_READINGS = 3
_TRIALS = 3


def parse_adc(text: str) -> Tuple[Dict[str, float], List[str]]:
    """(watts by rail, names without a partner) of what `vcgencmd pmic_read_adc` prints; nothing of any other text."""
    amperes: Dict[str, float] = {}
    volts: Dict[str, float] = {}
    for line in text.splitlines():
        found = _VALUE.fullmatch(line)
        if found and (found.group(2), found.group(3), found.group(5)) in (("A", "current", "A"), ("V", "volt", "V")):
            (amperes if found.group(2) == "A" else volts)[found.group(1)] = float(found.group(4))
    alone = [f"{name}_A" for name in amperes if name not in volts] + [
        f"{name}_V" for name in volts if name not in amperes
    ]
    return {name: amperes[name] * volts[name] for name in amperes if name in volts}, alone


class _PiPmic:
    def __init__(self, command: str, interval_s: float) -> None:
        self._command, self._interval_s = command, interval_s
        self._closed = threading.Event()
        self._last_text = ""
        first, alone, took_s, cpu_s = self._try_out()
        self._rails = tuple(first)
        self._next_ns = time.monotonic_ns()
        self.info = SensorInfo(
            name="pi_pmic",
            description=f"sum of {len(first)} PMIC rails of vcgencmd pmic_read_adc, every {interval_s:g} s",
            scope="pmic-rails",
            interval_s=interval_s,
            resolution_w=RESOLUTION_W,
            gain_error=GAIN_ERROR,
            offset_error_w=OFFSET_ERROR_W,
            notes=(
                "the sum of the rails is not the input power: conversion losses, USB and everything on 5 V are missing",
                "no accuracy is published for this chip: 5 % and 0.05 W are assumed",
                f"without a current, and so not in the sum: {', '.join(alone) or 'none'}",
                f"a reading takes {1e3 * took_s:.1f} ms, {1e3 * cpu_s:.1f} ms of CPU time: "
                f"{100 * cpu_s / interval_s:.1f} % of one core at this rate",
            ),
        )

    def _try_out(self) -> Tuple[Dict[str, float], List[str], float, float]:
        """Rails, names without a partner, seconds and CPU seconds of a reading. AgentError when it cannot be read."""
        watts: Dict[str, float] = {}
        alone: List[str] = []
        took_s, cpu = 10.0, _children_s()
        for _ in range(_TRIALS):
            began = time.monotonic()
            status, text = _ask(self._command, 3.0)
            took_s = min(took_s, time.monotonic() - began)  # the quickest: others may be busy just now
            watts, alone = parse_adc(text)
            if CORE not in watts:
                raise AgentError(_refusal(self._command, status, text))
        cpu_s = (_children_s() - cpu) / _TRIALS
        if took_s > self._interval_s / 2:
            raise AgentError(
                f"sensor pi_pmic: a reading takes {took_s:.3f} s here, too long for one every {self._interval_s:g} s: "
                f"set interval_s to {4 * took_s:.2g} or more"
            )
        return watts, alone, took_s, cpu_s

    def read(self, timeout_s: float) -> Sample:
        text = ""
        deadline = time.monotonic() + timeout_s
        for _ in range(_BAD_READINGS):
            wait_s = (self._next_ns - time.monotonic_ns()) / 1e9
            if wait_s > deadline - time.monotonic():
                raise SensorFault(f"no reading of vcgencmd within {timeout_s:g} s")
            if self._closed.wait(max(0.0, wait_s)):
                raise SensorFault("the sensor was closed")
            before = time.monotonic_ns()
            status, text = _ask(self._command, max(0.1, deadline - time.monotonic()))
            after = time.monotonic_ns()
            self._next_ns = max(self._next_ns + round(self._interval_s * 1e9), after)
            watts, _ = parse_adc(text)
            if status == 0 and all(rail in watts for rail in self._rails):
                stale, self._last_text = text == self._last_text, text
                power_uw = round(1e6 * sum(watts[rail] for rail in self._rails))
                rails_mw = {rail: round(1e3 * watts[rail]) for rail in self._rails}
                return Sample((before + after) // 2, power_uw, stale, rails_mw=rails_mw)
            if status is None:
                break
        if status is None:
            raise SensorFault(f"vcgencmd pmic_read_adc: {text}")
        raise SensorFault(
            f"vcgencmd pmic_read_adc changed its format {_BAD_READINGS} times in a row, or lacks rails that it had; "
            f"exit status {status}, output {text.strip()[:120]!r}"
        )

    def close(self) -> None:
        self._closed.set()


def _ask(command: str, timeout_s: float) -> Tuple[Optional[int], str]:
    """(exit status, what it printed), or (None, why it could not be asked)."""
    try:
        done = subprocess.run(
            [command, "pmic_read_adc"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=timeout_s, close_fds=False, check=False,
        )  # fmt: skip
    except OSError as error:
        return None, f"cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout_s:.1f} s"
    return done.returncode, done.stdout[: 1 << 16].decode("ascii", "replace")


def _refusal(command: str, status: Optional[int], text: str) -> str:
    lower = text.lower()
    if status is None:
        return f"{command} pmic_read_adc: {text}"
    if "not registered" in lower:
        return (
            "this board's firmware has no pmic_read_adc: a Raspberry Pi 4 or older has no power sensor (use an INA219 or a USB "
            "meter); on a Raspberry Pi 5 update the firmware"
        )
    if "vcio" in lower or "vchi" in lower or "permission" in lower:
        return (
            f"{command} may not ask the firmware: the user has to be in the group video "
            f"(sudo usermod -aG video $USER, then log in again); it printed {text.strip()[:120]!r}"
        )
    return f"{command} pmic_read_adc gives no {CORE}: exit status {status}, output {text.strip()[:120]!r}"


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def open(options: Dict[str, Any]) -> _PiPmic:
    """AgentError: an unknown option, no vcgencmd, another board, no permission, a reading that takes too long."""
    check_options("pi_pmic", options, OPTIONS)
    interval_s = option_values.number("pi_pmic", options, "interval_s", 0.2, 0.05, 10)
    command = option_values.text("pi_pmic", options, "command") or "vcgencmd"
    path = shutil.which(command)
    if path is None:
        raise AgentError(f"{command} is not on this device: Raspberry Pi OS has it (package raspi-utils)")
    return _PiPmic(path, interval_s)


def probe() -> Optional[str]:
    """Whether the firmware answers with rails: one reading."""
    path = shutil.which("vcgencmd")
    if path is None:
        return None
    watts, _ = parse_adc(_ask(path, 0.9)[1])
    return f"PMIC of a Raspberry Pi: {len(watts)} rails" if CORE in watts else None
