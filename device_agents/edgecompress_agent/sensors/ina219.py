"""INA219 (or INA220): current through a shunt in the supply, and the supply's voltage, over I2C. Source: TI SBOS448G.

The chip runs in its continuous mode and averages by itself; each of its values is read once, when it is ready, and dated to
the middle of the conversion of the current. Power is computed from the two voltages. Scope: whatever is behind the shunt.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional

from edgecompress_agent import i2c, permission
from edgecompress_agent import ina219_chip as chip
from edgecompress_agent.errors import AgentError
from edgecompress_agent.i2c import WordBus
from edgecompress_agent.ina219_chip import OPTIONS, Settings
from edgecompress_agent.ina219_pacing import Pacing
from edgecompress_agent.sensors import Sample, SensorFault, check_options
from edgecompress_agent.wire import SensorInfo

__all__ = ["OPTIONS", "Ina219", "hint", "open", "probe"]

_USUAL = (0x40, 0x41, 0x44, 0x45)
"""What the jumpers of breakout boards can choose."""
_CHECK_NS = 1_000_000_000
_STALE_PERIODS = 3
_LEAST_SUPPLY_V = 0.5


class Ina219:
    """An INA219 that converts without end. Made on a bus to a chip; clock and sleep can be those of a simulation."""

    def __init__(
        self,
        bus: WordBus,
        settings: Settings,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Identifies and sets up the chip, and waits for its first value. AgentError: another chip, nothing connected, current
        beyond the range or backwards; OSError: it does not answer."""
        self._bus, self._settings, self._clock, self._sleep = bus, settings, clock, sleep
        chip.identify(bus)
        self._found = (bus.read_word(chip.CONFIGURATION), bus.read_word(chip.CALIBRATION))
        self._set_up()
        self._pacing = Pacing(settings.cycle_s * 1e9, clock())
        self._checked_ns = clock()
        self._stuck_since: Optional[int] = None
        sleep(settings.cycle_s * 1.2)
        shunt, bus_word = bus.read_word(chip.SHUNT), bus.read_word(chip.BUS)
        self.info = _info(settings, _supply_v(settings, shunt, bus_word))

    def read(self, timeout_s: float) -> Sample:
        """The next value of the chip. A repeated one, marked stale, when the chip has had none for three of its periods.
        SensorFault when it has none for timeout_s, does not answer twice, or is no longer set as it was."""
        pacing = self._pacing
        asked_ns = self._clock()
        if self._stuck_since is None:
            self._stuck_since = asked_ns
        self._sleep(min(max((pacing.look_ns - asked_ns) / 1e9, 0.0), timeout_s))
        looks, before_ns = 0, pacing.look_ns
        while True:
            asked_ns = self._clock()
            bus = self._word(chip.BUS)
            now_ns = (asked_ns + self._clock()) // 2  # a word takes 0.4 ms at 100 kHz
            looks += 1
            if bus & chip.READY:
                break
            if now_ns - self._stuck_since >= timeout_s * 1e9:
                self._check(now_ns, at_once=True)
                raise SensorFault(f"the INA219 has had no new value for {timeout_s:g} s")
            if now_ns >= pacing.ready_ns + _STALE_PERIODS * pacing.period_ns:
                self._check(now_ns, at_once=True)
                return self._repeated(bus, now_ns)
            before_ns = now_ns
            self._sleep(pacing.step_ns / 1e9)
        shunt = self._word(chip.SHUNT)
        self._word(chip.POWER)  # clears the flag, where reading the bus voltage has not (8.6.3.2; 8.3.1 says otherwise)
        pacing.seen(before_ns, now_ns, looks)
        self._stuck_since = None
        self._check(now_ns)
        return self._sample(shunt, bus, pacing.ready_ns, stale=False)

    def close(self) -> None:
        """Leaves the chip as it was found."""
        with contextlib.suppress(OSError):
            self._bus.write_word(chip.CONFIGURATION, self._found[0])
            self._bus.write_word(chip.CALIBRATION, self._found[1])
        self._bus.close()

    def _set_up(self) -> None:
        wanted = {chip.CONFIGURATION: self._settings.configuration, chip.CALIBRATION: self._settings.calibration}
        for register, value in wanted.items():
            self._bus.write_word(register, value)
            kept = self._bus.read_word(register)
            if kept != value:
                raise AgentError(
                    f"the chip that answers is not an INA219: register {register} was set to 0x{value:04x} and reads 0x{kept:04x}"
                )

    def _sample(self, shunt: int, bus: int, ready_ns: float, stale: bool) -> Sample:
        settings, pacing = self._settings, self._pacing
        ago_ns = (settings.bus_s + settings.shunt_s / 2) * 1e9 * (pacing.period_ns / pacing.nominal_ns)
        power_uw = settings.power_uw(shunt, bus)
        return Sample(int(ready_ns - ago_ns), power_uw, stale=stale, overflow=settings.overflow(shunt, bus))

    def _repeated(self, bus: int, now_ns: int) -> Sample:
        shunt = self._word(chip.SHUNT)
        self._pacing.unseen(now_ns)
        return self._sample(shunt, bus, now_ns, stale=True)

    def _check(self, now_ns: int, at_once: bool = False) -> None:
        """Once a second: is the chip still set as it was?"""
        if not at_once and now_ns - self._checked_ns < _CHECK_NS:
            return
        self._checked_ns = now_ns
        kept = self._word(chip.CONFIGURATION)
        if kept != self._settings.configuration:
            raise SensorFault(
                f"the INA219's configuration is 0x{kept:04x} and was set to 0x{self._settings.configuration:04x}: the chip lost "
                "its supply, or another program uses it"
            )

    def _word(self, register: int) -> int:
        """One register, tried twice: a disturbance on the wires costs one word, an unplugged chip all of them."""
        try:
            return self._bus.read_word(register)
        except OSError:
            try:
                return self._bus.read_word(register)
            except OSError as error:
                raise SensorFault(f"the INA219 answers no more: {error.strerror or error}") from error


def open(options: Dict[str, Any], filesystem: Path = Path("/")) -> Ina219:
    """The chip on /dev/i2c-N, set up. filesystem: where dev and sys are. AgentError: no bus, no permission (with the group), held
    by a kernel driver, nothing or another chip at the address, a shunt that does not suit the current."""
    check_options("ina219", options, OPTIONS)
    settings = Settings.of(options)
    device = i2c.open_device(settings.bus, settings.address, filesystem)
    try:
        return Ina219(device, settings)
    except AgentError as error:
        device.close()
        raise AgentError(f"0x{settings.address:02x} on /dev/i2c-{settings.bus}: {error}") from None
    except OSError as error:
        device.close()
        if error.errno not in i2c.NOT_THERE:
            raise AgentError(f"/dev/i2c-{settings.bus}: {error.strerror}") from None
        raise AgentError(_absent(settings, error, filesystem)) from None


def probe(filesystem: Path = Path("/")) -> Optional[str]:
    """What looks like an INA219 on /dev/i2c-1 (the bus on the header of Raspberry Pis and Jetsons). Only reads, and only there:
    on other buses are displays and memory modules."""
    for address in _answering(1, _USUAL, filesystem):
        return f"what answers at 0x{address:02x} on /dev/i2c-1 looks like an INA219"
    return None


def hint(filesystem: Path = Path("/")) -> Optional[str]:
    """Why `probe` could not look."""
    path = str(filesystem / "dev/i2c-1")
    if Path(path).exists() and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        return permission.refused(path, "i2c")
    return None


def _answering(bus: int, addresses: Iterable[int], filesystem: Path) -> List[int]:
    """Those of the addresses at which an INA219 seems to be, and no kernel driver."""
    found = []
    for address in addresses:
        try:
            device = i2c.open_device(bus, address, filesystem)
        except AgentError:
            continue
        try:
            chip.identify(device)
            found.append(address)
        except (AgentError, OSError):
            pass
        finally:
            device.close()
    return found


def _absent(settings: Settings, error: OSError, filesystem: Path) -> str:
    others = [a for a in _answering(settings.bus, range(0x40, 0x50), filesystem) if a != settings.address]
    shown = ", ".join(f"0x{a:02x}" for a in others)
    what = (
        f"one does at {shown}: set `address`"
        if others
        else "no INA219 does at any of its 16 addresses: look at the wiring"
    )
    return f"nothing answers at 0x{settings.address:02x} on /dev/i2c-{settings.bus} ({error.strerror}); {what}"


def _supply_v(settings: Settings, shunt: int, bus: int) -> float:
    """The supply's voltage now. AgentError when the first values cannot be those of a board behind the meter."""
    volts = (bus >> 3) * chip.BUS_LSB_V
    if volts < _LEAST_SUPPLY_V:
        raise AgentError(
            f"the supply reads {volts:.2f} V: the board's supply does not go through this meter (VIN+ to VIN-)"
        )
    drop_mv = chip.signed(shunt) * chip.SHUNT_LSB_V * 1e3
    if drop_mv < -1:
        raise AgentError(f"the current flows backwards ({drop_mv:.1f} mV across the shunt): swap VIN+ and VIN-")
    if settings.bus_range_v == 16 and volts >= 16:
        raise AgentError("the supply is above 16 V: set bus_range_v: 32 (the chip bears 26 V)")
    if settings.overflow(shunt, bus):
        raise AgentError(
            f"the current is beyond the range already ({drop_mv:.0f} mV across the shunt, {settings.max_current_a:g} A at most): "
            "raise max_current_a, or use a smaller shunt"
        )
    return volts


def _info(settings: Settings, volts: float) -> SensorInfo:
    drop_v = settings.max_current_a * settings.shunt_ohm
    notes = [
        f"{settings.shunt_ohm:g} ohm, up to {settings.max_current_a:g} A; current over {settings.shunt_samples} conversions, "
        f"voltage over {settings.bus_samples}; {volts:.2f} V when opened"
    ]
    if drop_v > 0.05 * volts:
        notes.append(
            f"at {settings.max_current_a:g} A the shunt takes {drop_v * 1e3:.0f} mV from the {volts:.1f} V of the supply"
        )
    return SensorInfo(
        name="ina219",
        description=f"INA219{settings.grade} at 0x{settings.address:02x} on /dev/i2c-{settings.bus}",
        scope="as-wired",
        interval_s=settings.cycle_s,
        resolution_w=settings.resolution_w(volts),
        gain_error=settings.gain_error(volts),
        offset_error_w=settings.offset_error_w(volts),
        notes=tuple(notes),
    )
