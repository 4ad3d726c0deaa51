"""RAPL: the energy counters of x86 processors (Intel since Sandy Bridge, AMD since Zen), by the kernel's powercap.

Sources: Linux Documentation/power/powercap/powercap.rst, drivers/powercap/intel_rapl_common.c; Intel SDM volume 3, "RAPL
interfaces" (the counter is renewed about every ms, in units of 61 µJ or finer). Scope: the CPU's package. Memory, disks,
network, GPU and the power supply are not in it. Intel and AMD publish no accuracy: the limit here is an assumption and says so.

Power is the counter's difference over the time between two readings, dated to the middle: the energy of a trace is the
counter's own, however the power moved meanwhile.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from edgecompress_agent import option_values
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import Sample, SensorFault, check_options
from edgecompress_agent.wire import SensorInfo

OPTIONS: Dict[str, str] = {
    "domain": "What is counted: package, package+dram (memory, where it has a counter), or psys (what the firmware takes for the "
    "platform); default package.",
    "interval_s": "Seconds between two readings, 0.01 to 10; default 0.05.",
}

GAIN_ERROR = 0.05
"""Assumed. Comparisons with external meters found RAPL within a few per cent on processors since Haswell."""
_STEP_J = 61e-6
_MOST_W = 10_000.0
"""No board draws it: a counter that says so was reset."""


class _Zone(NamedTuple):
    """One counter. range_uj: where it begins again at 0."""

    label: str
    file: int
    range_uj: int


class _Rapl:
    """Counters, read together."""

    def __init__(
        self,
        zones: List[_Zone],
        info: SensorInfo,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.info = info
        self._zones, self._clock, self._sleep = zones, clock, sleep
        self._lock = threading.Lock()
        self._closed = False
        self._at_ns, self._counts = self._count()
        self._next_ns = self._at_ns

    def read(self, timeout_s: float) -> Sample:
        """Mean power since the last reading. SensorFault: a counter is gone, or was reset."""
        interval_ns = int(self.info.interval_s * 1e9)
        now_ns = self._clock()
        self._next_ns = max(self._next_ns + interval_ns, now_ns)
        if self._next_ns - self._at_ns < interval_ns // 2:  # after a delay: no power from a sliver of time
            self._next_ns += interval_ns
        self._sleep(min((self._next_ns - now_ns) / 1e9, timeout_s))
        at_ns, counts = self._count()
        elapsed_ns = at_ns - self._at_ns
        if elapsed_ns <= 0:
            raise SensorFault("the clock did not go on between two readings of RAPL")
        joules_uj = [
            (new - old) if new >= old else (new - old + zone.range_uj)
            for zone, new, old in zip(self._zones, counts, self._counts)
        ]
        watts = sum(joules_uj) * 1e3 / elapsed_ns
        if not 0 <= watts < _MOST_W:
            raise SensorFault(
                f"RAPL's counter jumped ({self._counts} to {counts} µJ): it was reset, by a suspend perhaps"
            )
        middle_ns = (at_ns + self._at_ns) // 2
        self._at_ns, self._counts = at_ns, counts
        rails_mw = None
        if len(self._zones) > 1:
            rails_mw = {z.label: round(uj * 1e6 / elapsed_ns) for z, uj in zip(self._zones, joules_uj)}
        return Sample(middle_ns, round(watts * 1e6), stale=not any(joules_uj), rails_mw=rails_mw)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                for zone in self._zones:
                    os.close(zone.file)

    def _count(self) -> "tuple[int, List[int]]":
        with self._lock:
            if self._closed:
                raise SensorFault("the sensor was closed")
            try:
                before_ns = self._clock()
                counts = [int(os.pread(zone.file, 64, 0)) for zone in self._zones]
                return (before_ns + self._clock()) // 2, counts
            except (OSError, ValueError) as error:
                raise SensorFault(f"RAPL's counter cannot be read any more: {error}") from error


def open(options: Dict[str, Any], filesystem: Path = Path("/")) -> _Rapl:
    """The counters of this machine. AgentError: none (another CPU, a virtual machine), not the domain, root only.

    filesystem: where sys is.
    """
    check_options("rapl", options, OPTIONS)
    domain = option_values.choice("rapl", options, "domain", "package", ("package", "package+dram", "psys"))
    interval_s = option_values.number("rapl", options, "interval_s", 0.05, 0.01, 10.0)
    found = _zones(filesystem)
    if not found:
        raise AgentError(
            f"there is no RAPL here ({_powercap(filesystem)} has no package): not an x86 CPU, or a virtual machine"
        )
    wanted = [path for path, label in found if any(label.startswith(d) for d in domain.split("+"))]
    if "dram" in domain and not any(label.startswith("dram") for _, label in found):
        wanted = []
    if not wanted:
        raise AgentError(f"sensor rapl: this CPU has no {domain}: it has {', '.join(label for _, label in found)}")
    labels = dict(found)
    zones: List[_Zone] = []
    try:
        for path in wanted:
            file = os.open(str(path / "energy_uj"), os.O_RDONLY)
            zones.append(_Zone(labels[path], file, int((path / "max_energy_range_uj").read_text())))
        info = _info(str(domain), [z.label for z in zones], [label for _, label in found], interval_s)
        return _Rapl(zones, info)
    except (OSError, ValueError, AgentError) as error:
        for zone in zones:
            os.close(zone.file)
        if isinstance(error, PermissionError):
            raise AgentError(_root_only(wanted)) from None
        raise AgentError(f"RAPL cannot be read: {error}") from None


def probe(filesystem: Path = Path("/")) -> Optional[str]:
    """The counters that this user may read."""
    readable = [
        label for path, label in _zones(filesystem) if os.access(str(path / "energy_uj"), os.R_OK, effective_ids=True)
    ]
    return (
        f"RAPL counts the energy of {', '.join(readable)}" if any(r.startswith("package") for r in readable) else None
    )


def hint(filesystem: Path = Path("/")) -> Optional[str]:
    """Why `probe` found none that can be read."""
    packages = [path for path, label in _zones(filesystem) if label.startswith("package")]
    return (
        _root_only(packages)
        if packages and not os.access(str(packages[0] / "energy_uj"), os.R_OK, effective_ids=True)
        else None
    )


def _powercap(filesystem: Path) -> Path:
    return filesystem / "sys" / "class" / "powercap"


def _zones(filesystem: Path) -> "List[tuple[Path, str]]":
    """(directory, label) of every counter: package-0, dram of package-0, psys, … intel-rapl-mmio is the same package once more."""
    found: "List[tuple[Path, str]]" = []
    for path in sorted(_powercap(filesystem).glob("intel-rapl:*")):
        try:
            name = (path / "name").read_text().strip()
        except OSError:
            continue
        if (path / "energy_uj").exists():
            inside = path.name.count(":") > 1  # intel-rapl:0:2 is a part of intel-rapl:0
            found.append((path, f"{name} of package {path.name.split(':')[1]}" if inside else name))
    return found


def _root_only(paths: List[Path]) -> str:
    files = " ".join(str(p / "energy_uj") for p in paths)
    return (
        f"only root may read RAPL's counters (the kernel's default since 2020: they can betray what other programs compute). Where "
        f"nobody else works on this machine, until it restarts: sudo chmod a+r {files}"
    )


def _info(domain: str, labels: List[str], everything: List[str], interval_s: float) -> SensorInfo:
    notes = [f"error limit of {GAIN_ERROR:.0%} assumed: none is published"]
    left_out = [label for label in everything if label.startswith("dram") and label not in labels]
    if left_out and domain == "package":
        notes.append("memory has a counter of its own, which is not in it: domain package+dram adds it")
    if domain == "psys":
        notes.append("what psys covers is the firmware's choice: not every machine counts its whole platform")
    return SensorInfo(
        name="rapl",
        description=f"RAPL: {', '.join(labels)}",
        scope="board" if domain == "psys" else "cpu-package",
        interval_s=interval_s,
        resolution_w=_STEP_J / interval_s,
        gain_error=GAIN_ERROR,
        offset_error_w=0.0,
        notes=tuple(notes),
    )
