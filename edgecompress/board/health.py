"""Of a device's survey: what makes its measurements wrong or noisy (clocks, heat, memory, what else runs there)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgecompress_agent import wire
from edgecompress_agent.survey_record import Survey

from edgecompress.board.transport import readable
from edgecompress.device_profile import DeviceProfile

_NEEDED_MEMORY_BYTES = 200e6
_BUSY, _NOTICED = 0.25, 0.1
"""Of all CPUs, taken by others: latencies are wrong; of one CPU: a measurement will warn of it."""
_HOT_C, _WARM_C = 80, 75
_THROTTLED_BITS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
"""`vcgencmd get_throttled` of a Raspberry Pi: bits 0 to 3 now, 16 to 19 since boot."""

BUSY = "a job, or `device setup`, has the board now"
_HOLD_CLOCKS = (
    "Clocks that move add noise; to hold them: echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor "
    "(Jetson: sudo jetson_clocks)."
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ok False: measurements will fail or be wrong. fix: what to do; with ok True, advice.

    warning: ok, but something that was asked for will be missing.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    warning: bool = False


def health(profile: DeviceProfile, seen: Survey) -> Iterator[Check]:
    """Lines on memory, CPUs, governor, clocks, temperature, throttling and load."""
    now = seen.conditions
    yield _memory(seen)
    if profile.cpus and now.cpus_online is not None and max(profile.cpus) >= now.cpus_online:
        fix = f"Change cpus in the device profile to some of 0 to {now.cpus_online - 1}."
        yield Check("cpus", False, f"pinned to {list(profile.cpus)}, {now.cpus_online} are online", fix)
    governors = sorted(set(now.governors or ()))
    fixed = governors in ([], ["performance"])
    yield Check("governor", True, ", ".join(governors) or "the kernel tells none", "" if fixed else _HOLD_CLOCKS)
    yield Check("clocks", True, _clocks(now))
    yield _temperature(now)
    yield throttling(now)
    yield _load(seen)


def _memory(seen: Survey) -> Check:
    available = seen.conditions.mem_available_bytes
    if available is None:
        return Check("memory", True, "the kernel does not tell")
    if available >= _NEEDED_MEMORY_BYTES:
        return Check("memory", True, f"{available / 1e6:.0f} MB available")
    said = f"{available / 1e6:.0f} MB available, {_NEEDED_MEMORY_BYTES / 1e6:.0f} MB needed"
    return Check(
        "memory", False, said, "On the device: ps -eo pid,rss,comm --sort=-rss | head, and stop what is not needed."
    )


def _clocks(now: wire.Conditions) -> str:
    if not now.cpu_mhz:
        return "the kernel does not tell"
    low, high = min(now.cpu_mhz), max(now.cpu_mhz)
    mode = f", power mode {now.power_mode}" if now.power_mode else ""
    return (f"{high:.0f} MHz" if high - low < 1 else f"{low:.0f} to {high:.0f} MHz") + mode


def _temperature(now: wire.Conditions) -> Check:
    if not now.temperatures_c:
        return Check("temperature", True, "the kernel does not tell")
    hottest = max(now.temperatures_c.values())
    fix = "Cool it: most boards lower their clocks between 80 and 85 °C." if hottest >= _WARM_C else ""
    return Check("temperature", hottest < _HOT_C, f"{hottest:.0f} °C", fix)


def throttling(now: wire.Conditions) -> Check:
    """A Raspberry Pi's firmware tells what it does now; of other kernels there are counters since boot."""
    if now.throttled is None:
        counts = {name: count for name, count in (now.throttle_counts or {}).items() if count}
        told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        said = f"since boot: {told or 'none'}" if now.throttle_counts is not None else "the kernel does not tell"
        return Check("throttling", True, said)
    try:
        bits = int(now.throttled, 16)
    except ValueError:
        return Check("throttling", True, f"not understood: {readable(now.throttled, 40)}")
    active = [name for bit, name in enumerate(_THROTTLED_BITS) if bits >> bit & 1]
    before = [name for bit, name in enumerate(_THROTTLED_BITS) if bits >> (16 + bit) & 1]
    fix = "Use the board's own power supply and a heat sink or fan; look again with: vcgencmd get_throttled"
    detail = f"now: {', '.join(active) or 'none'}; since boot: {', '.join(before) or 'none'}"
    return Check("throttling", not active, detail, fix if active or before else "")


def _load(seen: Survey) -> Check:
    """What else runs: over about a second before the engines were tried."""
    now, cpus = seen.conditions, seen.conditions.cpus_online or 1
    if seen.measuring:
        return Check("load", True, BUSY)
    used = seen.others_cpus if seen.others_cpus is not None else sum(p.cpus for p in seen.processes)
    said = f"{max(used, 0.0):.2f} of {cpus} CPUs in use by others"
    if now.load_1m is not None:
        said += f", load {now.load_1m:.2f}"
    if seen.processes:
        said += ": " + ", ".join(f"{p.name} (pid {p.pid}) {p.cpus:.2f}" for p in seen.processes)
    stop = f"kill {seen.processes[0].pid}" if seen.processes else "top"
    fix = f"Stop what else runs there while measuring: {stop}, or sudo systemctl stop its service."
    busy = used > _BUSY * cpus
    return Check("load", not busy, said, fix if used > _NOTICED else "")
