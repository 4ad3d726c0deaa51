"""The INA219 sensor against the chip at register level, in virtual time; arithmetic against the datasheet's worked values."""

from __future__ import annotations

import errno
import itertools
import random

import pytest
from edgecompress_agent import ina219_chip
from edgecompress_agent.errors import AgentError
from edgecompress_agent.ina219_chip import Settings
from edgecompress_agent.sampler import Sampler
from edgecompress_agent.sensors import SensorFault
from edgecompress_agent.sensors.ina219 import OPTIONS, Ina219

from .simulated_ina219 import (
    BUS,
    CALIBRATION,
    CONFIGURATION,
    CURRENT,
    POWER,
    SHUNT,
    Periodic,
    RealClock,
    Sequence,
    SimulatedIna219,
    VirtualClock,
    constant,
)


def _sensor(chip: SimulatedIna219, **options: object) -> Ina219:
    return Ina219(chip, Settings.of(dict(options)), clock=chip.clock.monotonic_ns, sleep=chip.clock.sleep)


def _integral_error(samples: list, wave: Periodic) -> float:
    """Trapezoid over the stamps ÷ truth - 1."""
    area = sum((a.power_uw + b.power_uw) / 2 * (b.t_ns - a.t_ns) for a, b in itertools.pairwise(samples)) * 1e-15
    return area / (wave.energy_j(samples[-1].t_ns / 1e9) - wave.energy_j(samples[0].t_ns / 1e9)) - 1


# Arithmetic


def test_the_worked_example_of_the_datasheet() -> None:
    """SBOS448G 9.2.2.1, table 8: 10 A through 2 milliohms from 12 V; configuration 019F, calibration 5000 (1 mA a step)."""
    clock = VirtualClock()
    chip = SimulatedIna219(constant(119.8), clock, supply_v=11.98, shunt_ohm=0.002)
    chip.write_word(CONFIGURATION, 0x019F)
    chip.write_word(CALIBRATION, 0x5000)
    clock.sleep(0.01)
    shunt, bus = chip.read_word(SHUNT), chip.read_word(BUS)
    assert (shunt, bus & ~0b11) == (0x07D0, 0x5D98)
    assert (chip.read_word(CURRENT), chip.read_word(POWER)) == (0x2710, 0x1766)
    settings = Settings.of({"shunt_ohm": 0.002, "max_current_a": 15})
    assert settings.power_uw(0x07D0, 0x5D98) == 119_800_000
    assert ina219_chip.signed(0x07D0) * ina219_chip.SHUNT_LSB_V == pytest.approx(0.02)


def test_calibration() -> None:
    """Equations 1 and 2 of 8.5.1: 0.1 ohm, 3.2 A gives 4194 (0x1062) at 97.66 µA; bit 0 is void (8.6.4.1)."""
    usual = Settings.of({"shunt_ohm": 0.1, "max_current_a": 3.2})
    assert usual.calibration == 0x1062
    assert usual.current_lsb_a == pytest.approx(97.66e-6, rel=1e-4)
    # 2 milliohms, 15 A (design requirements of 9.2.1): the smallest step, 457.8 µA, would give 44,739; its bit 0 is dropped
    assert Settings.of({"shunt_ohm": 0.002, "max_current_a": 15}).calibration == 44_738
    # 5 mV at most: I_max / 2^15 would ask for 268,435, which the register does not hold
    small = Settings.of({"shunt_ohm": 0.005, "max_current_a": 1})
    assert small.calibration == 0xFFFE
    assert small.current_lsb_a * small.calibration * 0.005 == pytest.approx(0.04096)


@pytest.mark.parametrize(
    ("options", "word", "cycle_ms"),
    [
        ({}, 0b0_0_0_11_1000_1101_111, 17.552),
        ({"bus_range_v": 32, "max_current_a": 0.4, "shunt_samples": 1}, 0b0_0_1_00_1000_1000_111, 1.064),
        ({"max_current_a": 0.8, "shunt_samples": 128, "bus_samples": 128}, 0b0_0_0_01_1111_1111_111, 136.2),
        ({"shunt_ohm": 0.01, "max_current_a": 16, "bus_samples": 4}, 0b0_0_0_10_1010_1101_111, 19.15),
    ],
)
def test_configuration(options: dict, word: int, cycle_ms: float) -> None:
    """8.6.2.1: RST, void, BRNG, PG, BADC, SADC, MODE, and tables 4 and 5."""
    settings = Settings.of(options)
    assert settings.configuration == word
    assert settings.cycle_s * 1e3 == pytest.approx(cycle_ms)


def test_limits_are_those_of_the_grade_and_range() -> None:
    """7.5: ±200 µV (A) and ±100 µV (B) at ±320 mV, ±100 and ±50 µV at ±40 mV; 1 % and 0.5 % over temperature; 1 % voltage."""
    wide = Settings.of({})
    assert wide.offset_error_w(5.0) == pytest.approx(200e-6 / 0.1 * 5)
    assert Settings.of({"grade": "B"}).offset_error_w(5.0) == pytest.approx(100e-6 / 0.1 * 5)
    assert Settings.of({"grade": "B", "max_current_a": 0.4}).offset_error_w(5.0) == pytest.approx(50e-6 / 0.1 * 5)
    assert wide.gain_error(5.0) == pytest.approx(0.01 + 0.01 + 0.01 + 0.002 / 5)
    assert Settings.of({"grade": "B", "shunt_tolerance": 0}).gain_error(5.0) == pytest.approx(0.015 + 0.002 / 5)


# Options that cannot be measured with


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shunt_ohm": 0.1, "max_current_a": 5}, "0.1 ohm at 5 A drops 500 mV, and the chip measures up to 320 mV"),
        ({"shunt_ohm": 0.001, "max_current_a": 0.5}, "too small for this current. Use one of 0.08 ohm"),
        ({"shunt_ohm": 100}, "shunt_ohm is in ohms, and 100 ohms are no shunt (did you mean 0.1?)"),
        ({"shunt_ohm": 0}, "shunt_ohm must be a number"),
        ({"shunt_ohm": float("nan")}, "shunt_ohm must be a number"),
        ({"max_current_a": True}, "max_current_a must be a number"),
        ({"address": 0x20}, "0x40 to 0x4f"),
        ({"address": "forty"}, "0x40 to 0x4f"),
        ({"address": True}, "0x40 to 0x4f"),
        ({"shunt_samples": 3}, "1, 2, 4, 8, 16, 32, 64, 128"),
        ({"bus_range_v": 26}, "one of 16, 32"),
        ({"grade": "C"}, "one of A, B"),
        ({"bus": -1}, "bus must be one of 0 to 255"),
    ],
)
def test_refused_options(options: dict, says: str) -> None:
    with pytest.raises(AgentError) as refused:
        Settings.of(options)
    assert says in str(refused.value)


def test_the_advice_of_a_refusal_is_accepted() -> None:
    with pytest.raises(AgentError, match=r"at most 0\.064 ohm, or max_current_a up to 3\.2"):
        Settings.of({"shunt_ohm": 0.1, "max_current_a": 5})
    assert Settings.of({"shunt_ohm": 0.064, "max_current_a": 5}).range_v == 0.32
    assert Settings.of({"shunt_ohm": 0.1, "max_current_a": 3.2}).range_v == 0.32


def test_addresses_are_numbers_or_hexadecimal_text() -> None:
    assert Settings.of({"address": "0x45"}).address == Settings.of({"address": 69}).address == 0x45


def test_every_option_is_described_and_read() -> None:
    assert set(OPTIONS) == {*Settings.__dataclass_fields__}


# Reading


@pytest.mark.parametrize("cnvr_cleared_by", ["power", "bus"])
@pytest.mark.parametrize("cycle_factor", [0.92, 1.0, 1.1])
@pytest.mark.parametrize("busy_s", [0.0, 200e-6])
def test_every_conversion_once_and_dated_to_its_middle(
    cnvr_cleared_by: str, cycle_factor: float, busy_s: float
) -> None:
    """Whatever the chip's clock, whichever register clears CNVR, and when sleeps end late."""
    late = random.Random(1)
    clock = VirtualClock(overshoot=(lambda: late.expovariate(1 / busy_s)) if busy_s else (lambda: 0.0))
    wave = Periodic((0.017, 2.0), (0.033, 6.0, 9.0))
    chip = SimulatedIna219(wave, clock, cycle_factor=cycle_factor, cnvr_cleared_by=cnvr_cleared_by)
    sensor = _sensor(chip)
    for _ in range(50):
        sensor.read(1.0)
    before = chip.reads
    samples = [sensor.read(1.0) for _ in range(500)]
    assert not any(s.stale or s.overflow for s in samples)
    assert (chip.reads - before) / 500 < 5  # it sleeps until a value is due
    numbers = []
    for sample in samples:
        middles = (sample.t_ns / 1e9 - chip._started_s - chip.shunt_s / 2) / chip.cycle_s
        numbers.append(round(middles))
        assert abs(middles - round(middles)) * chip.cycle_s < 1e-3
    assert numbers == list(range(numbers[0], numbers[0] + 500))
    assert abs(_integral_error(samples, wave)) < 0.001


@pytest.mark.parametrize(
    "wave",
    [
        constant(3.3),
        Periodic((0.005, 2.0), (0.005, 6.0)),
        Periodic((0.5, 2.0), (0.5, 6.0)),
        Periodic((0.1, 1.5, 9.0)),
        Periodic((0.9, 2.0), (0.1, 10.0)),
        Periodic((0.099, 3.0), (0.001, 14.0)),
    ],
    ids=["constant", "square 10 ms", "square 1 s", "ramp", "bursts", "spikes of 1 ms"],
)
def test_energy_of_known_waveforms(wave: Periodic) -> None:
    clock = VirtualClock()
    sensor = _sensor(SimulatedIna219(wave, clock))
    samples = [sensor.read(1.0) for _ in range(600)]
    assert abs(_integral_error(samples, wave)) < 0.005


def test_a_value_that_was_missed_is_missing_and_the_next_is_dated_right() -> None:
    """A board too busy to read for 30 ms at a time: gaps are not hidden, and no stamp moves to where it was not converted."""
    clock = VirtualClock()
    chip = SimulatedIna219(constant(5.0), clock)
    sensor = _sensor(chip)
    samples = []
    for n in range(200):
        if n % 10 == 0:
            clock.sleep(0.030 + n * 1e-5)
        samples.append(sensor.read(1.0))
    middles = [(s.t_ns / 1e9 - chip._started_s - chip.shunt_s / 2) / chip.cycle_s for s in samples]
    assert max(abs(m - round(m)) for m in middles) * chip.cycle_s < 2e-3
    steps = [round(b) - round(a) for a, b in itertools.pairwise(middles)]
    assert set(steps) <= {1, 2, 3} and steps.count(1) < 199


def test_negative_and_positive_currents_keep_their_sign() -> None:
    wave = Sequence((0.5, constant(2.0)), (1.0, constant(-1.0)))
    sensor = _sensor(SimulatedIna219(wave, VirtualClock()))
    powers = [sensor.read(1.0).power_uw for _ in range(60)]
    assert powers[0] == pytest.approx(2e6, rel=0.01) and powers[-1] == pytest.approx(-1e6, rel=0.01)


def test_a_current_beyond_the_range_is_marked() -> None:
    """The converter stops at the end of its range, without OVF: the flag is of the arithmetic only (8.6.3.2)."""
    wave = Sequence((0.2, constant(1.0)), (0.2, constant(3.0)), (0.2, constant(1.0)))
    sensor = _sensor(SimulatedIna219(wave, VirtualClock()), max_current_a=0.4)
    samples = [sensor.read(1.0) for _ in range(32)]
    over = [s for s in samples if s.overflow]
    assert len(over) in (10, 11, 12, 13) and not samples[0].overflow and not samples[-1].overflow
    assert max(s.power_uw for s in samples) == pytest.approx(2e6)


def test_ovf_is_marked() -> None:
    settings = Settings.of({})
    assert settings.overflow(100, 1250 << 3 | 0b01) and not settings.overflow(100, 1250 << 3 | 0b10)
    assert settings.overflow(0x8300, 1250 << 3)  # -32000: the other end
    assert settings.overflow(100, 4000 << 3)  # 16 V in the range of 16 V


def test_stale_values_are_marked_and_then_it_is_a_fault() -> None:
    clock = VirtualClock()
    chip = SimulatedIna219(constant(5.0), clock)
    sensor = _sensor(chip)
    assert not sensor.read(1.0).stale
    chip.cycle_factor = 1e6  # the converter hangs: registers and flag stay as they are
    chip._seen = chip._cycle()
    samples = []
    with pytest.raises(SensorFault, match="no new value for 1 s"):
        samples.extend(sensor.read(1.0) for _ in range(1000))
        while True:
            samples.append(sensor.read(1.0))
    assert 10 < len(samples) < 30 and all(s.stale for s in samples)


def test_a_flag_that_is_always_set_does_not_make_it_read_faster() -> None:
    """i2c-stub's is; a chip's might be: the pace is then that of the configuration."""
    clock = VirtualClock()
    chip = SimulatedIna219(constant(5.0), clock)
    answer = chip.read_word
    chip.read_word = lambda register: answer(register) | (2 if register == BUS else 0)  # type: ignore[method-assign]
    sensor = _sensor(chip)
    for _ in range(200):
        sensor.read(1.0)
    begun = clock.now_s
    for _ in range(100):
        sensor.read(1.0)
    assert (clock.now_s - begun) / 100 == pytest.approx(chip.cycle_s, rel=0.01)


def test_timeout_is_kept() -> None:
    clock = VirtualClock()
    chip = SimulatedIna219(constant(5.0), clock)
    sensor = _sensor(chip, shunt_samples=128, bus_samples=128)
    sensor.read(1.0)
    begun = clock.now_s
    with pytest.raises(SensorFault, match=r"no new value for 0\.05 s"):
        sensor.read(0.05)
    assert clock.now_s - begun < 0.07


def test_one_disturbance_is_nothing_and_an_unplugged_chip_is_a_fault() -> None:
    clock = VirtualClock()
    chip = SimulatedIna219(constant(5.0), clock)
    sensor = _sensor(chip)
    codes = iter([errno.EIO])
    chip.fault = lambda what, register: next(codes, 0)
    assert sensor.read(1.0).power_uw == pytest.approx(5e6, rel=0.01)
    chip.fault = lambda what, register: errno.ENXIO
    with pytest.raises(SensorFault, match="answers no more"):
        sensor.read(1.0)


def test_a_chip_that_lost_its_supply_or_was_reconfigured() -> None:
    clock = VirtualClock()
    chip = SimulatedIna219(constant(5.0), clock)
    sensor = _sensor(chip)
    sensor.read(1.0)
    chip.lose_power()
    with pytest.raises(SensorFault, match="0x399f and was set to 0x1c6f: the chip lost its supply, or another program"):
        for _ in range(200):
            sensor.read(1.0)


def test_it_is_left_as_it_was_found() -> None:
    chip = SimulatedIna219(constant(5.0), VirtualClock())
    chip.write_word(CALIBRATION, 0x1000)
    sensor = _sensor(chip)
    assert chip.read_word(CALIBRATION) == 0x1062
    sensor.close()
    assert (chip.read_word(CONFIGURATION), chip.read_word(CALIBRATION)) == (0x399F, 0x1000)
    assert chip.closed


# What cannot be a board behind the meter


@pytest.mark.parametrize(
    ("watts", "volts", "options", "says"),
    [
        (0.0, 0.0, {}, "the supply reads 0.00 V"),
        (-2.0, 5.0, {}, "backwards (-40.0 mV across the shunt): swap"),
        (10.0, 19.0, {}, "above 16 V: set bus_range_v: 32"),
        (10.0, 5.0, {"max_current_a": 1}, "beyond the range already (160 mV across the shunt, 1 A at most)"),
    ],
)
def test_wiring_that_cannot_be_right(watts: float, volts: float, options: dict, says: str) -> None:
    wave = constant(watts)
    chip = SimulatedIna219(wave, VirtualClock(), supply_v=volts or 1e-9)
    with pytest.raises(AgentError) as refused:
        _sensor(chip, **options)
    assert says in str(refused.value)


def test_19_volts_in_the_wide_range() -> None:
    sensor = _sensor(SimulatedIna219(constant(19.0), VirtualClock(), supply_v=19.0), bus_range_v=32)
    assert sensor.read(1.0).power_uw == pytest.approx(19e6, rel=0.005)


# Chips that are none


class _Other:
    """Another chip: registers that answer, and no writing to it at all."""

    def __init__(self, words: dict[int, int], missing: bool = False) -> None:
        self._words, self._missing = words, missing

    def read_word(self, register: int) -> int:
        if self._missing and register not in self._words:
            raise OSError(errno.EREMOTEIO, "Remote I/O error")
        return self._words.get(register, 0)

    def write_word(self, register: int, value: int) -> None:
        raise AssertionError("another chip was written to")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({0: 0x4127, 0xFE: 0x5449, 0xFF: 0x2260}, "is an INA226, INA230 or INA231, not an INA219"),
        ({0: 0x7127, 0xFE: 0x5449, 0xFF: 0x3220}, "is an INA3221, not"),
        ({0: 0x0000, 0x3E: 0x5449, 0x3F: 0x2381}, "is an INA237 or INA238, not"),
        ({0: 0x4127}, "bits 14 and 15"),
        (dict.fromkeys(range(256), 0xFFFF), "bits 14 and 15"),
        ({0: 0x1104, 5: 0x0101}, "bit 0 of an INA219's calibration reads 0"),
        ({0: 0x1104, 4: 0x0010}, "without calibration has no current"),
        ({0: 0x399F, 2: 0x0004}, "bit 2 of an INA219's bus voltage"),
    ],
)
@pytest.mark.parametrize("missing", [False, True], ids=["zeros elsewhere", "no answer elsewhere"])
def test_another_chip_is_named_and_not_touched(words: dict[int, int], says: str, missing: bool) -> None:
    full = {**dict.fromkeys(range(6), 0), **words}
    with pytest.raises(AgentError) as refused:
        Ina219(_Other(full, missing), Settings.of({}), clock=lambda: 0, sleep=lambda s: None)
    assert says in str(refused.value)


def test_registers_that_do_not_keep_what_is_written() -> None:
    chip = SimulatedIna219(constant(5.0), VirtualClock())
    chip.write_word = lambda register, value: None  # type: ignore[method-assign]
    with pytest.raises(AgentError, match="register 0 was set to 0x1c6f and reads 0x399f"):
        _sensor(chip)


# In real time


def test_through_the_sampler_in_real_time() -> None:
    chip = SimulatedIna219(Periodic((0.02, 2.0), (0.02, 6.0)), RealClock())
    sensor = Ina219(chip, Settings.of({}))
    with Sampler(sensor) as sampler:
        assert sampler.wait_for(0)
        chip.clock.sleep(1.0)
        trace = sampler.stop()
    assert trace.ended_reason is None and trace.stale == trace.overflows == 0
    cycles = (trace.t_ns[-1] - trace.t_ns[0]) / 17.552e6
    assert cycles > 40 and len(trace.t_ns) + trace.dropped == pytest.approx(cycles + 1, abs=2)
    assert all(b > a for a, b in itertools.pairwise(trace.t_ns))
    assert sum(trace.power_uw) / len(trace.power_uw) == pytest.approx(4e6, rel=0.15)
    assert trace.info.scope == "as-wired" and trace.info.interval_s == pytest.approx(0.017552)
