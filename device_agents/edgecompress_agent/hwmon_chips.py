"""Power monitors that a kernel driver reads, as sysfs shows them: which are there, their channels, and their error limits.

Sources: Linux Documentation/hwmon/{ina2xx,ina238,ina3221}.rst and drivers/hwmon of the same names; for JetPack 4 NVIDIA's
ina3221x (an IIO driver). Limits: TI SBOS448G (INA219), SBOS547B (INA226), the INA238's, SBOS576 (INA3221), sections
"Electrical Characteristics", maximum values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from edgecompress_agent.errors import AgentError

DRIVER_DEFAULT_OHM = 0.01
"""What ina2xx and ina238 take for the shunt when nobody told them (INA2XX_RSHUNT_DEFAULT, INA238_RSHUNT_DEFAULT)."""


class Kind(NamedTuple):
    """One family of chips. Limits are ±; step_v: one step of the shunt's voltage; reads_power: power1_input is finer than 1 mA."""

    offset_v: float
    gain_error: float
    bus_offset_v: float
    step_v: float
    range_v: float
    reads_power: bool = False


_INA219 = Kind(200e-6, 0.02, 4e-3, 80e-6, 0.32)  # the driver sets the widest range: 12 bits of 320 mV are 80 µV
_INA226 = Kind(10e-6, 0.002, 7.5e-3, 2.5e-6, 0.08192)
_INA238 = Kind(5e-6, 0.007, 5e-3, 5e-6, 0.16384, reads_power=True)
_INA3221 = Kind(80e-6, 0.005, 16e-3, 40e-6, 0.1638)
SINGLE = {
    "ina219": _INA219, "ina220": _INA219,
    "ina226": _INA226, "ina230": _INA226, "ina231": _INA226,
    "ina237": _INA238, "ina238": _INA238,
}  # fmt: skip


class Number:
    """A file of sysfs with one integer in it, kept open: each read asks the driver anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(str(path), os.O_RDONLY)

    def read(self) -> int:
        """OSError: the driver could not read the chip, or is gone. ValueError: not an integer."""
        return int(os.pread(self._file, 64, 0))

    def close(self) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class Channel:
    """One shunt. Files hold mV, mA and µW (mW where power_unit_uw is 1000). shunt_ohm: what the driver reckons with, if told."""

    label: str
    kind: Kind
    millivolts: Path
    milliamps: Path
    microwatts: Optional[Path] = None
    power_unit_uw: int = 1
    shunt_ohm: Optional[float] = None


@dataclass(frozen=True)
class Chip:
    """One monitor. device: its name on the bus (1-0040). update_s: how often the driver says it has new values, if it does."""

    name: str
    device: str
    directory: Path
    channels: Tuple[Channel, ...]
    update_s: Optional[float] = None
    shunt_told: bool = True
    """The device tree has the shunt, or somebody set another one than the driver's default."""
    facts: Dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} at {self.device}"


def find(filesystem: Path = Path("/")) -> List[Chip]:
    """Every monitor that is known here, by name and device. Nothing but its names and settings is read."""
    sys = filesystem / "sys"
    found = []
    for directory in sys.glob("class/hwmon/hwmon*"):
        name = text(directory / "name") or ""
        if name in SINGLE and (directory / "curr1_input").exists():
            found.append(_single(name, directory))
        elif name == "ina3221":
            found.append(_triple(directory))
    for directory in sys.glob("bus/i2c/drivers/ina3221x/*-*/iio:device*"):
        found.append(_jetpack4(directory))
    return sorted((c for c in found if c.channels), key=lambda c: (c.name, c.device))


def _single(name: str, directory: Path) -> Chip:
    kind = SINGLE[name]
    ohm = _micro(directory / "shunt_resistor")
    in_tree = any(
        (directory / "device" / "of_node" / n).exists() for n in ("shunt-resistor", "shunt-resistor-micro-ohms")
    )
    power = directory / "power1_input"
    label = text(directory / "power1_label") or text(directory / "in1_label") or name
    channel = Channel(
        label=label,
        kind=kind,
        millivolts=directory / "in1_input",
        milliamps=directory / "curr1_input",
        microwatts=power if kind.reads_power and power.exists() else None,
        shunt_ohm=ohm,
    )
    told = in_tree or (ohm is not None and abs(ohm - DRIVER_DEFAULT_OHM) > 1e-9)
    return Chip(name, _device(directory), directory, (channel,), _update(directory), told)


def _triple(directory: Path) -> Chip:
    channels = []
    for k in (1, 2, 3):  # in4 to in6 are the shunts' voltages, in7 their sum
        label = text(directory / f"in{k}_label") or f"{_device(directory)} channel {k}"
        current = directory / f"curr{k}_input"
        if _connected(label) and current.exists() and text(directory / f"in{k}_enable") != "0":
            ohm = _micro(directory / f"shunt{k}_resistor")
            channels.append(Channel(label, _INA3221, directory / f"in{k}_input", current, shunt_ohm=ohm))
    return Chip("ina3221", _device(directory), directory, tuple(channels), _update(directory))


def _jetpack4(directory: Path) -> Chip:
    channels = []
    for k in (0, 1, 2):
        label = text(directory / f"rail_name_{k}")
        power = directory / f"in_power{k}_input"
        if label and _connected(label) and power.exists():
            volts, amperes = directory / f"in_voltage{k}_input", directory / f"in_current{k}_input"
            channels.append(Channel(label, _INA3221, volts, amperes, power, power_unit_uw=1000))
    return Chip("ina3221x", directory.parent.name, directory, tuple(channels))


def _connected(label: str) -> bool:
    return label.upper() != "NC"


def _device(directory: Path) -> str:
    """1-0040, from hwmon3/device, which links to the device on the bus."""
    link = directory / "device"
    return link.resolve().name if link.exists() else directory.name


def _update(directory: Path) -> Optional[float]:
    value = text(directory / "update_interval")
    return int(value) / 1e3 if value and value.isdigit() and int(value) else None


def _micro(path: Path) -> Optional[float]:
    value = text(path)
    return int(value) / 1e6 if value and value.isdigit() and int(value) else None


def text(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except OSError:
        return None


def corrected(chip: Chip, shunt_ohm: Optional[float]) -> Tuple[float, float, str]:
    """For a chip with one shunt: (the true shunt, the factor for the driver's currents and powers, a note or "").

    AgentError when nobody said what the shunt is: the driver's default would make the figures ten times wrong with the usual
    0.1 ohm, silently.
    """
    driver_ohm = chip.channels[0].shunt_ohm
    if driver_ohm is None:
        if shunt_ohm is None:
            raise AgentError(
                f"{chip}: its driver does not tell its shunt; say `shunt_ohm`, in ohms, and it must be right"
            )
        return shunt_ohm, 1.0, f"the driver does not tell its shunt; {shunt_ohm:g} ohm by the profile"
    if shunt_ohm is None:
        if chip.shunt_told:
            return driver_ohm, 1.0, ""
        raise AgentError(
            f"{chip}: the driver reckons with its default of 10 milliohms, which nobody set, while most breakout boards carry "
            "0.1 ohm (R100): currents would be ten times too large. Say in the profile what is mounted: "
            "sensor_options: {shunt_ohm: 0.1} (or 0.01, if it is)"
        )
    if abs(shunt_ohm / driver_ohm - 1) < 1e-3:
        return shunt_ohm, 1.0, ""
    note = f"the driver reckons with {driver_ohm:g} ohm, corrected to the profile's {shunt_ohm:g} ohm"
    return shunt_ohm, driver_ohm / shunt_ohm, note
