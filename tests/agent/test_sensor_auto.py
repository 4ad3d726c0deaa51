"""What `auto` chooses, on machines that are copies of sysfs trees, and what it says of it."""

from __future__ import annotations

import fcntl
import functools
from pathlib import Path

import pytest
from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import auto, hwmon, ina219, rapl

from .simulated_ina219 import RealClock, SimulatedIna219, constant
from .test_sensor_hwmon import INA219, _model, _tree, _triple
from .test_sensor_i2c import I2C, STUB, Kernel
from .test_sensor_rapl import _zone


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without anything: no sysfs, no devices, no tools."""
    for module in (ina219, hwmon, rapl):
        for name in ("open", "probe", "hint"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, functools.partial(getattr(module, name), filesystem=tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def _wire_ina219(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "dev").mkdir()
    (machine / "dev" / "i2c-1").touch()
    kernel = Kernel({0x40: SimulatedIna219(constant(5.0), RealClock())}, STUB | I2C)
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)


def test_nothing(machine: Path) -> None:
    with pytest.raises(
        AgentError, match=r"nothing that reads power was found here \(looked for ina219, hwmon, .+serial_csv or um25c"
    ):
        auto.open({})
    assert auto.probe() is None


def test_a_workstation(machine: Path) -> None:
    _zone(machine, "intel-rapl:0", "package-0", 5)
    sensor = sensors.open_sensor("auto", {})
    assert sensor.info.name == "rapl"
    assert sensor.info.chosen_because == (
        "RAPL counts the energy of package-0; no meter and no monitor of the board was found, but the CPU counts its own energy"
    )
    assert any(n.startswith("better: an INA219 or a USB meter") for n in sensor.info.notes)
    assert sensor.read(1.0).stale  # the copy's counter stands still
    sensor.close()


def test_a_jetson(machine: Path) -> None:
    _model(machine, "NVIDIA Jetson Orin Nano")
    _tree(machine, _triple(("VDD_IN", 5060, 1000, 5000)))
    _zone(machine, "intel-rapl:0", "package-0", 5)
    sensor = auto.open({})
    assert (sensor.info.name, sensor.info.scope) == ("hwmon", "module")
    assert "kernel drivers read ina3221 at 1-0040" in sensor.info.chosen_because
    sensor.close()
    assert auto.probe() == "hwmon: kernel drivers read ina3221 at 1-0040"


def test_a_meter_that_somebody_wired_comes_first(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _model(machine, "NVIDIA Jetson Orin Nano")
    _tree(machine, _triple(("VDD_IN", 5060, 1000, 5000)))
    _wire_ina219(machine, monkeypatch)
    sensor = auto.open({"ina219": {"shunt_ohm": 0.05, "max_current_a": 4}})
    assert sensor.info.name == "ina219" and "0.05 ohm, up to 4 A" in sensor.info.notes[0]
    assert sensor.read(1.0).power_uw == pytest.approx(10e6, rel=0.01)  # the simulated shunt is 0.1 ohm
    sensor.close()


def test_one_that_does_not_open_is_passed_over_with_its_reason(machine: Path) -> None:
    _tree(machine, {**INA219, "shunt_resistor": "10000"})
    _zone(machine, "intel-rapl:0", "package-0", 5)
    sensor = auto.open({})
    assert sensor.info.name == "rapl"
    passed = [
        n for n in sensor.info.notes if n.startswith("passed over: hwmon: kernel drivers read ina219 at 1-0040, but")
    ]
    assert len(passed) == 1 and "default of 10 milliohms" in passed[0]
    sensor.close()
    chosen = auto.open({"hwmon": {"shunt_ohm": 0.1}})
    assert chosen.info.name == "hwmon"
    chosen.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shunt_ohm": 0.1}, "sensor auto has no option 'shunt_ohm'"),
        ({"ina219": {"shunt": 1}}, "sensor ina219 has no option 'shunt'"),
        ({"ina219": 0.1}, "option ina219 must be {option: value}"),
    ],
)
def test_refused_options(options: dict, says: str, machine: Path) -> None:
    with pytest.raises(AgentError) as refused:
        auto.open(options)
    assert says in str(refused.value)


def test_candidates_are_sensors_that_can_be_looked_for() -> None:
    for candidate in auto.CANDIDATES:
        assert candidate.name in sensors.names()
        assert callable(sensors.find(candidate.name).probe)
