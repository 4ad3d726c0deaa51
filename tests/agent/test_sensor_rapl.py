"""RAPL's counters, on copies of the powercap tree of a machine."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, rapl

from .test_sensor_i2c import _nobody

RANGE_UJ = 262_143_328_850


def _zone(root: Path, path: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    directory = root / "sys" / "class" / "powercap" / path
    directory.mkdir(parents=True)
    (directory / "name").write_text(name + "\n")
    (directory / "energy_uj").write_text(f"{energy_uj}\n")
    (directory / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return directory / "energy_uj"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two sockets, memory and cores counted too, and the second way to the first package that must not be counted twice."""
    _zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    _zone(tmp_path, "intel-rapl:0:0", "core", 400_000)
    _zone(tmp_path, "intel-rapl:0:1", "dram", 100_000)
    _zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    _zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    (tmp_path / "sys/class/powercap/intel-rapl").mkdir()
    return tmp_path


class _Load:
    """Virtual time in which sleeping makes the counters grow: joules are watts times seconds, exactly."""

    def __init__(self, files: dict[Path, float]) -> None:
        self.files, self.now_ns = files, 0

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
        for file, watts in self.files.items():
            value = (int(file.read_text()) + round(watts * seconds * 1e6)) % RANGE_UJ
            file.write_text(f"{value}\n")


def _with(opened: rapl._Rapl, load: _Load) -> rapl._Rapl:
    return rapl._Rapl(opened._zones, opened.info, clock=load.clock, sleep=load.sleep)


def _file(machine: Path, zone: str) -> Path:
    return machine / "sys/class/powercap" / zone / "energy_uj"


def test_packages_are_added_up_once(machine: Path) -> None:
    opened = rapl.open({"interval_s": 0.1}, machine)
    sensor = _with(opened, _Load({_file(machine, "intel-rapl:0"): 12.5, _file(machine, "intel-rapl:1"): 7.5}))
    samples = [sensor.read(1.0) for _ in range(3)]
    assert [s.power_uw for s in samples] == [20_000_000] * 3
    assert samples[0].rails_mw == {"package-0": 12_500, "package-1": 7_500}
    assert [s.t_ns for s in samples] == [50_000_000, 150_000_000, 250_000_000]  # the middle of what each one covers
    assert sensor.info.scope == "cpu-package"
    assert any("memory has a counter of its own" in n for n in sensor.info.notes)
    opened.close()


def test_memory_when_asked(machine: Path) -> None:
    opened = rapl.open({"domain": "package+dram"}, machine)
    assert opened.info.description == "RAPL: package-0, dram of package 0, package-1"
    opened.close()


def test_a_counter_that_begins_again(machine: Path) -> None:
    file = _file(machine, "intel-rapl:0")
    file.write_text(f"{RANGE_UJ - 500_000}\n")
    opened = rapl.open({"interval_s": 0.1}, machine)
    sensor = _with(opened, _Load({file: 10.0}))
    assert [sensor.read(1.0).power_uw for _ in range(2)] == pytest.approx([10e6, 10e6])
    opened.close()


def test_a_counter_that_stands_still_is_stale(machine: Path) -> None:
    opened = rapl.open({}, machine)
    assert _with(opened, _Load({})).read(1.0).stale
    opened.close()


def test_a_counter_that_was_reset(machine: Path) -> None:
    opened = rapl.open({}, machine)
    sensor = _with(opened, _Load({}))
    _file(machine, "intel-rapl:1").write_text("0\n")
    with pytest.raises(SensorFault, match="jumped"):
        sensor.read(1.0)
    opened.close()


def test_a_counter_that_is_gone(machine: Path) -> None:
    sensor = rapl.open({}, machine)
    sensor.close()
    sensor.close()
    with pytest.raises(SensorFault, match="closed"):
        sensor.read(1.0)


def test_a_late_reading_covers_the_whole_gap(machine: Path) -> None:
    """The counter has what happened meanwhile: nothing of it is lost, whenever it is read."""
    load = _Load({_file(machine, "intel-rapl:0"): 10.0})
    opened = rapl.open({"interval_s": 0.1}, machine)
    sensor = _with(opened, load)
    sensor.read(1.0)
    load.sleep(0.97)
    sample = sensor.read(1.0)
    assert sample.power_uw == pytest.approx(10e6) and sample.t_ns > 500_000_000
    following = sensor.read(1.0)
    assert following.power_uw == pytest.approx(10e6) and following.t_ns - sample.t_ns > 100_000_000
    opened.close()


def test_in_real_time(machine: Path) -> None:
    sensor = rapl.open({"interval_s": 0.02}, machine)
    samples = [sensor.read(1.0) for _ in range(4)]
    assert all(0 < b.t_ns - a.t_ns < 2e9 for a, b in itertools.pairwise(samples))
    sensor.close()


def test_no_rapl(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"there is no RAPL here .+ not an x86 CPU, or a virtual machine"):
        rapl.open({}, tmp_path)
    assert rapl.probe(tmp_path) is None and rapl.hint(tmp_path) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"domain": "psys"}, "this CPU has no psys: it has package-0, core of package 0"),
        ({"domain": "gpu"}, "one of package, package+dram, psys"),
        ({"interval_s": 0.001}, "interval_s must be a number from 0.01 to 10"),
        ({"domains": 1}, "no option 'domains' (did you mean domain?)"),
    ],
)
def test_refused_options(options: dict, says: str, machine: Path) -> None:
    with pytest.raises(AgentError) as refused:
        rapl.open(options, machine)
    assert says in str(refused.value)


def test_psys_is_the_board(machine: Path) -> None:
    _zone(machine, "intel-rapl:2", "psys", 5)
    sensor = rapl.open({"domain": "psys"}, machine)
    assert sensor.info.scope == "board" and "psys" in sensor.info.description
    sensor.close()


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A machine whose counter only root may read, in directories that anybody may enter."""
    root = Path(tempfile.mkdtemp())
    file = _zone(root, "intel-rapl:0", "package-0", 1)
    for directory in [root, *(d for d in root.rglob("*") if d.is_dir())]:
        directory.chmod(0o755)
    file.chmod(0o400 if os.geteuid() == 0 else 0o000)
    yield root
    shutil.rmtree(root)


def test_only_root_may_read_it(guarded: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with _nobody():
        with pytest.raises(AgentError, match=r"only root may read RAPL's counters.+sudo chmod a\+r .+energy_uj"):
            rapl.open({}, guarded)
        assert rapl.probe(guarded) is None
        assert "only root" in str(rapl.hint(guarded))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_probe(machine: Path) -> None:
    assert rapl.probe(machine) == (
        "RAPL counts the energy of package-0, core of package 0, dram of package 0, package-1"
    )
