"""The agent's directory on the board: where things lie, files written whole or not at all, locks, and cleaning up.

ROOT/agent/<sha256>.pyz   agents          ROOT/blobs/<sha256>   artifacts and images
ROOT/lock                 held by the job that has the board
ROOT/jobs/<id>/           job.json; lock (held by the supervisor as long as it lives); pid; log; progress.json; result.json

Liveness is a lock, not a pid: the kernel lets go of it whatever the way in which the process ended, and no other process can
come to hold it by chance.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import List, Optional, Sequence

from edgecompress_agent import private, wire
from edgecompress_agent.errors import AgentError

_CHUNK = 1 << 20
_ENDING_S = 20.0
"""What a worker needs to unload a large engine on a slow board, at most."""


def root(path: str) -> Path:
    """The agent's directory as the host names it; `~` is this board's user's home."""
    return Path(path).expanduser().absolute()


def job_dir(base: Path, job_id: str) -> Path:
    """The directory of a job. AgentError when the id could lead anywhere else, or others may write there."""
    if not wire.JOB_ID.match(job_id):
        raise AgentError(f"not a job id: {job_id!r}")
    directory = base / "jobs" / job_id
    why = private.directory(directory)
    if why is not None:
        raise AgentError(f"the job's directory is not its user's alone: {why}")
    return directory


def read_job(base: Path, job_id: str) -> wire.Job:
    """The job that the host put there. AgentError when there is none; WireError when it is not one of this protocol."""
    path = job_dir(base, job_id) / "job.json"
    try:
        job = wire.decode(wire.Job, path.read_bytes())
    except FileNotFoundError:
        raise AgentError(f"there is no job {job_id}: {path} is missing") from None
    if job.job_id != job_id:
        raise AgentError(f"{path} holds the job {job.job_id}")
    return job


def write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all. durable: and have it survive a power cut (which costs tens of ms on an SD card)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def try_lock(path: Path, *, shared: bool = False, wait_s: float = 0.0) -> Optional[int]:
    """Take a lock file: its descriptor (closing it, or ending, lets go), or None when another holds it for all of wait_s."""
    descriptor = _open(path)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
        time.sleep(0.01)


def wait_lock(path: Path) -> int:
    """Take a lock file however long that takes, asleep in the kernel (a measurement may be what holds it): its descriptor."""
    descriptor = _open(path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _open(path: Path) -> int:
    return os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def is_locked(path: Path) -> bool:
    """Whether a process holds this lock. Asked with a shared lock, so that two who ask do not see each other."""
    if not path.exists():
        return False
    descriptor = try_lock(path, shared=True)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def blob_path(base: Path, sha256: str) -> Path:
    return base / "blobs" / sha256


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(_CHUNK), b""):
            digest.update(piece)
    return digest.hexdigest()


def have(base: Path, wanted: Sequence[str]) -> List[str]:
    """Those of the hashes whose blob is here and whole. A damaged one is removed, so that it is sent again; the others are
    marked as used now, so that `prune` keeps them."""
    present = []
    for sha256 in wanted:
        path = blob_path(base, sha256)
        if not wire.SHA256.match(sha256) or not path.is_file():
            continue
        if sha256_of(path) == sha256:
            os.utime(path)
            present.append(sha256)
        else:
            path.unlink()
    return present


def whole_blob(base: Path, blob: wire.Blob) -> Path:
    """The path of a job's blob. AgentError when it is missing or damaged."""
    path = blob_path(base, blob.sha256)
    if not path.is_file():
        raise AgentError(f"{blob.name} is not on the board: {path} is missing")
    if path.stat().st_size != blob.bytes or sha256_of(path) != blob.sha256:
        raise AgentError(f"{blob.name} is damaged on the board: {path} is not what its name says")
    return path


def clean(base: Path, job_id: str) -> bool:
    """Remove a job's directory; whether there was one. AgentError while it runs.

    The result is there some moments before its worker and supervisor have ended: those are waited for.
    """
    directory = job_dir(base, job_id)
    if not directory.is_dir():
        return False
    if (directory / "lock").exists():
        alive = try_lock(directory / "lock", wait_s=_ENDING_S if (directory / "result.json").exists() else 0)
        if alive is None:
            raise AgentError(f"job {job_id} is running: cancel it first")
        os.close(alive)
    shutil.rmtree(directory)
    return True
