"""This board's monotonic clock, for a host that has to bring its own to it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Optional

from edgecompress_agent.wire import Clock

_STARTUP_NS = 60 * 10**9


def now(proc: Path = Path("/proc")) -> Clock:
    """The clock, read last of all. Starting Python takes longest of what passes between the host's question and the answer:
    that this process was started earlier narrows down where in between the stamp lies."""
    started_ns = _started_ns(proc)
    return Clock(time.monotonic_ns(), started_ns)


def _started_ns(proc: Path) -> Optional[int]:
    """When this process was started, at the latest: the kernel tells it in steps of 10 ms, since boot (proc(5), field 22)."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    try:
        ticks = int((proc / "self" / "stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    suspended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    started_ns = (ticks + 1) * 10**9 // os.sysconf("SC_CLK_TCK") - suspended_ns
    # elsewhere than on Linux itself (an emulated kernel) the field may hold anything
    return started_ns if 0 <= time.monotonic_ns() - started_ns < _STARTUP_NS else None
