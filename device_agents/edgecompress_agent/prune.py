"""Remove what nobody used for some days: blobs, old agents, cut uploads, and jobs whose result nobody collected.

Other workstations may be at work on this board at the same time. So nothing is removed while a measurement has the board (it
would be disturbed as well), nor a job whose supervisor lives, nor a blob that a job names, nor an agent while any job lives;
and only files whose names are those of the agent's own, in its own directories.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from pathlib import Path
from typing import Iterator, List, Optional, Set, Tuple

from edgecompress_agent import store, wire
from edgecompress_agent.errors import AgentError

_OURS = {
    "blobs": re.compile(r"[0-9a-f]{64}\Z|\..*\.part\Z"),
    "agent": re.compile(r"[0-9a-f]{64}\.pyz\Z|\..*\.part\Z"),
    "wheels": re.compile(r".*\.(whl|txt|part)\Z"),
}
_CLOCK_IS_SET_S = 1577836800.0
"""2020-01-01: a board without a clock of its own that has no network yet is before it."""


def prune(base: Path, days: float, *, keep: Path) -> Tuple[int, int, bool]:
    """(how many were removed, their bytes, whether the board was busy, so that nothing was). keep: the agent that runs this."""
    if not days >= 1:
        raise AgentError(f"prune: {days:g} days: 1 or more")
    now = time.time()
    if now < _CLOCK_IS_SET_S or not (base / "jobs").is_dir():
        return 0, 0, False
    board = store.try_lock(base / "lock")
    if board is None:
        return 0, 0, True
    try:
        removed = _jobs(base, now, days)
        needed, alive = _named_by_jobs(base)
        kept = needed | {os.fspath(keep)}
        for folder in ("blobs", "wheels") if alive else ("blobs", "wheels", "agent"):
            removed += _files(base / folder, _OURS[folder], now, days, kept)
    finally:
        os.close(board)
    return len(removed), sum(removed), False


def _jobs(base: Path, now: float, days: float) -> List[int]:
    removed = []
    for path in _entries(base / "jobs"):
        if not wire.JOB_ID.match(path.name) or path.is_symlink() or not path.is_dir():
            continue
        newest = [_unused_since(p, now) for p in [path, *_entries(path)]]
        if max(newest) >= now - days * 86400:
            continue
        lock = store.try_lock(path / "lock")  # held on: it cannot be started while it is removed
        if lock is None:
            continue
        try:
            size = sum(p.lstat().st_size for p in _entries(path))
            with contextlib.suppress(OSError):
                shutil.rmtree(path)
                removed.append(size)
        finally:
            os.close(lock)
    return removed


def _named_by_jobs(base: Path) -> Tuple[Set[str], bool]:
    """The paths of the blobs of all jobs that are left, and whether one of these jobs lives."""
    named, alive = set(), False
    for path in _entries(base / "jobs"):
        if not wire.JOB_ID.match(path.name):
            continue
        alive = alive or store.is_locked(path / "lock")
        with contextlib.suppress(
            OSError, wire.WireError, AgentError
        ):  # of another version, or cut: nobody can start it
            job = store.read_job(base, path.name)
            named |= {os.fspath(store.blob_path(base, b.sha256)) for b in (job.artifact, job.images, job.pieces) if b}
    return named, alive


def _files(folder: Path, ours: "re.Pattern[str]", now: float, days: float, kept: Set[str]) -> List[int]:
    removed = []
    for path in _entries(folder):
        if not ours.match(path.name) or os.fspath(path) in kept:
            continue
        with contextlib.suppress(OSError):  # another workstation removed it just now
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode) and _unused_since(path, now) < now - days * 86400:
                path.unlink()
                removed.append(facts.st_size)
    return removed


def _unused_since(path: Path, now: float) -> float:
    """When it was last written or marked as used. What was written before the clock was set is as old as today."""
    changed = _modified(path)
    if changed is None:
        return 0.0
    if changed < _CLOCK_IS_SET_S:
        with contextlib.suppress(OSError):
            os.utime(path)
        return now
    return changed


def _modified(path: Path) -> Optional[float]:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return None


def _entries(directory: Path) -> Iterator[Path]:
    return iter(list(directory.iterdir()) if directory.is_dir() else [])
