"""The monitors that kernel drivers read, on copies of the sysfs trees of Jetsons (JetPack 4, 5, 6) and of breakouts."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, hwmon

Files = dict[str, str]


def _tree(root: Path, files: Files, device: str = "1-0040", number: int = 3) -> Path:
    """One hwmonN under its device on the bus, as the kernel links them."""
    on_bus = root / "sys" / "bus" / "i2c" / "devices" / device
    directory = on_bus / "hwmon" / f"hwmon{number}"
    directory.mkdir(parents=True)
    (directory / "device").symlink_to(on_bus)
    for name, content in files.items():
        (directory / name).write_text(content + "\n")
    (root / "sys" / "class" / "hwmon").mkdir(parents=True, exist_ok=True)
    (root / "sys" / "class" / "hwmon" / f"hwmon{number}").symlink_to(directory)
    return directory


def _model(root: Path, model: str) -> None:
    (root / "proc" / "device-tree").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "device-tree" / "model").write_text(model + "\0")


def _triple(*rails: tuple[str, int, int, int]) -> Files:
    """(label, mV, mA, µohm) of up to three channels, and the sums that the driver shows besides."""
    files = {
        "name": "ina3221",
        "update_interval": "7",
        "in7_label": "sum of shunt voltages",
        "in7_input": "99",
        "curr4_input": "9",
    }
    for k, (label, mv, ma, uohm) in enumerate(rails, 1):
        files |= {
            f"in{k}_label": label,
            f"in{k}_input": str(mv),
            f"curr{k}_input": str(ma),
            f"shunt{k}_resistor": str(uohm),
        }
        files |= {f"in{k}_enable": "1", f"in{k + 3}_input": "12"}
    return files


INA219 = {
    "name": "ina219",
    "in0_input": "60",
    "in1_input": "5008",
    "curr1_input": "600",
    "power1_input": "3000000",
    "shunt_resistor": "100000",
}


# Jetsons


def test_orin_nano_jetpack_6(tmp_path: Path) -> None:
    _model(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit")
    _tree(
        tmp_path,
        _triple(("VDD_IN", 5060, 1000, 5000), ("VDD_CPU_GPU_CV", 5060, 200, 5000), ("VDD_SOC", 5060, 300, 5000)),
    )
    sensor = hwmon.open({}, tmp_path)
    assert sensor.info.scope == "module"
    sample = sensor.read(1.0)
    assert sample.power_uw == 5060 * 1000  # VDD_IN alone: the others are in it
    assert sample.rails_mw == {"VDD_IN": 5060, "VDD_CPU_GPU_CV": 1012, "VDD_SOC": 1518}
    assert sensor.info.resolution_w == pytest.approx(40e-6 / 0.005 * 5.06)  # 40 µV over 5 milliohms are 8 mA
    assert sensor.info.offset_error_w == pytest.approx(80e-6 / 0.005 * 5.06)
    sensor.close()


def test_agx_orin_never_adds_vddq(tmp_path: Path) -> None:
    """Two monitors, a channel that is not connected and errors when read, and 0.4 W a step (40 µV over 2 milliohms at 20 V)."""
    _model(tmp_path, "NVIDIA Jetson AGX Orin Developer Kit")
    first = _triple(
        ("VDD_GPU_SOC", 20000, 200, 2000), ("VDD_CPU_CV", 20000, -20, 2000), ("VIN_SYS_5V0", 5000, 800, 2000)
    )
    second = _triple(("NC", 0, 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 400, 2000), ("NC", 0, 0, 0))
    for dead in ("in1_input", "curr1_input"):
        second[dead] = "No data available"
    _tree(tmp_path, first, "1-0040", 2)
    _tree(tmp_path, second, "1-0041", 5)
    sensor = hwmon.open({}, tmp_path)
    sample = sensor.read(1.0)
    assert sample.power_uw == (20000 * 200 - 20000 * 20 + 5000 * 800)  # the sign stays
    assert sample.rails_mw is not None and sample.rails_mw["VDD_CPU_CV"] == -400
    assert set(sample.rails_mw) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert sensor.info.resolution_w == pytest.approx(0.4)
    sensor.close()


def _jetpack4(root: Path, rails: tuple[tuple[str, int, int], ...], device: str = "6-0040") -> Path:
    directory = root / "sys/bus/i2c/drivers/ina3221x" / device / "iio:device0"
    directory.mkdir(parents=True)
    for k, (label, mv, ma) in enumerate(rails):
        for name, value in (
            (f"rail_name_{k}", label),
            (f"in_voltage{k}_input", mv),
            (f"in_current{k}_input", ma),
            (f"in_power{k}_input", mv * ma // 1000),
        ):
            (directory / name).write_text(f"{value}\n")
    return directory


def test_nano_jetpack_4(tmp_path: Path) -> None:
    _model(tmp_path, "NVIDIA Jetson Nano Developer Kit")
    _jetpack4(tmp_path, (("POM_5V_IN", 5032, 400), ("POM_5V_GPU", 5032, 20), ("POM_5V_CPU", 5032, 80)))
    sensor = hwmon.open({}, tmp_path)
    sample = sensor.read(1.0)
    assert sample.power_uw == 2_012_000 and sensor.info.scope == "board"
    assert any("reckon with a shunt of 0.005 ohm" in n for n in sensor.info.notes)
    sensor.close()


def test_agx_xavier_jetpack_4_adds_six_rails(tmp_path: Path) -> None:
    _model(tmp_path, "Jetson-AGX")
    _jetpack4(tmp_path, (("GPU", 19000, 50), ("CPU", 19000, 40), ("SOC", 19000, 60)), "1-0040")
    _jetpack4(tmp_path, (("CV", 19000, 0), ("VDDRQ", 19000, 10), ("SYS5V", 5000, 300)), "1-0041")
    sensor = hwmon.open({}, tmp_path)
    assert sensor.read(1.0).power_uw == (950 + 760 + 1140 + 0 + 190 + 1500) * 1000
    sensor.close()


def test_rails_of_an_unknown_carrier_must_be_named(tmp_path: Path) -> None:
    _model(tmp_path, "ACME board 7")
    _tree(tmp_path, _triple(("MAIN", 12000, 100, 10000), ("FAN", 12000, 10, 10000), ("MAIN", 5000, 20, 10000)))
    with pytest.raises(AgentError, match="Say which rails to add up: `rails`"):
        hwmon.open({}, tmp_path)
    with pytest.raises(AgentError, match=r"rails must be a list of some of MAIN \(1-0040\), FAN"):
        hwmon.open({"rails": ["MAIN"]}, tmp_path)


def test_named_rails(tmp_path: Path) -> None:
    _tree(tmp_path, _triple(("MAIN", 12000, 100, 10000), ("FAN", 12000, 10, 10000)))
    sensor = hwmon.open({"rails": ["FAN", "MAIN"]}, tmp_path)
    assert sensor.read(1.0).power_uw == 12000 * 110 and sensor.info.scope == "as-wired"
    sensor.close()


def test_the_shunt_of_an_ina3221_is_not_an_option(tmp_path: Path) -> None:
    _model(tmp_path, "NVIDIA Jetson Orin Nano")
    _tree(tmp_path, _triple(("VDD_IN", 5060, 1000, 5000)))
    with pytest.raises(AgentError, match="those of an INA3221 are in the device tree"):
        hwmon.open({"shunt_ohm": 0.1}, tmp_path)


# Chips with one shunt


def test_ina219_by_its_driver(tmp_path: Path) -> None:
    """Voltage times current, which keep the sign and are finer than power1_input (20 mW a step)."""
    _tree(tmp_path, INA219)
    sensor = hwmon.open({"shunt_ohm": 0.1}, tmp_path)
    assert sensor.read(1.0).power_uw == 5008 * 600
    assert sensor.info.scope == "as-wired" and sensor.info.resolution_w == pytest.approx(1e-3 * 5.008, rel=0.01)
    assert any("sensor ina219 sees" in n.lower() for n in sensor.info.notes)
    sensor.close()


def test_the_drivers_default_shunt_is_refused_until_somebody_says_what_is_mounted(tmp_path: Path) -> None:
    """A board with 0.1 ohm reads ten times its current: 600 mA come as 6000."""
    _tree(tmp_path, {**INA219, "shunt_resistor": "10000", "curr1_input": "6000"})
    with pytest.raises(AgentError, match=r"default of 10 milliohms, which nobody set.+ten times too large"):
        hwmon.open({}, tmp_path)
    corrected = hwmon.open({"shunt_ohm": 0.1}, tmp_path)
    assert corrected.read(1.0).power_uw == pytest.approx(5008 * 600)
    assert any("0.01 ohm, corrected to the profile's 0.1 ohm" in n for n in corrected.info.notes)
    corrected.close()
    as_it_is = hwmon.open({"shunt_ohm": 0.01}, tmp_path)
    assert as_it_is.read(1.0).power_uw == 5008 * 6000
    as_it_is.close()


def test_a_default_that_the_device_tree_confirms_is_believed(tmp_path: Path) -> None:
    directory = _tree(tmp_path, {**INA219, "shunt_resistor": "10000"})
    node = (directory / "device").resolve() / "of_node"
    node.mkdir()
    (node / "shunt-resistor").write_bytes((10000).to_bytes(4, "big"))
    sensor = hwmon.open({}, tmp_path)
    assert sensor.read(1.0).power_uw == 5008 * 600
    sensor.close()


def test_the_end_of_the_range_is_marked(tmp_path: Path) -> None:
    directory = _tree(tmp_path, INA219)
    sensor = hwmon.open({}, tmp_path)
    assert not sensor.read(1.0).overflow
    (directory / "curr1_input").write_text("3200\n")  # 0.32 V over 0.1 ohm: the driver ignores the chip's flags
    assert sensor.read(1.0).overflow
    sensor.close()


def test_ina226_is_read_no_faster_than_it_renews(tmp_path: Path) -> None:
    _tree(tmp_path, {**INA219, "name": "ina226", "update_interval": "35"})
    with pytest.raises(
        AgentError, match=r"interval_s is 0\.02, but the driver of ina226 at 1-0040 renews its values every 0\.035 s"
    ):
        hwmon.open({"interval_s": 0.02}, tmp_path)
    sensor = hwmon.open({}, tmp_path)
    assert sensor.info.interval_s == 0.035
    stamps = [sensor.read(1.0).t_ns for _ in range(5)]
    assert all(b > a for a, b in itertools.pairwise(stamps)) and stamps[-1] < time.monotonic_ns()
    stamps = _in_virtual_time(sensor, reads=5)
    assert [b - a for a, b in itertools.pairwise(stamps)] == [35_000_000] * 4
    sensor.close()


def test_ina238_gives_its_own_power(tmp_path: Path) -> None:
    """power1_input in µW, from 24 bits: finer than whole mA."""
    _tree(tmp_path, {**INA219, "name": "ina238", "shunt_resistor": "15000", "power1_input": "3004912"})
    sensor = hwmon.open({}, tmp_path)
    assert sensor.read(1.0).power_uw == 3_004_912
    assert sensor.info.resolution_w == pytest.approx(5e-6 / 0.015 * 5.008)
    sensor.close()


# Which one


def test_several_chips_need_a_choice(tmp_path: Path) -> None:
    _tree(tmp_path, INA219, "1-0040", 1)
    _tree(tmp_path, {**INA219, "name": "ina226", "in1_input": "12000"}, "1-0041", 2)
    with pytest.raises(AgentError, match=r"several chips: ina219 at 1-0040, ina226 at 1-0041. Say which one: `chip`"):
        hwmon.open({}, tmp_path)
    for chosen in ("ina226", "1-0041", "hwmon2"):
        sensor = hwmon.open({"chip": chosen}, tmp_path)
        assert sensor.read(1.0).power_uw == 12000 * 600
        sensor.close()
    with pytest.raises(AgentError, match="there is no chip 'ina260': here are ina219"):
        hwmon.open({"chip": "ina260"}, tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    _tree(tmp_path, {"name": "cpu_thermal", "temp1_input": "40000"})
    with pytest.raises(AgentError, match="no kernel driver reads a power monitor here"):
        hwmon.open({}, tmp_path)
    assert hwmon.probe(tmp_path) is None
    assert hwmon.probe(tmp_path / "no such root") is None


def test_probe_names_what_is_there(tmp_path: Path) -> None:
    _tree(tmp_path, INA219)
    assert hwmon.probe(tmp_path) == "kernel drivers read ina219 at 1-0040"


def test_nothing_connected(tmp_path: Path) -> None:
    _tree(tmp_path, {**INA219, "in1_input": "0", "curr1_input": "0"})
    with pytest.raises(AgentError, match=r"reads a supply of 0\.00 V: nothing is connected"):
        hwmon.open({}, tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shunt": 0.1}, "no option 'shunt' (did you mean shunt_ohm?)"),
        ({"shunt_ohm": "0.1"}, "shunt_ohm must be a number"),
        ({"interval_s": 0}, "interval_s must be a number"),
        ({"rails": ["VDD_IN"]}, "has one rail"),
        ({"chip": 3}, "chip must be text"),
    ],
)
def test_refused_options(options: dict, says: str, tmp_path: Path) -> None:
    _tree(tmp_path, INA219)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(AgentError) as refused:
        hwmon.open(options, tmp_path)
    assert says in str(refused.value)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


# Faults


@pytest.mark.parametrize("content", ["", "garbage\n", "12 13\n"])
def test_a_driver_that_answers_no_number(content: str, tmp_path: Path) -> None:
    directory = _tree(tmp_path, INA219)
    sensor = hwmon.open({}, tmp_path)
    sensor.read(1.0)
    (directory / "curr1_input").write_text(content)
    with pytest.raises(SensorFault, match="the driver cannot read ina219 any more: it answers no number"):
        sensor.read(1.0)
    sensor.close()


def test_reading_after_closing_is_a_fault(tmp_path: Path) -> None:
    _tree(tmp_path, INA219)
    sensor = hwmon.open({}, tmp_path)
    sensor.close()
    sensor.close()
    with pytest.raises(SensorFault, match="closed"):
        sensor.read(1.0)


def _in_virtual_time(opened: hwmon._Hwmon, *, reads: int, away_after: int | None = None) -> list[int]:
    """The stamps of readings on a clock of their own; away_after: so many, nobody reads for a second."""
    now, stamps = 0, list[int]()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += round(seconds * 1e9)

    sensor = hwmon._Hwmon(opened._rails, (0,), opened.info, 0.0, clock=lambda: now, sleep=sleep)
    for number in range(reads):
        if number == away_after:
            sleep(1.0)
        stamps.append(sensor.read(1.0).t_ns)
    return stamps


def test_the_pace_does_not_catch_up_in_a_rush(tmp_path: Path) -> None:
    _tree(tmp_path, INA219)
    opened = hwmon.open({"interval_s": 0.1}, tmp_path)
    stamps = _in_virtual_time(opened, reads=6, away_after=3)
    assert [round((b - a) / 1e8) for a, b in itertools.pairwise(stamps)] == [1, 1, 10, 1, 1]
    opened.close()
