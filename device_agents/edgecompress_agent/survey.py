"""What a board is and has, for `device doctor`. Nothing is written, made or changed on the board: the agent runs from memory then,
and the host brings it there only when something is to be measured."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from edgecompress_agent import conditions, private, probe, sensor_check, store
from edgecompress_agent.survey_record import Process, Survey, Workdir

_LOOK_S = 1.0
_MOST_PROCESSES = 3
_IDLE_CPUS = 0.02
"""A process below it is not worth naming: the kernel counts in steps of 10 ms."""


def survey(base: Path, request: Dict[str, Any]) -> Survey:
    """Look at everything once. request: {"engines": whether to import them, "sensor": its name, "options": its options}."""
    measuring = (base / "lock").exists() and store.is_locked(base / "lock")
    start = conditions.read("hello")
    before, began = _cpu_seconds(), time.monotonic()
    time.sleep(_LOOK_S)
    now, after, looked_s = conditions.read("hello"), _cpu_seconds(), time.monotonic() - began
    engines = {} if measuring or not request.get("engines", True) else probe.engines_found()[1]
    wanted = str(request.get("sensor", "none"))
    sensor = None
    if wanted != "none" and not measuring:
        sensor = sensor_check.check_unlocked(base, wanted, dict(request.get("options", {})))
    return Survey(
        python=platform.python_version(),
        executable=sys.executable,
        user=_user(),
        groups=_groups(),
        machine=platform.machine(),
        workdir=_workdir(base),
        conditions=now,
        others_cpus=conditions.others_cpus(start, now),
        processes=_busiest(before, after, looked_s),
        clock_kept=_clock_kept(Path("/")),
        measuring=measuring,
        engines=engines,
        sensor=sensor,
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _groups() -> Tuple[str, ...]:
    names = []
    for number in sorted({os.getgid(), *os.getgroups()}):
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            names.append(str(number))
    return tuple(names)


def _workdir(base: Path) -> Workdir:
    nearest = base
    while not os.path.lexists(str(nearest)) and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        disk = os.statvfs(str(nearest))
    except OSError:
        disk = None
    return Workdir(
        path=str(base),
        nearest=str(nearest),
        free_bytes=None if disk is None else disk.f_bavail * disk.f_frsize,
        complaint=private.complaint(str(base), mend=False) or private.unwritable(str(base)),
    )


def _cpu_seconds(proc: Path = Path("/proc")) -> Dict[int, Tuple[str, float]]:
    """Process → (its name, the CPU seconds that it used so far), of all but this one."""
    found, tick = {}, os.sysconf("SC_CLK_TCK")
    for stat in proc.glob("[0-9]*/stat"):
        try:
            # the name is between the outermost brackets and may hold anything (proc(5), fields 14 and 15)
            head, _, tail = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")
            fields = tail.split()
            pid = int(stat.parent.name)
            found[pid] = (head.partition("(")[2], (int(fields[11]) + int(fields[12])) / tick)
        except (OSError, ValueError, IndexError):
            continue  # it ended just now
    found.pop(os.getpid(), None)
    return found


def _busiest(
    before: Dict[int, Tuple[str, float]], after: Dict[int, Tuple[str, float]], seconds: float
) -> Tuple[Process, ...]:
    used: List[Process] = []
    for pid, (name, cpu_s) in after.items():
        cpus = (cpu_s - before.get(pid, (name, cpu_s))[1]) / seconds
        if cpus > _IDLE_CPUS:
            used.append(Process(pid, name, cpus))
    return tuple(sorted(used, key=lambda p: -p.cpus)[:_MOST_PROCESSES])


def _clock_kept(filesystem: Path) -> Optional[bool]:
    """systemd-timesyncd leaves this file when it has set the clock. Other daemons do not tell without being asked."""
    folder = filesystem / "run" / "systemd" / "timesync"
    return (folder / "synchronized").exists() if folder.is_dir() else None
