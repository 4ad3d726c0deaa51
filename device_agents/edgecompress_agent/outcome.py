"""How a job's result is left on the board, whatever happens: room for it is kept free from the beginning, and what was measured
is written down between the phases, so that an engine that dies late takes only its last phase with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from pathlib import Path
from typing import Iterator

from edgecompress_agent import bundle_path, store, wire
from edgecompress_agent.errors import AgentError

RESERVED_BYTES = 16 << 20
"""A trace as long as a sampler keeps it, and the latencies of some hours at 1 kHz, as JSON."""
_RESERVED, _PARTIAL, _RESULT = ".reserved", "partial.json", "result.json"
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def reserve(directory: Path) -> None:
    """Take the disk space of a result before anything is measured. AgentError when there is none."""
    file = directory / _RESERVED
    try:
        descriptor = os.open(str(file), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, RESERVED_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):
            file.unlink()
        if error.errno not in FULL:
            raise
        disk = os.statvfs(str(directory))
        free = disk.f_bavail * disk.f_frsize
        raise AgentError(
            f"the disk is full: a result needs up to {RESERVED_BYTES >> 20} MB under {directory}, "
            f"where {free / 1e6:.1f} MB are free"
        ) from None


@contextlib.contextmanager
def unless_full() -> Iterator[None]:
    """For what may be left unwritten on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


def keep(directory: Path, result: wire.Result) -> None:
    """Write down what was measured so far. Between two phases only, never inside a timed one."""
    with unless_full():
        store.write(directory / _PARTIAL, wire.encode(result), durable=False)


def leave(directory: Path, result: wire.Result) -> None:
    """Write the result, into the space that was reserved for it."""
    data, reserved = wire.encode(result), directory / _RESERVED
    if not reserved.exists():
        store.write(directory / _RESULT, data)
        return
    with reserved.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    reserved.replace(directory / _RESULT)


def leave_failed(directory: Path, job_id: str, reason: str) -> None:
    """Write a failed result, with what was kept of the measurement."""
    try:
        kept = wire.decode(wire.Result, (directory / _PARTIAL).read_bytes())
        failed = dataclasses.replace(kept, reason=reason)
    except (OSError, wire.WireError):
        failed = wire.Result(job_id, bundle_path.sha256(), "failed", reason)
    try:
        leave(directory, failed)
    except OSError as error:
        if error.errno not in FULL:
            raise
        # it outgrew its room, and there is no other: the reason matters more than what was measured
        leave(directory, dataclasses.replace(failed, warmup_ns=(), blocks=(), power=None, windows=(), operators=None))
