"""The process that outlives the SSH connection: it waits for the board, runs the worker, and leaves a result, whatever
becomes of the worker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn, Optional

from edgecompress_agent import bundle_path, outcome, progress, store, wire
from edgecompress_agent.errors import AgentError

LOG_TAIL_BYTES = 4000
_SIGNALS = {
    "SIGILL": "illegal instruction: this build of the engine does not suit this CPU; install another version",
    "SIGSEGV": "invalid memory access inside the engine",
    "SIGBUS": "invalid memory access inside the engine",
    "SIGABRT": "the engine gave up",
    "SIGFPE": "invalid arithmetic inside the engine",
    "SIGKILL": "killed from outside, or by the kernel because memory ran out",
}


class _Stopped(BaseException):
    """Raised by a signal's handler, wherever the supervisor is: SIGTERM (cancelled) or SIGALRM (the deadline)."""


def start(base: Path, job_id: str) -> wire.Status:
    """Start a job in the background, unless it runs or is done: asking twice is harmless. A lost job starts afresh.

    AgentError: there is no such job, or no room for its result."""
    store.read_job(base, job_id)
    directory = store.job_dir(base, job_id)
    # `status` may hold the lock for an instant: 0.3 s tell it from a supervisor
    alive = None if (directory / "result.json").exists() else store.try_lock(directory / "lock", wait_s=0.3)
    if alive is None or (directory / "result.json").exists():
        if alive is not None:
            os.close(alive)
        return status(base, job_id)
    outcome.reserve(directory)
    bundle_path.used()
    for left_by_a_lost_one in ("pid", progress.FILE, "partial.json"):
        with contextlib.suppress(FileNotFoundError):
            (directory / left_by_a_lost_one).unlink()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _become_supervisor(base, job_id, alive)
        os._exit(0)
    os.wait()
    os.close(alive)  # the supervisor holds it on: fork shares the lock
    return wire.Status("running", phase="starting")


def status(base: Path, job_id: str) -> wire.Status:
    """How a job stands. The order of the questions matters: a result may appear between them."""
    directory = store.job_dir(base, job_id)
    if not (directory / "job.json").exists():
        return wire.Status("absent")
    if (directory / "result.json").exists():
        return wire.Status("done", fraction=1.0, seconds_left=0.0)
    if not (directory / "lock").exists():
        return wire.Status("absent", phase="not started")
    if store.is_locked(directory / "lock"):
        return progress.read(directory)
    if (directory / "result.json").exists():
        return wire.Status("done", fraction=1.0, seconds_left=0.0)
    return wire.Status("lost", log=log_tail(directory))


def cancel(base: Path, job_id: str) -> wire.Status:
    """End a job that waits or runs; its result then says that it was cancelled. Harmless for any other."""
    directory = store.job_dir(base, job_id)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not store.is_locked(directory / "lock"):
            break
        # the lock tells that this process lives, so the number is its own; it may end just now
        with contextlib.suppress(ProcessLookupError):
            os.kill(_pid(directory), number)
        alive = store.try_lock(directory / "lock", wait_s=5.0)
        if alive is not None:
            os.close(alive)
    return status(base, job_id)


def log_tail(directory: Path) -> str:
    """The end of a job's log: what the engine and the worker's Python wrote."""
    try:
        with (directory / "log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def signal_sentence(number: int) -> str:
    """A signal's name and what it mostly means here."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"{name} ({_SIGNALS[name]})" if name in _SIGNALS else name


def _become_supervisor(base: Path, job_id: str, alive: int) -> NoReturn:
    """Let go of everything of the SSH connection (it stays open as long as one descriptor is) and supervise."""
    status = 1
    try:
        log = os.open(str(store.job_dir(base, job_id) / "log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
            if descriptor > 2 and descriptor != alive:
                with contextlib.suppress(OSError):  # that of the listing itself is closed by now
                    os.close(descriptor)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _supervise(base, job_id, alive)
        status = 0
    finally:
        if status:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(status)  # never back into the verb, whose answer its parent has given


def _supervise(base: Path, job_id: str, alive: int) -> None:
    directory = store.job_dir(base, job_id)
    reason: Optional[str] = None
    try:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGALRM, _stop)
        # where flock is emulated by record locks (NFS) the fork did not share it: this waits for `start` to end
        fcntl.flock(alive, fcntl.LOCK_EX)
        store.write(directory / "pid", b"%d" % os.getpid(), durable=False)
        job = store.read_job(base, job_id)
        progress.write(directory, "waiting")
        board = store.wait_lock(base / "lock")
        progress.write(directory, "starting")
        reason = _run_worker(job, base, board)
    except _Stopped as stopped:
        reason = str(stopped)
    if not (directory / "result.json").exists():
        outcome.leave_failed(directory, job_id, reason or "the worker left no result")


def _stop(number: int, frame: object) -> NoReturn:
    raise _Stopped("cancelled" if number == signal.SIGTERM else "the deadline was reached")


def _run_worker(job: wire.Job, base: Path, board: int) -> Optional[str]:
    """Run the worker to its end or to the deadline. None, or why there may be no result.

    It waits in the kernel, with an alarm: Popen.wait(timeout) would wake up 20 times a second beside the measurement. The
    worker shares the board's lock, which is let go when it has really ended, and ends by itself when the pipe to its
    standard input closes, that is when this process is gone.
    """
    oom_before = _oom_kills()
    worker = subprocess.Popen(
        bundle_path.command("_work", str(base), job.job_id),
        stdin=subprocess.PIPE,
        pass_fds=(board,),
        start_new_session=True,
    )
    try:
        signal.setitimer(signal.ITIMER_REAL, job.deadline_s)
        code = worker.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _Stopped as stopped:
        phase = progress.read(store.job_dir(base, job.job_id)).phase
        late = f"it took longer than {job.deadline_s:g} s and was stopped while {phase}"
        return str(stopped) if str(stopped) == "cancelled" else late
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    if code < 0:
        memory = ": the kernel ran out of memory" if oom_before is not None and _oom_kills() != oom_before else ""
        return f"the worker was ended by {signal_sentence(-code)}{memory}"
    if code > 0:
        return f"the worker ended with exit status {code}: {last_line(log_tail(store.job_dir(base, job.job_id)))}"
    return None


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it wrote nothing"


def _oom_kills() -> Optional[int]:
    """Processes that the kernel killed for memory since boot (Linux 4.13 and newer)."""
    file = Path("/proc/vmstat")
    found = re.search(r"^oom_kill (\d+)$", file.read_text() if file.exists() else "", re.MULTILINE)
    return int(found.group(1)) if found else None


def _pid(directory: Path) -> int:
    """The supervisor's. AgentError in the instant before it has written it."""
    try:
        return int((directory / "pid").read_bytes())
    except FileNotFoundError:
        raise AgentError("the job is just starting: ask again") from None
