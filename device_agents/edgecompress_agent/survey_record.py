"""The answer to `survey`: what a board is and has, for `device doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from edgecompress_agent.wire import Conditions, EngineFound, SensorReading


@dataclass(frozen=True)
class Workdir:
    """The agent's directory, which may not be there yet. nearest: it, or the directory above it that is.

    complaint: why it cannot or must not be used.
    """

    path: str
    nearest: str
    free_bytes: Optional[int]
    complaint: Optional[str]


@dataclass(frozen=True)
class Process:
    """A process that is not ours. cpus: how many CPUs it used, over about a second."""

    pid: int
    name: str
    cpus: float


@dataclass(frozen=True)
class Survey:
    """What was found out without leaving anything behind.

    executable: of the Python that answered. groups: those of the user. others_cpus: how many CPUs the rest of the board used
    over about a second; None where the kernel does not tell. processes: of these the busiest, the busiest first. clock_kept: the
    system says that its calendar follows a time server; None: it says nothing. measuring: a job has the board, and neither an
    engine nor the sensor was touched beside it. engines: empty then. sensor: None when none was asked for, or then.
    """

    python: str
    executable: str
    user: str
    groups: Tuple[str, ...]
    machine: str
    workdir: Workdir
    conditions: Conditions
    others_cpus: Optional[float]
    processes: Tuple[Process, ...]
    clock_kept: Optional[bool]
    measuring: bool
    engines: Dict[str, EngineFound]
    sensor: Optional[SensorReading] = None
