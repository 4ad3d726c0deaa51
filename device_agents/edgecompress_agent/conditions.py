"""The state of the board: CPU, clocks, governors, temperatures, throttling, memory. Nothing here needs root or fails a job.

Sources: /proc, /sys (kernel ABI), `vcgencmd get_throttled` (Raspberry Pi), `nvpmodel -q` (Jetson). Whatever is not there, or
may not be read, is None.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from edgecompress_agent.wire import Conditions

_ABSENT_C = -200.0
"""Jetson's thermal zones answer -256 °C for a sensor that is switched off."""

INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "avx2", "i8mm", "asimddp")
"""The kernel's names of what makes int8 fast, the fastest first on each architecture; avx2 and plain NEON have no dot product."""


def read(phase: str, filesystem: Path = Path("/")) -> Conditions:
    """The conditions now. Takes some ms (up to 2 s where a firmware tool hangs): never inside a timed part.

    filesystem: where proc, sys and etc are (a copy of another board's can be read).
    """
    proc, sys = filesystem / "proc", filesystem / "sys"
    cpuinfo, meminfo = _text(proc / "cpuinfo") or "", _text(proc / "meminfo") or ""
    cpus = sorted(sys.glob("devices/system/cpu/cpu[0-9]*"), key=lambda p: int(p.name[3:]))
    swap_total, swap_free = _kib(meminfo, "SwapTotal"), _kib(meminfo, "SwapFree")
    governors = [_text(cpu / "cpufreq" / "scaling_governor") for cpu in cpus]
    return Conditions(
        phase=phase,
        monotonic_ns=time.monotonic_ns(),
        board=_text(proc / "device-tree" / "model") or _text(sys / "class" / "dmi" / "id" / "product_name"),
        cpu_model=_cpu_model(cpuinfo),
        cpus_online=os.cpu_count(),
        machine=platform.machine(),
        kernel=platform.release(),
        os=_os_name(filesystem),
        python=platform.python_version(),
        governors=tuple(g for g in governors if g) or None,
        cpu_mhz=_clocks(cpus, cpuinfo),
        temperatures_c=_temperatures(sys),
        throttled=_throttled(),
        throttle_counts=_throttle_counts(cpus, sys),
        load_1m=os.getloadavg()[0],
        mem_available_bytes=_kib(meminfo, "MemAvailable"),
        swap_used_bytes=None if swap_total is None or swap_free is None else swap_total - swap_free,
        power_mode=_power_mode(sys),
        cpu_busy_s=_busy(_text(proc / "stat") or ""),
        worker_cpu_s=time.process_time(),
        int8_instructions=_int8_instructions(cpuinfo),
        boot_id=_text(proc / "sys" / "kernel" / "random" / "boot_id"),
    )


def changes(before: Conditions, after: Conditions) -> Tuple[str, ...]:
    """Sentences on what happened to the board between two readings that makes the latencies doubtful."""
    found = []
    if before.governors != after.governors:
        found.append(f"the CPU governor changed during the measurement: {before.governors} to {after.governors}")
    now = int(after.throttled, 16) & 0xF if after.throttled else 0
    # the bits since boot tell of a throttling that began and ended between the two readings
    since_boot = int(after.throttled, 16) & ~int(before.throttled, 16) if before.throttled and after.throttled else 0
    if now or since_boot & 0xF0000:
        found.append(
            f"the board throttled or lacked voltage: get_throttled {before.throttled} before, {after.throttled} after"
        )
    counts = after.throttle_counts or {}
    risen = [n for n, c in sorted(counts.items()) if c > (before.throttle_counts or {}).get(n, c)]
    if risen:
        found.append(f"the CPU throttled during the measurement: {', '.join(risen)} rose")
    if (after.swap_used_bytes or 0) - (before.swap_used_bytes or 0) > 1 << 20:
        found.append("the board began to swap during the measurement")
    return tuple(found)


def crowding(start: Conditions, end: Conditions) -> Tuple[str, ...]:
    """A sentence when other processes took more than a tenth of a CPU between two readings of one process.

    The load average would not do: measurements, one after the other, make it themselves.
    """
    others = others_cpus(start, end)
    seconds = (end.monotonic_ns - start.monotonic_ns) / 1e9
    if others is None or others * seconds <= max(
        0.1 * seconds, 0.1
    ):  # the kernel counts in steps of 10 ms for each CPU
        return ()
    return (f"other processes used {others:.2f} of {start.cpus_online} CPUs during the timing",)


def others_cpus(start: Conditions, end: Conditions) -> Optional[float]:
    """How many CPUs other processes used between two readings of one process; None where the kernel does not tell."""
    if start.cpu_busy_s is None or end.cpu_busy_s is None or start.worker_cpu_s is None or end.worker_cpu_s is None:
        return None
    seconds = (end.monotonic_ns - start.monotonic_ns) / 1e9
    return ((end.cpu_busy_s - start.cpu_busy_s) - (end.worker_cpu_s - start.worker_cpu_s)) / seconds


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except OSError:
        return None


def _tool(*command: str) -> Optional[str]:
    """What a firmware tool prints; None when it is not installed, fails, or does not answer within 2 s."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=2, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def _cpu_model(cpuinfo: str) -> Optional[str]:
    """x86: 'model name'. ARM64 kernels give numbers only: the parts that differ, as implementer/part."""
    named = re.search(r"^(?:model name|Processor)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named:
        return named.group(1).strip()
    parts = re.findall(r"^CPU implementer\s*:\s*(\S+).*?^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE | re.DOTALL)
    return ", ".join(f"implementer {i} part {p}" for i, p in sorted(set(parts))) or platform.processor() or None


def _os_name(filesystem: Path) -> Optional[str]:
    named = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(filesystem / "etc" / "os-release") or "", re.MULTILINE)
    return named.group(1) if named else platform.system() or None


def _clocks(cpus: List[Path], cpuinfo: str) -> Optional[Tuple[float, ...]]:
    khz = [_text(cpu / "cpufreq" / "scaling_cur_freq") for cpu in cpus]
    mhz = [int(v) / 1000 for v in khz if v and v.isdigit()]
    return tuple(mhz or map(float, re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", cpuinfo, re.MULTILINE))) or None


def _temperatures(sys: Path) -> Optional[Dict[str, float]]:
    found: Dict[str, float] = {}
    for zone in sorted(sys.glob("class/thermal/thermal_zone*")):
        kind, value = _text(zone / "type") or zone.name, _text(zone / "temp")
        if value and re.fullmatch(r"-?\d+", value) and int(value) / 1000 > _ABSENT_C:
            found[kind if kind not in found else f"{kind} ({zone.name})"] = int(value) / 1000
    return found or None


def _throttled() -> Optional[str]:
    answer = re.fullmatch(r"\s*throttled=(0x[0-9a-fA-F]+)\s*", _tool("vcgencmd", "get_throttled") or "")
    return answer.group(1) if answer else None


def _throttle_counts(cpus: List[Path], sys: Path) -> Optional[Dict[str, int]]:
    """x86: thermal_throttle counters, summed over CPUs. Jetson Orin: over-current events (hwmon soctherm oc*_event_cnt)."""
    found: Dict[str, int] = {}
    files = [file for cpu in cpus for file in cpu.glob("thermal_throttle/*_throttle_count")]
    files += sys.glob("class/hwmon/hwmon*/oc*_event_cnt")
    for file in files:
        value = _text(file)
        if value and value.isdigit():
            found[file.name] = found.get(file.name, 0) + int(value)
    return found or None


def _kib(meminfo: str, key: str) -> Optional[int]:
    found = re.search(rf"^{key}:\s*(\d+) kB$", meminfo, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _power_mode(sys: Path) -> Optional[str]:
    jetson = re.search(r"NV Power Mode:\s*(\S+)", _tool("nvpmodel", "-q") or "")
    return jetson.group(1) if jetson else _text(sys / "firmware" / "acpi" / "platform_profile")


def _int8_instructions(cpuinfo: str) -> Optional[Tuple[str, ...]]:
    """x86 lists them in `flags`, ARM in `Features`; those that every core has. None where there is no such line."""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if not lines:
        return None
    common = set.intersection(*(set(line.split()) for line in lines))
    return tuple(name for name in INT8_INSTRUCTIONS if name in common)


def _busy(stat: str) -> Optional[float]:
    """Seconds of all CPUs since boot that were not idle: user, nice, system, irq, softirq, steal of /proc/stat's first line."""
    first = re.match(r"cpu +((?:\d+ ?)+)", stat)
    ticks = [int(v) for v in first.group(1).split()] if first else []
    if len(ticks) < 8:
        return None
    return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")
