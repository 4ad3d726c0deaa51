"""The best sensor that is found on this machine; the result says which, why, and what a better one would take.

Looked for from the widest scope to the narrowest: a meter that somebody wired on purpose, the board's own monitors, the PMIC, the
CPU. Serial meters (serial_csv, um25c) are never looked for: asking an unknown serial line what it is may disturb what hangs there.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, NamedTuple, Optional

from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import Sample, Sensor, check_options
from edgecompress_agent.wire import SensorInfo


class _Candidate(NamedTuple):
    """A sensor. why: it is preferred to those after it. better: what would be better than it."""

    name: str
    why: str
    better: str


_METER = "an INA219 or a USB meter in the supply would measure the whole board"
CANDIDATES = (
    _Candidate(
        "ina219",
        "a meter in the supply measures everything behind it, and averages without gaps",
        "a meter with 16 bits (INA226, INA238) would have smaller steps",
    ),
    _Candidate(
        "hwmon",
        "the kernel reads this board's power monitor, at a higher rate than any tool would print it",
        _METER + ", carrier and converters too",
    ),
    _Candidate(
        "tegrastats",
        "no monitor of this Jetson is in sysfs, but its tool prints the rails",
        _METER + ", carrier and converters too, and at a higher rate",
    ),
    _Candidate(
        "pi_pmic",
        "there is no meter in the supply, but the Raspberry Pi's PMIC measures its own rails",
        _METER + ": the PMIC's rails are not the input power, and reading them takes time of the CPU",
    ),
    _Candidate(
        "rapl",
        "no meter and no monitor of the board was found, but the CPU counts its own energy",
        _METER + ": RAPL counts the CPU's package only",
    ),
)

OPTIONS: Dict[str, str] = {
    c.name: f"Options of {c.name}, as {{option: value}}, should it be chosen; default none." for c in CANDIDATES
}


class _Chosen:
    """The sensor that was found, with the reason in its description."""

    def __init__(self, sensor: Sensor, info: SensorInfo) -> None:
        self.info = info
        self._sensor = sensor

    def read(self, timeout_s: float) -> Sample:
        return self._sensor.read(timeout_s)

    def close(self) -> None:
        self._sensor.close()


def open(options: Dict[str, Any]) -> Sensor:
    """The first of the candidates that is there and opens. AgentError: none, with what each of them said."""
    check_options("auto", options, OPTIONS)
    for name, inner in options.items():
        if not isinstance(inner, dict):
            raise AgentError(f"sensor auto: option {name} must be {{option: value}}, not {inner!r:.80}")
        check_options(name, inner, sensors.find(name).OPTIONS)
    passed: List[str] = []
    for candidate in CANDIDATES:
        found = sensors.find(candidate.name).probe()
        if found is None:
            said = _hint(candidate.name)
            passed += [f"{candidate.name}: {said}"] if said else []
            continue
        try:
            sensor = sensors.open_sensor(candidate.name, options.get(candidate.name, {}))
        except AgentError as error:
            passed.append(f"{candidate.name}: {found}, but {error}")
            continue
        return _Chosen(sensor, _explained(sensor.info, candidate, found, passed))
    looked = ", ".join(c.name for c in CANDIDATES)
    said = ". ".join(passed)
    raise AgentError(
        f"nothing that reads power was found here (looked for {looked}). {said + '. ' if said else ''}A meter on a serial line "
        "must be named in the profile: sensor: serial_csv or um25c"
    )


def probe() -> Optional[str]:
    """What would be chosen, if it opens."""
    for candidate in CANDIDATES:
        found = sensors.find(candidate.name).probe()
        if found is not None:
            return f"{candidate.name}: {found}"
    return None


def _explained(info: SensorInfo, candidate: _Candidate, found: str, passed: List[str]) -> SensorInfo:
    notes = [f"passed over: {p}" for p in passed] + [f"better: {candidate.better}"]
    return dataclasses.replace(info, chosen_because=f"{found}; {candidate.why}", notes=(*info.notes, *notes))


def _hint(name: str) -> Optional[str]:
    """Why a sensor's probe saw nothing, from those that can tell."""
    hint = getattr(sensors.find(name), "hint", None)
    return hint() if hint is not None else None
