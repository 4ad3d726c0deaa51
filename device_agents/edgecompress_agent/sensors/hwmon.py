"""Power monitors that a kernel driver reads: INA219, INA226, INA230, INA231, INA237, INA238 on breakouts and carriers, and the
INA3221s of Jetsons (JetPack 5 and 6: hwmon; JetPack 4: NVIDIA's own driver). Sources: see `hwmon_chips`.

A driver hides the chip's ready flag, so values are read at a fixed pace, not faster than the driver says that it renews them.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from edgecompress_agent import hwmon_chips, jetson_power, option_values
from edgecompress_agent.errors import AgentError
from edgecompress_agent.hwmon_chips import Channel, Chip, Number
from edgecompress_agent.sensors import Sample, SensorFault, check_options
from edgecompress_agent.wire import SensorInfo

OPTIONS: Dict[str, str] = {
    "chip": "Which monitor of several: its driver's name (ina226) or its name on the bus (1-0041); default the only one.",
    "shunt_ohm": "The shunt that is mounted, in ohms: corrects what the driver reckons with; needed where nobody told it.",
    "shunt_tolerance": "Fraction by which the shunt may be off, 0 to 0.2; default 0.01.",
    "rails": "INA3221 only: names of the rails that are added up; default by the board (Jetsons).",
    "interval_s": "Seconds between two readings, 0.001 to 10; default what the driver renews in, at least 0.01.",
}

_LEAST_INTERVAL_S = 0.01
_ASSUMED_OHM = 0.005
"""Of a Jetson's channel whose driver does not tell (JetPack 4), for the error limits only."""


class _Rail(NamedTuple):
    """A channel with its open files. factor: for the driver's current, when it reckons with another shunt."""

    channel: Channel
    volts: Optional[Number]
    amperes: Optional[Number]
    power: Optional[Number]
    factor: float

    def read(self) -> Tuple[float, bool]:
        """(µW, beyond the range). OSError, ValueError as `Number.read`."""
        if self.power is not None:
            return self.power.read() * self.channel.power_unit_uw * self.factor, False
        assert self.volts is not None and self.amperes is not None
        milliamps = self.amperes.read()
        ohm = self.channel.shunt_ohm
        beyond = ohm is not None and abs(milliamps) * 1e-3 * ohm >= self.channel.kind.range_v * 0.999
        return self.volts.read() * milliamps * self.factor, beyond or abs(milliamps) >= 0x7FFF

    def files(self) -> List[Number]:
        return [f for f in (self.volts, self.amperes, self.power) if f is not None]


class _Hwmon:
    """Rails that are read one after the other. total: positions of those that are added up."""

    def __init__(
        self,
        rails: List[_Rail],
        total: Tuple[int, ...],
        info: SensorInfo,
        age_s: float,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.info = info
        self._rails, self._total, self._age_ns = rails, total, int(age_s * 1e9)
        self._clock, self._sleep = clock, sleep
        self._next_ns = clock()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, timeout_s: float) -> Sample:
        """The next reading of the fixed pace. SensorFault: the driver could not read the chip twice, or is gone."""
        interval_ns = int(self.info.interval_s * 1e9)
        now_ns = self._clock()
        if self._next_ns < now_ns - interval_ns:  # too late for the last one: no rush to catch up
            self._next_ns = now_ns
        self._sleep(min(max(self._next_ns - now_ns, 0) / 1e9, timeout_s))
        self._next_ns += interval_ns
        begun_ns = self._clock()
        values = [self._value(rail) for rail in self._rails]
        ended_ns = self._clock()
        power_uw = round(sum(values[i][0] for i in self._total))
        overflow = any(values[i][1] for i in self._total)
        rails_mw = None
        if len(self._rails) > 1:
            rails_mw = {r.channel.label: round(v[0] / 1000) for r, v in zip(self._rails, values)}
        return Sample((begun_ns + ended_ns) // 2 - self._age_ns, power_uw, overflow=overflow, rails_mw=rails_mw)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                for rail in self._rails:
                    for file in rail.files():
                        file.close()

    def _value(self, rail: _Rail) -> Tuple[float, bool]:
        for last in (False, True):
            with self._lock:
                if self._closed:
                    raise SensorFault("the sensor was closed")
                try:
                    return rail.read()
                except (OSError, ValueError) as error:
                    if last:
                        why = error.strerror if isinstance(error, OSError) else f"it answers no number ({error})"
                        raise SensorFault(f"the driver cannot read {rail.channel.label} any more: {why}") from error
        raise AssertionError("the second try returns or raises")


def open(options: Dict[str, Any], filesystem: Path = Path("/")) -> _Hwmon:
    """The monitor that a kernel driver reads. AgentError: none, several and no `chip`, a shunt that nobody told, no total.

    filesystem: where sys and proc are.
    """
    check_options("hwmon", options, OPTIONS)
    chips = _chosen(hwmon_chips.find(filesystem), option_values.text("hwmon", options, "chip"))
    tolerance = option_values.number("hwmon", options, "shunt_tolerance", 0.01, 0.0, 0.2)
    ohm = option_values.number("hwmon", options, "shunt_ohm", 0.0, 1e-4, 10.0) if "shunt_ohm" in options else None
    notes = []
    factor = 1.0
    single = chips[0].name in hwmon_chips.SINGLE
    if single:
        if "rails" in options:
            raise AgentError(f"sensor hwmon: {chips[0]} has one rail; `rails` is for the INA3221")
        ohm, factor, note = hwmon_chips.corrected(chips[0], ohm)
        notes += [note] if note else []
        if chips[0].name in ("ina219", "ina220"):
            notes.append(
                "the driver lets the chip convert for 0.5 ms at a time: most of the power between two readings is not seen. "
                "The sensor ina219 sees 97 % of it"
            )
    elif ohm is not None:
        raise AgentError(
            "sensor hwmon: shunt_ohm is for chips with one shunt; those of an INA3221 are in the device tree"
        )
    channels = _distinct(chips)
    total, scope, why = _total(channels, options.get("rails"), single, filesystem)
    notes += [why] if why else []
    update_s = max((chip.update_s or 0.0 for chip in chips), default=0.0)
    rails = [_opened(channel, factor) for channel in channels]
    try:
        interval_s, volts = _try_out(rails, total, options, update_s, chips)
    except AgentError:
        for rail in rails:
            for file in rail.files():
                file.close()
        raise
    info = _info(
        chips=chips, rails=rails, total=total, scope=scope, interval_s=interval_s, volts=volts, ohm=ohm,
        tolerance=tolerance, notes=tuple(notes),
    )  # fmt: skip
    # a driver of single chips gives the last finished value, half an interval to one and a half old; ina3221 waits for one
    return _Hwmon(rails, total, info, age_s=update_s if single else update_s / 2)


def probe(filesystem: Path = Path("/")) -> Optional[str]:
    """The monitors that drivers have. Their values are not read."""
    chips = hwmon_chips.find(filesystem)
    if not chips:
        return None
    return f"kernel drivers read {', '.join(map(str, chips))}"


def _chosen(chips: List[Chip], wanted: Optional[str]) -> List[Chip]:
    """One chip with one shunt, or all INA3221 together."""
    if not chips:
        raise AgentError(
            "no kernel driver reads a power monitor here (INA219, INA226, INA23x, INA3221). To bind one, as root: "
            "echo ina226 0x40 > /sys/bus/i2c/devices/i2c-1/new_device"
        )
    listed = ", ".join(map(str, chips))
    if wanted is not None:
        found = [c for c in chips if wanted in (c.name, c.device, c.directory.name)]
        if not found:
            raise AgentError(f"sensor hwmon: there is no chip {wanted!r}: here are {listed}")
        chips = found
    triples = [c for c in chips if c.name not in hwmon_chips.SINGLE]
    if triples and (wanted is None or len(triples) == len(chips)):
        return triples
    if len(chips) > 1:
        raise AgentError(f"sensor hwmon: there are several chips: {listed}. Say which one: `chip`")
    return chips


def _distinct(chips: List[Chip]) -> List[Channel]:
    """All channels; those of the same label get their chip's name to it."""
    labels = [channel.label for chip in chips for channel in chip.channels]
    return [
        c if labels.count(c.label) == 1 else dataclasses.replace(c, label=f"{c.label} ({chip.device})")
        for chip in chips
        for c in chip.channels
    ]


def _total(channels: List[Channel], wanted: Any, single: bool, filesystem: Path) -> Tuple[Tuple[int, ...], str, str]:
    """(positions of the channels that are added up, scope, note). AgentError: the board is unknown, or lacks a rail."""
    labels = [c.label for c in channels]
    if single:
        return (0,), "as-wired", ""
    if wanted is not None:
        if not isinstance(wanted, (list, tuple)) or not wanted or any(w not in labels for w in wanted):
            raise AgentError(f"sensor hwmon: rails must be a list of some of {', '.join(labels)}, not {wanted!r}")
        return tuple(labels.index(w) for w in dict.fromkeys(wanted)), "as-wired", f"sum of {', '.join(wanted)}"
    board = hwmon_chips.text(filesystem / "proc" / "device-tree" / "model")
    rails = dict.fromkeys(labels, 0)
    policy, reason = jetson_power.policy_for(rails, board)
    if policy is None:  # a carrier's own name, perhaps
        policy, _ = jetson_power.policy_for(rails)
    if policy is None:
        raise AgentError(f"sensor hwmon: {reason}. Say which rails to add up: `rails`")
    return tuple(labels.index(r) for r in policy.rails), policy.scope, f"{policy.board}: {' + '.join(policy.rails)}"


def _opened(channel: Channel, factor: float) -> _Rail:
    try:
        if channel.microwatts is not None:
            return _Rail(channel, Number(channel.millivolts), None, Number(channel.microwatts), factor)
        return _Rail(channel, Number(channel.millivolts), Number(channel.milliamps), None, factor)
    except OSError as error:
        raise AgentError(f"{channel.label}: {error.filename}: {error.strerror}") from None


def _try_out(
    rails: List[_Rail], total: Tuple[int, ...], options: Dict[str, Any], update_s: float, chips: List[Chip]
) -> Tuple[float, List[float]]:
    """(seconds between readings, volts of each rail), after reading everything once."""
    begun = time.monotonic()
    try:
        for rail in rails:
            rail.read()
        taken_s = time.monotonic() - begun
        volts = [rail.volts.read() / 1e3 if rail.volts is not None else 0.0 for rail in rails]
    except (OSError, ValueError) as error:
        raise AgentError(f"{chips[0]}: the driver cannot read the chip: {error}") from None
    if not any(volts[i] > 0.1 for i in total):
        raise AgentError(f"{chips[0]} reads a supply of {max(volts):.2f} V: nothing is connected to it")
    least_s = max(update_s, 2 * taken_s)
    interval_s = option_values.number("hwmon", options, "interval_s", max(least_s, _LEAST_INTERVAL_S), 1e-3, 10.0)
    if interval_s < update_s or interval_s < taken_s:
        what = (
            f"renews its values every {update_s:g} s" if interval_s < update_s else f"takes {taken_s:.3f} s to be read"
        )
        raise AgentError(f"sensor hwmon: interval_s is {interval_s:g}, but the driver of {chips[0]} {what}")
    return interval_s, volts


def _info(
    *,
    chips: List[Chip],
    rails: List[_Rail],
    total: Tuple[int, ...],
    scope: str,
    interval_s: float,
    volts: List[float],
    ohm: Optional[float],
    tolerance: float,
    notes: Tuple[str, ...],
) -> SensorInfo:
    steps, offsets, gains = [], [], []
    for i in total:
        channel, kind = rails[i].channel, rails[i].channel.kind
        shunt = ohm or channel.shunt_ohm
        if shunt is None:
            notes = (
                *notes,
                f"error limits of {channel.label} reckon with a shunt of {_ASSUMED_OHM:g} ohm: its driver does not tell",
            )
        shunt = shunt or _ASSUMED_OHM
        # currents come in whole mA, power in steps of the chip
        step_a = kind.step_v / shunt if rails[i].power is not None else max(kind.step_v / shunt, 1e-3 * rails[i].factor)
        steps.append(step_a * volts[i])
        offsets.append(kind.offset_v / shunt * volts[i])
        gains.append(kind.gain_error + tolerance + kind.bus_offset_v / max(volts[i], 0.1))
    return SensorInfo(
        name="hwmon",
        description=f"{', '.join(map(str, chips))}, read by the kernel's driver",
        scope=scope,
        interval_s=interval_s,
        resolution_w=max(steps),
        gain_error=max(gains),
        offset_error_w=sum(offsets),
        notes=notes,
    )
