"""The worker process: one job, measured, and its result written; or the reason why not."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Optional, Type

from edgecompress_agent import bundle_path, outcome, progress, store
from edgecompress_agent.errors import AgentError
from edgecompress_agent.measure import measure

_REASON_CHARACTERS = 2000
_NO_MEMORY = ("std::bad_alloc", "bad allocation", "Failed to allocate memory")
"""What engines say in exceptions of their own when the memory runs out."""
_PERHAPS_NO_MEMORY = "failed to reshape runtime"
"""What XNNPACK says of it, and of shapes that it cannot take."""


def work(base: Path, job_id: str) -> None:
    """Measure the job and write result.json. What is raised becomes a failed result by the hook below."""
    directory = store.job_dir(base, job_id)

    def leave_reason(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        sys.__excepthook__(kind, error, trace)
        said = "".join(traceback.format_exception_only(kind, error)).strip()
        reason = reason_of(error, said, progress.read(directory).phase)
        outcome.leave_failed(directory, job_id, reason[:_REASON_CHARACTERS])

    sys.excepthook = leave_reason
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    job = store.read_job(base, job_id)
    result = measure(
        base, job, agent_sha256=bundle_path.sha256(), keep=lambda partial: outcome.keep(directory, partial)
    )  # fmt: skip
    outcome.leave(directory, result)


def reason_of(error: BaseException, said: str, phase: Optional[str]) -> str:
    """Why a job failed, for a person. said: the error as Python tells it; phase: what the job was at."""
    if isinstance(error, MemoryError) or any(text in said for text in _NO_MEMORY):
        return f"the memory of the board does not suffice: it ran out while {phase} ({said})"
    if isinstance(error, OSError) and error.errno in outcome.FULL:
        return f"the disk of the board is full ({said})"
    if isinstance(error, AgentError):
        return str(error)
    return f"{said} This may be for want of memory." if _PERHAPS_NO_MEMORY in said else said


def _end_with_supervisor() -> None:
    """Standard input is a pipe that the supervisor holds open and never writes to. The thread sleeps in the kernel."""
    os.read(0, 1)
    os._exit(1)
