"""What a line of NVIDIA's `tegrastats` says: rails, temperatures, loads and clocks. Any text may be given.

Source: NVIDIA Jetson Linux Developer Guide, "tegrastats Utility", and lines of the boards. Power stands as NAME FIGURES, in
four shapes: `1022/1022` (JetPack 4: no unit), `5299mW/5299mW` (5, 6), three figures (7.2), and any of them negative. Figures
are now/average[/…]. Much else looks alike: RAM, SWAP and IRAM are pairs too, CPU is a list, a temperature and a rail, NC is a
channel that nothing is connected to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Match, Optional, Tuple

_LONGEST_LINE = 1 << 14
_ABSENT_C = -200.0
"""A sensor that is switched off answers -256 °C."""
_LIST = re.compile(r"(?<!\S)CPU\s+\[([^][]*)\](?:@[0-9]{1,5})?(?!\S)", re.ASCII | re.IGNORECASE)
_BRACKETS = re.compile(r"\([^()]*\)")
_WITH_UNIT = re.compile(r"(-?[0-9]{1,6})mW(?:/-?[0-9]{1,6}mW){0,3}")
_WITHOUT_UNIT = re.compile(r"(-?[0-9]{1,6})(?:/-?[0-9]{1,6}){1,2}")
_RAIL = re.compile(r"(?:POM|VDDQ?|VIN)(?:_[A-Z0-9]+)+|VIN|GPU|CPU|SOC|CV|VDDRQ|SYS5V")
"""Names of rails: those of AGX Xavier are bare. NC (not connected), RAM, SWAP and IRAM are none."""
_TEMPERATURE = re.compile(r"([A-Za-z][A-Za-z0-9_.-]{0,39})@(-?[0-9]{1,3}(?:\.[0-9]{1,6})?)C(?:/-?[0-9.]{1,11}C)*")
_LOAD = re.compile(r"([0-9]{1,3})%(?:@([0-9]{1,5})|@\[([0-9,]{1,80})\])?")
_CLOCK = re.compile(r"@([0-9]{1,5})|@\[([0-9,]{1,80})\]")
_ENGINE = re.compile(r"(?:APE|VIC|OFA|SE|VI|ISP|CVNAS|MSENC|TSEC|(?:NV|PVA)[A-Z]*)[0-9]*|[A-Z0-9]+_FREQ")


@dataclass(frozen=True)
class Reading:
    """What a line says. rails_mw: mW by rail, now, with their sign. temperatures_c: of the sensors that are on.

    utilisation: percent by engine (EMC_FREQ, GR3D_FREQ, …) and core (CPU[0], …). clocks: MHz by the same names, with
    GR3D_FREQ[0], … where an engine has several. off: cores and engines that are switched off. reason: why there is no rail.
    """

    rails_mw: Dict[str, int] = field(default_factory=dict)
    temperatures_c: Dict[str, float] = field(default_factory=dict)
    utilisation: Dict[str, int] = field(default_factory=dict)
    clocks: Dict[str, int] = field(default_factory=dict)
    off: Tuple[str, ...] = ()
    reason: Optional[str] = None


def parse_line(line: str) -> Reading:
    """The reading in a line of tegrastats. Any text gives one; where it has no rails, `reason` says why."""
    text = line.strip()
    if len(text) > _LONGEST_LINE or len(text.splitlines()) > 1:
        return Reading(reason=f"not one line of tegrastats: {short(text)}")
    temperatures: Dict[str, float] = {}
    utilisation: Dict[str, int] = {}
    clocks: Dict[str, int] = {}
    off: List[str] = []
    rails: Dict[str, int] = {}
    doubtful: List[str] = []

    def cores(found: Match[str]) -> str:
        for number, core in enumerate(found.group(1).split(",")):
            _engine(f"CPU[{number}]", core.strip(), utilisation, clocks, off)
        return " ; "  # keeps the words on both sides apart

    words = _BRACKETS.sub(" ", _LIST.sub(cores, text)).split()
    for word, value in zip(words, [*words[1:], ""]):
        temperature = _TEMPERATURE.fullmatch(word)
        if temperature:
            if float(temperature.group(2)) > _ABSENT_C:
                temperatures.setdefault(temperature.group(1), float(temperature.group(2)))
            continue
        power = (_WITH_UNIT.fullmatch(value) or _WITHOUT_UNIT.fullmatch(value)) if _RAIL.fullmatch(word) else None
        if power is None:
            if word in ("fg", "bg") and "MTS" in words:
                _engine(f"MTS {word}", value, utilisation, clocks, off)
            elif _ENGINE.fullmatch(word):
                _engine(word, value, utilisation, clocks, off)
        elif rails.setdefault(word, int(power.group(1))) != int(power.group(1)):
            doubtful.append(word)
    for rail in doubtful:
        rails.pop(rail, None)
    reason = None if rails else _no_rails(text, words, doubtful)
    return Reading(rails, temperatures, utilisation, clocks, tuple(off), reason)


def _engine(name: str, value: str, utilisation: Dict[str, int], clocks: Dict[str, int], off: List[str]) -> None:
    """Note an engine's load and clock: 12%, 12%@1300, 12%@[1300,1300], @1300, 1300 (MHz), off."""
    if value.lower() == "off":
        off.append(name)
        return
    load = _LOAD.fullmatch(value)
    clock = _CLOCK.fullmatch(value)
    if load:
        utilisation.setdefault(name, int(load.group(1)))
        one, several = load.group(2), load.group(3)
    elif clock:
        one, several = clock.group(1), clock.group(2)
    else:
        one, several = (value if re.fullmatch("[0-9]{1,5}", value) else None), None
    listed = [mhz for mhz in (several or "").split(",") if 0 < len(mhz) <= 5]
    if one or len(listed) == 1:
        clocks.setdefault(name, int(one or listed[0]))
    else:
        for number, mhz in enumerate(listed):
            clocks.setdefault(f"{name}[{number}]", int(mhz))


def _no_rails(text: str, words: List[str], doubtful: List[str]) -> str:
    if doubtful:
        return f"the rails {', '.join(doubtful)} stand twice with different figures: {short(text)}"
    if "RAM" in words:
        return "the line of tegrastats has no power rails"
    return f"not a line of tegrastats: {short(text)}"


def short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
