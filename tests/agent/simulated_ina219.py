"""An INA219 at register level, in virtual or real time: what the chip would answer at the moment it is asked.

Everything follows TI SBOS448G: registers (8.6), configuration (8.6.2.1), conversion times (7.5, 8.6.2.1 table 5), shunt and bus
converted one after the other (8.3.1), current and power as worked out in 8.5.1 and 9.2.2.1, range limits of the PGA (8.6.3.1).

Power is a waveform whose integral is known exactly, so that an energy can be compared with the truth:

    clock = VirtualClock()
    wave = Periodic((0.010, 2.0), (0.040, 5.0))            # 10 ms at 2 W, then 40 ms at 5 W, over and over
    chip = SimulatedIna219(wave, clock, supply_v=5.0)      # has read_word and write_word, as edgecompress_agent.i2c.WordBus
    sensor = Ina219(chip, Settings.of({}), clock=clock.monotonic_ns, sleep=clock.sleep)
    sample = sensor.read(1.0)                              # virtual time passes, nothing waits
    truth_j = wave.energy_j(end_s) - wave.energy_j(start_s)

The load's voltage is constant; so mean current is mean power / voltage, and the chip's averaging is exact.
"""

from __future__ import annotations

import errno
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

CONFIGURATION, SHUNT, BUS, POWER, CURRENT, CALIBRATION = range(6)
POWER_ON = 0x399F
CNVR, OVF = 0b10, 0b01
SHUNT_LSB_V, BUS_LSB_V = 10e-6, 4e-3

_BITS_S = {0: 84e-6, 1: 148e-6, 2: 276e-6, 3: 532e-6}
_AVERAGED_S = {
    8: 532e-6, 9: 1.06e-3, 10: 2.13e-3, 11: 4.26e-3, 12: 8.51e-3, 13: 17.02e-3, 14: 34.05e-3, 15: 68.10e-3,
}  # fmt: skip


def conversion_s(code: int) -> float:
    """Seconds of one conversion with this ADC code (typical values; codes 4 to 7 repeat 0 to 3: bit 2 is void)."""
    return _AVERAGED_S[code] if code & 8 else _BITS_S[code & 3]


class Waveform(Protocol):
    """Power of the load over time, by its integral."""

    def energy_j(self, t_s: float) -> float:
        """The integral of the power from 0 to t_s."""
        ...


class Periodic:
    """Pieces, each (seconds, watts) or (seconds, watts at its start, watts at its end), repeated for ever from t = 0."""

    def __init__(self, *pieces: tuple[float, ...]) -> None:
        self._pieces = [(p[0], p[1], p[-1]) for p in pieces]
        self._starts = [0.0, *accumulate(p[0] for p in self._pieces)]
        self._energies = [0.0, *accumulate(p[0] * (p[1] + p[2]) / 2 for p in self._pieces)]
        self.period_s = self._starts[-1]
        self.mean_w = self._energies[-1] / self.period_s

    def energy_j(self, t_s: float) -> float:
        whole, inside = divmod(t_s, self.period_s)
        index = min(bisect_right(self._starts, inside) - 1, len(self._pieces) - 1)
        seconds, first_w, last_w = self._pieces[index]
        into = inside - self._starts[index]
        slope = (last_w - first_w) / seconds
        return whole * self._energies[-1] + self._energies[index] + into * (first_w + slope * into / 2)


def constant(watts: float) -> Periodic:
    return Periodic((1.0, watts))


class Sequence:
    """Waveforms one after the other, each for some seconds (idle, inference, idle); the last one never ends."""

    def __init__(self, *parts: tuple[float, Waveform]) -> None:
        self._parts = parts

    def energy_j(self, t_s: float) -> float:
        energy, left = 0.0, t_s
        for seconds, wave in self._parts[:-1]:
            if left <= seconds:
                return energy + wave.energy_j(left)
            energy, left = energy + wave.energy_j(seconds), left - seconds
        return energy + self._parts[-1][1].energy_j(left)


@dataclass
class VirtualClock:
    """Time that passes when somebody sleeps in it, and in no other way."""

    now_s: float = 0.0
    overshoot: Callable[[], float] = lambda: 0.0
    """Seconds that a sleep lasts too long: a busy system."""

    def monotonic_ns(self) -> int:
        return round(self.now_s * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now_s += max(seconds, 0.0) + self.overshoot()


@dataclass
class RealClock:
    """The machine's own clock, with t = 0 at its making."""

    started_ns: int = field(default_factory=time.monotonic_ns)

    @property
    def now_s(self) -> float:
        return (time.monotonic_ns() - self.started_ns) / 1e9

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(seconds, 0.0))


@dataclass
class SimulatedIna219:
    """The chip with its shunt, the load and the bus to it: the `WordBus` that the agent's sensor talks to."""

    wave: Waveform
    clock: VirtualClock | RealClock
    supply_v: float = 5.0
    shunt_ohm: float = 0.1
    gain: float = 1.0
    """What the shunt's and the ADC's errors make of a voltage across the shunt."""
    offset_v: float = 0.0
    """Of the shunt voltage, referred to the input: at most 200 µV (7.5)."""
    cycle_factor: float = 1.0
    """How much longer than typical the conversions take; at most 1.10 (7.5: 586 µs for 532 µs)."""
    cnvr_cleared_by: str = "power"
    """The datasheet has it two ways: reading the power register (8.6.3.2), or reading the bus register (8.3.1)."""
    coarse: bool = True
    """Quantise the shunt voltage to 12 bits of the range (80 µV at ±320 mV) instead of to the register's 10 µV."""
    word_s: float = 450e-6
    """Of the bus for one word: 45 clocks at 100 kHz. Passes in virtual time only."""
    noise_v: Callable[[int], float] = lambda conversion: 0.0
    """Added to the shunt voltage, by the number of the conversion (asked several times for one)."""
    fault: Callable[[str, int], int] = lambda what, register: 0
    """An errno to fail with instead of ("read" or "write", register); 0: none."""

    reads: int = 0
    writes: list[tuple[int, int]] = field(default_factory=list)
    _configuration: int = POWER_ON
    _calibration: int = 0
    _started_s: float = 0.0
    _seen: int = 0
    closed: bool = False

    # What is on the bus

    def read_word(self, register: int) -> int:
        self._transfer("read", register)
        self.reads += 1
        cycle = self._cycle()
        if register == BUS:
            ready = CNVR if cycle > self._seen else 0
            self._clear(cycle, "bus")
            return (self._bus(cycle) << 3) | ready | (OVF if self._overflow(cycle) else 0)
        if register == POWER:
            power = self._power(cycle) & 0xFFFF
            self._clear(cycle, "power")
            return power
        return {
            CONFIGURATION: lambda: self._configuration,
            SHUNT: lambda: self._shunt(cycle) & 0xFFFF,
            CURRENT: lambda: self._current(cycle) & 0xFFFF,
            CALIBRATION: lambda: self._calibration,
        }.get(register, lambda: 0)()

    def write_word(self, register: int, value: int) -> None:
        assert 0 <= value <= 0xFFFF
        self._transfer("write", register)
        self.writes.append((register, value))
        if register == CONFIGURATION:
            if value & 0x8000:
                value, self._calibration = POWER_ON, 0
            self._configuration = value & 0x3FFF
            self._started_s, self._seen = self.clock.now_s, 0
        elif register == CALIBRATION:
            self._calibration = value & 0xFFFE

    def close(self) -> None:
        self.closed = True

    def lose_power(self) -> None:
        """A brown-out: the chip starts again with its power-on values."""
        self._configuration, self._calibration = POWER_ON, 0
        self._started_s, self._seen = self.clock.now_s, 0

    def _transfer(self, what: str, register: int) -> None:
        if isinstance(self.clock, VirtualClock):
            self.clock.now_s += self.word_s
        code = self.fault(what, register)
        if code:
            raise OSError(code, errno.errorcode.get(code, "?"))

    # What the chip does

    @property
    def range_v(self) -> float:
        return 0.04 * (1 << (self._configuration >> 11 & 3))

    @property
    def shunt_s(self) -> float:
        return conversion_s(self._configuration >> 3 & 0xF) * self.cycle_factor

    @property
    def bus_s(self) -> float:
        return conversion_s(self._configuration >> 7 & 0xF) * self.cycle_factor

    @property
    def cycle_s(self) -> float:
        return self.shunt_s + self.bus_s

    def _cycle(self) -> int:
        """How many shunt and bus pairs have been converted since the configuration was written (mode 7; else none)."""
        if self._configuration & 7 != 7:
            return 0
        return math.floor((self.clock.now_s - self._started_s) / self.cycle_s + 1e-9)

    def _clear(self, cycle: int, by: str) -> None:
        if by == self.cnvr_cleared_by:
            self._seen = cycle

    def _shunt(self, cycle: int) -> int:
        """The register after so many cycles: the shunt's mean voltage over its conversion, limited to the range."""
        if cycle == 0:
            return 0
        start = self._started_s + (cycle - 1) * self.cycle_s
        mean_w = (self.wave.energy_j(start + self.shunt_s) - self.wave.energy_j(start)) / self.shunt_s
        volts = mean_w / self.supply_v * self.shunt_ohm * self.gain + self.offset_v + self.noise_v(cycle)
        step = self.range_v / 4000 if self.coarse else SHUNT_LSB_V
        volts = round(volts / step) * step
        return round(max(-self.range_v, min(self.range_v, volts)) / SHUNT_LSB_V)

    def _bus(self, cycle: int) -> int:
        if cycle == 0:
            return 0
        wide = self._configuration & 0x2000
        step = 2 if wide and self.coarse else 1  # 12 bits of 32 V are 8 mV
        return min(round(self.supply_v / BUS_LSB_V / step) * step, 8000 if wide else 4000)

    def _current(self, cycle: int) -> int:
        return self._shunt(cycle) * self._calibration // 4096

    def _power(self, cycle: int) -> int:
        return abs(self._current(cycle)) * self._bus(cycle) // 5000

    def _overflow(self, cycle: int) -> bool:
        return not -0x8000 <= self._current(cycle) <= 0x7FFF or self._power(cycle) > 0xFFFF
