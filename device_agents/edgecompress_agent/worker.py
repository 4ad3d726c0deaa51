"""The worker process: one job, measured, and its result written; or the reason why not."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Optional, Type

from edgecompress_agent import bundle_path, store, wire
from edgecompress_agent.errors import AgentError
from edgecompress_agent.measure import measure

_REASON_CHARACTERS = 2000


def work(base: Path, job_id: str) -> None:
    """Measure the job and write result.json. What is raised becomes a failed result by the hook below."""
    result_file = store.job_dir(base, job_id) / "result.json"

    def leave_reason(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        sys.__excepthook__(kind, error, trace)
        said = "".join(traceback.format_exception_only(kind, error)).strip()
        reason = str(error) if isinstance(error, AgentError) else said
        failed = wire.Result(job_id, bundle_path.sha256(), "failed", reason[:_REASON_CHARACTERS])
        store.write(result_file, wire.encode(failed))

    sys.excepthook = leave_reason
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    result = measure(base, store.read_job(base, job_id), agent_sha256=bundle_path.sha256())
    store.write(result_file, wire.encode(result))


def _end_with_supervisor() -> None:
    """Standard input is a pipe that the supervisor holds open and never writes to. The thread sleeps in the kernel."""
    os.read(0, 1)
    os._exit(1)
