"""The INA219's registers and arithmetic (TI SBOS448G), and how to tell it from its relatives. No device is touched here
other than through the `WordBus` that is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict

from edgecompress_agent import option_values
from edgecompress_agent.errors import AgentError
from edgecompress_agent.i2c import WordBus

CONFIGURATION, SHUNT, BUS, POWER, CURRENT, CALIBRATION = range(6)
"""Registers (8.6.1, table 2)."""
READY, OVERFLOW = 0b10, 0b01
"""Of the bus voltage register (8.6.3.2): CNVR, new values since CNVR was cleared; OVF, current or power did not fit."""
SHUNT_LSB_V, BUS_LSB_V = 10e-6, 4e-3
BUS_RATED_V = 26.0
CALIBRATION_LIMIT = 0xFFFE
"""Bit 0 of the calibration register is void and reads 0 (8.6.4.1)."""
CONTINUOUS = 7
"""MODE: shunt and bus voltage, one after the other, without end (table 6)."""
RANGES_V = (0.04, 0.08, 0.16, 0.32)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)

_CONVERSION_S = (532e-6, 1.06e-3, 2.13e-3, 4.26e-3, 8.51e-3, 17.02e-3, 34.05e-3, 68.10e-3)
"""12 bits, mean of 1 to 128 samples (8.6.2.1, table 5). The clock may be 10 % slow (7.5: 532 µs typical, 586 µs at most)."""
_OFFSET_V = {"A": (100e-6, 125e-6, 150e-6, 200e-6), "B": (50e-6, 75e-6, 75e-6, 100e-6)}
_CURRENT_ERROR, _BUS_ERROR = {"A": 0.01, "B": 0.005}, 0.01
"""Limits of 7.5 by grade and range; the errors are those over temperature (-25 to 85 °C)."""

OPTIONS: Dict[str, str] = {
    "bus": "Number N of /dev/i2c-N; default 1.",
    "address": "Address on the bus, 0x40 to 0x4f (64 to 79), set by the chip's A0 and A1; default 0x40.",
    "shunt_ohm": "Resistance of the shunt in ohms; default 0.1, which most breakout boards carry (R100).",
    "shunt_tolerance": "Fraction by which the shunt may be off, 0 to 0.2; default 0.01.",
    "max_current_a": "Largest current in amperes, which chooses the range; default what 320 mV across the shunt stand for.",
    "bus_range_v": "Range of the supply's voltage, 16 or 32 V; default 16.",
    "shunt_samples": "Conversions of the current averaged in the chip: 1, 2, 4 … 128; default 32, a new value every 17.6 ms.",
    "bus_samples": "The same of the voltage, which is steadier; default 1: the current is watched 97 % of the time.",
    "grade": "A or B, the last letter of INA219A or INA219B: its error limits; default A, the wider ones.",
}


@dataclass(frozen=True)
class Settings:
    """How the chip is wired and set. Made by `of`, which refuses what cannot be measured so."""

    bus: int
    address: int
    shunt_ohm: float
    shunt_tolerance: float
    max_current_a: float
    bus_range_v: int
    shunt_samples: int
    bus_samples: int
    grade: str

    @staticmethod
    def of(options: Dict[str, Any]) -> "Settings":
        """From a profile's sensor_options. AgentError: a value of the wrong kind, or a shunt that does not suit the current."""
        shunt = option_values.number("ina219", options, "shunt_ohm", 0.1, 1e-4, 1e6)
        if shunt > 10:
            raise AgentError(
                f"sensor ina219: shunt_ohm is in ohms, and {shunt:g} ohms are no shunt (did you mean {shunt / 1000:g}?)"
            )
        current = option_values.number("ina219", options, "max_current_a", RANGES_V[-1] / shunt, 1e-3, 1e5)
        drop = current * shunt
        if drop > RANGES_V[-1] * (1 + 1e-9):
            raise AgentError(
                f"sensor ina219: {shunt:g} ohm at {current:g} A drops {drop * 1e3:.0f} mV, and the chip measures up to 320 mV: "
                f"the shunt is too large for this current. Use one of at most {_two_digits(RANGES_V[-1] / current)} ohm, or "
                f"max_current_a up to {_two_digits(RANGES_V[-1] / shunt)}"
            )
        if drop < 1e-3:
            raise AgentError(
                f"sensor ina219: {shunt:g} ohm at {current:g} A drops {drop * 1e3:.2g} mV, and the chip's zero may be off by "
                f"0.1 mV: the shunt is too small for this current. Use one of {_two_digits(RANGES_V[0] / current)} ohm"
            )
        return Settings(
            bus=int(option_values.choice("ina219", options, "bus", 1, range(256))),
            address=_address(options.get("address", 0x40)),
            shunt_ohm=shunt,
            shunt_tolerance=option_values.number("ina219", options, "shunt_tolerance", 0.01, 0.0, 0.2),
            max_current_a=current,
            bus_range_v=int(option_values.choice("ina219", options, "bus_range_v", 16, (16, 32))),
            shunt_samples=int(option_values.choice("ina219", options, "shunt_samples", 32, SAMPLES)),
            bus_samples=int(option_values.choice("ina219", options, "bus_samples", 1, SAMPLES)),
            grade=str(option_values.choice("ina219", options, "grade", "A", ("A", "B"))),
        )

    @property
    def gain_code(self) -> int:
        """PG1, PG0: the smallest range that holds the largest current (8.6.2.1, table 4)."""
        drop = self.max_current_a * self.shunt_ohm
        return next(code for code, volts in enumerate(RANGES_V) if drop <= volts * (1 + 1e-9))

    @property
    def range_v(self) -> float:
        return RANGES_V[self.gain_code]

    @property
    def full_scale(self) -> int:
        """The shunt register's value at the end of the range, where it stays for everything above (8.6.3.1, table 7)."""
        return round(self.range_v / SHUNT_LSB_V)

    @property
    def configuration(self) -> int:
        wide = self.bus_range_v == 32
        return (
            wide << 13
            | self.gain_code << 11
            | (8 | SAMPLES.index(self.bus_samples)) << 7
            | (8 | SAMPLES.index(self.shunt_samples)) << 3
            | CONTINUOUS
        )

    @property
    def current_lsb_a(self) -> float:
        """I_max / 2^15 (equation 2), or larger, as far as the calibration register needs it."""
        return max(self.max_current_a / 2**15, 0.04096 / (CALIBRATION_LIMIT * self.shunt_ohm))

    @property
    def calibration(self) -> int:
        """trunc(0.04096 / (Current_LSB · R_shunt)) (equation 1). The chip needs it for its OVF flag only: power is computed
        from the two voltages, which keep their sign and are finer than the power register (20 Current_LSB)."""
        return min(math.floor(0.04096 / (self.current_lsb_a * self.shunt_ohm) + 1e-9), CALIBRATION_LIMIT) & 0xFFFE

    @property
    def shunt_s(self) -> float:
        return _CONVERSION_S[SAMPLES.index(self.shunt_samples)]

    @property
    def bus_s(self) -> float:
        return _CONVERSION_S[SAMPLES.index(self.bus_samples)]

    @property
    def cycle_s(self) -> float:
        """Typical time between two new values: shunt, then bus (8.3.1; the arithmetic takes none)."""
        return self.shunt_s + self.bus_s

    def power_uw(self, shunt: int, bus: int) -> int:
        """Microwatts of the two voltage registers; shunt as read, two's complement."""
        return round(signed(shunt) * (bus >> 3) * (SHUNT_LSB_V * BUS_LSB_V * 1e6) / self.shunt_ohm)

    def overflow(self, shunt: int, bus: int) -> bool:
        """The flag, or a voltage at the end of its range: the flag tells of the arithmetic only, not of the converter."""
        top = 16.0 if self.bus_range_v == 16 else BUS_RATED_V
        return bool(bus & OVERFLOW) or abs(signed(shunt)) >= self.full_scale or (bus >> 3) * BUS_LSB_V >= top

    def resolution_w(self, bus_v: float) -> float:
        """One step of a single 12-bit conversion (range / 4000); averaging makes it finer where the current moves."""
        return self.range_v / 4000 / self.shunt_ohm * bus_v

    def gain_error(self, bus_v: float) -> float:
        """Limit, linear sum: shunt, current, voltage, half a step of the voltage (12 bits: 4 mV in 16 V, 8 mV in 32 V)."""
        return self.shunt_tolerance + _CURRENT_ERROR[self.grade] + _BUS_ERROR + self.bus_range_v / 4000 / 2 / bus_v

    def offset_error_w(self, bus_v: float) -> float:
        return _OFFSET_V[self.grade][self.gain_code] / self.shunt_ohm * bus_v


def signed(word: int) -> int:
    return word - 0x10000 if word & 0x8000 else word


def identify(bus: WordBus) -> None:
    """AgentError when the chip that answers is not an INA219 (or INA220, the same). Only reads: another chip must not suffer.

    The INA219 has no identity register. Its relatives have, and bits that are always 0 in it (8.6) are not in others.
    """
    for register, identity in (
        (0xFE, 0xFF),
        (0x3E, 0x3F),
    ):  # INA226, INA230, INA231, INA260, INA3221; INA228, INA237, INA238
        if _or_zero(bus, register) == 0x5449:  # "TI"
            relative = {0x226: "an INA226, INA230 or INA231", 0x322: "an INA3221", 0x227: "an INA260"}
            relative.update({0x228: "an INA228", 0x238: "an INA237 or INA238"})
            die = _or_zero(bus, identity) >> 4
            name = relative.get(die, f"another one by Texas Instruments (0x{die:03x})")
            raise AgentError(
                f"the chip that answers is {name}, not an INA219. Bind its kernel driver and use `sensor: hwmon`"
            )
    words = [bus.read_word(r) for r in range(6)]
    why = ""
    if words[CONFIGURATION] & 0xC000:
        why = "bits 14 and 15 of an INA219's configuration read 0"
    elif words[CALIBRATION] & 1:
        why = "bit 0 of an INA219's calibration reads 0"
    elif words[BUS] & 0b100:
        why = "bit 2 of an INA219's bus voltage reads 0"
    elif words[CALIBRATION] == 0 and (words[CURRENT] or words[POWER]):
        why = "an INA219 without calibration has no current and no power"
    if why:
        shown = " ".join(f"{w:04x}" for w in words)
        raise AgentError(f"the chip that answers is not an INA219: {why}, and registers 0 to 5 are {shown}")


def _or_zero(bus: WordBus, register: int) -> int:
    """Some chips do not acknowledge registers that they do not have."""
    try:
        return bus.read_word(register)
    except OSError:
        return 0


def _address(value: Any) -> int:
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = value
    if isinstance(number, bool) or not isinstance(number, int) or not 0x40 <= number <= 0x4F:
        raise AgentError(f"sensor ina219: address must be from 0x40 to 0x4f (an INA219 has no other), not {value!r}")
    return number


def _two_digits(value: float) -> str:
    """Rounded down, so that the advice itself holds."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.floor(value / step + 1e-9) * step:.2g}"
