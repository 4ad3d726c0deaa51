"""What is read of a board, from copies of other boards' files and tools that answer as theirs do."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from edgecompress_agent import conditions
from edgecompress_agent.wire import Conditions


def _board(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


PI = {
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
    "processor\t: 1\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\nModel\t: Raspberry Pi 4 Model B\n",
    "proc/meminfo": "MemTotal: 3884 kB\nMemAvailable:    3000 kB\nSwapTotal:   100 kB\nSwapFree:    60 kB\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/stat": "cpu  100 10 30 5000 20 5 15 7 0 0\ncpu0 1 2 3 4\n",
    "proc/sys/kernel/random/boot_id": "5b8ad1c3-0a5a-4c8f-9d1b-8b8f0b6f3d10\n",
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu10/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu10/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq": "1800000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "-5000\n",
    "sys/class/thermal/thermal_zone2/type": "PMIC-Die\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "2\n",
}


def _tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


def test_a_raspberry_pi(tmp_path: Path, tools: Path) -> None:
    _tool(tools, "vcgencmd", '[ "$1" = get_throttled ] && echo throttled=0x50005')
    read = conditions.read("before", _board(tmp_path / "pi", PI))
    assert read.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert read.boot_id == "5b8ad1c3-0a5a-4c8f-9d1b-8b8f0b6f3d10"
    assert read.cpu_model == "implementer 0x41 part 0xd08"
    assert read.os == "Debian GNU/Linux 12 (bookworm)"
    assert read.governors == ("ondemand", "performance", "powersave")  # by number, not by name
    assert read.cpu_mhz == (600.0, 1800.0, 1500.0)
    assert read.temperatures_c == {"cpu-thermal": 48.312, "cpu-thermal (thermal_zone1)": -5.0}
    assert read.throttled == "0x50005"
    assert read.throttle_counts == {"oc1_event_cnt": 2}
    assert (read.mem_available_bytes, read.swap_used_bytes) == (3000 * 1024, 40 * 1024)
    assert read.cpu_busy_s == pytest.approx((100 + 10 + 30 + 5 + 15 + 7) / os.sysconf("SC_CLK_TCK"))


def test_a_jetson_tells_its_mode(tmp_path: Path, tools: Path) -> None:
    _tool(tools, "nvpmodel", 'echo "NV Power Mode: MAXN"; echo 0')
    assert conditions.read("before", tmp_path).power_mode == "MAXN"


@pytest.mark.parametrize(
    "script",
    ["echo 'error=1 error_msg=\"Command not registered\"'", "exit 1", "echo throttled=0x5; exit 255", "printf '\\377'"],
)
def test_a_tool_without_an_answer_is_none(tmp_path: Path, tools: Path, script: str) -> None:
    _tool(tools, "vcgencmd", script)
    assert conditions.read("before", tmp_path).throttled is None


def test_nothing_readable_is_none_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    read = dataclasses.asdict(conditions.read("before", tmp_path))
    unknown = (
        "board", "governors", "cpu_mhz", "temperatures_c", "throttled", "throttle_counts", "mem_available_bytes",
        "swap_used_bytes", "power_mode", "cpu_busy_s",
    )  # fmt: skip
    assert {name: read[name] for name in unknown} == dict.fromkeys(unknown)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine() -> None:
    read = conditions.read("hello")
    assert read.cpu_model and read.os and read.machine
    assert read.mem_available_bytes and read.mem_available_bytes > 1 << 20
    assert read.cpu_busy_s and read.cpu_busy_s > 1


def _pair(tmp_path: Path, **changed: object) -> tuple[Conditions, Conditions]:
    first = dataclasses.replace(
        conditions.read("warm", _board(tmp_path, PI)),
        monotonic_ns=0, throttled="0x0", cpus_online=4, cpu_busy_s=100.0, worker_cpu_s=1.0,
    )  # fmt: skip
    return first, dataclasses.replace(first, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"governors": ("performance",) * 3}, "governor changed"),
        ({"throttled": "0x4"}, "throttled or lacked voltage"),
        ({"throttled": "0x50000"}, "throttled or lacked voltage"),
        ({"throttle_counts": {"oc1_event_cnt": 3}}, "oc1_event_cnt rose"),
        ({"swap_used_bytes": 50 << 20}, "began to swap"),
    ],
)
def test_changes_that_make_doubtful(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    found = conditions.changes(*_pair(tmp_path, **changed))
    assert len(found) == bool(said)
    assert all(said in sentence for sentence in found)


def test_throttling_before_the_measurement_only_is_no_change(tmp_path: Path) -> None:
    before, after = _pair(tmp_path)
    earlier = dataclasses.replace(before, throttled="0x50000")
    assert conditions.changes(earlier, dataclasses.replace(after, throttled="0x50000")) == ()


@pytest.mark.parametrize(
    ("busy", "own", "said"), [(110.0, 11.0, False), (110.4, 11.0, False), (115.0, 11.0, True), (110.0, 6.0, True)]
)
def test_crowding_counts_others_only(tmp_path: Path, busy: float, own: float, said: bool) -> None:
    """10 s of timing: of `busy - 100` CPU seconds, `own - 1` were the worker's."""
    pair = _pair(tmp_path, monotonic_ns=10**10, cpu_busy_s=busy, worker_cpu_s=own)
    assert bool(conditions.crowding(*pair)) == said
