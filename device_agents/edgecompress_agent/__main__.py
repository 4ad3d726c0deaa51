"""The agent's verbs: `python3 -I agent.pyz VERB …`, one JSON value on standard output, exit status 0.

hello ROOT            → Hello
have ROOT             standard input: a list of SHA-256; → the list of those whose blob is here and whole
start ROOT JOB_ID     → Status; runs ROOT/jobs/JOB_ID/job.json in the background
status ROOT JOB_ID    → Status
cancel ROOT JOB_ID    → Status
clean ROOT JOB_ID     → {"removed": bool}
prune ROOT DAYS       → {"removed": how many files and jobs, "bytes": of them, "busy": a measurement had the board}
clock ROOT            → Clock
sensor ROOT NAME      standard input: the options, a JSON object; → SensorReading
survey ROOT REQUEST   → Survey; leaves nothing behind. REQUEST: a JSON object, see survey.py

What cannot be done is {"error": a sentence}, exit status 1. `_work` and `_probe` are the agent's own processes.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from edgecompress_agent import bundle_path, private, store, supervisor, wire
from edgecompress_agent.errors import AgentError


def _hello(base: Path) -> wire.Hello:
    from edgecompress_agent.probe import hello  # `status` runs beside a measurement: it loads no more than it needs

    return hello(base)


def _have(base: Path) -> List[str]:
    try:
        wanted = json.loads(sys.stdin.buffer.read())
    except ValueError as error:
        raise AgentError(f"have: standard input is not JSON: {error}") from None
    if not isinstance(wanted, list) or not all(isinstance(w, str) for w in wanted):
        raise AgentError("have: standard input must be a list of SHA-256")
    return store.have(base, wanted)


def _prune(base: Path, days: str) -> Dict[str, Any]:
    from edgecompress_agent.prune import prune

    try:
        number = float(days)
    except ValueError:
        raise AgentError(f"prune: {days!r} is not a number of days") from None
    removed, freed, busy = prune(base, number, keep=bundle_path.path())
    return {"removed": removed, "bytes": freed, "busy": busy}


def _clock(base: Path) -> wire.Clock:
    from edgecompress_agent.clock import now

    return now()


def _sensor(base: Path, name: str) -> wire.SensorReading:
    from edgecompress_agent.sensor_check import check_here

    try:
        options = json.loads(sys.stdin.buffer.read())
    except ValueError as error:
        raise AgentError(f"sensor: standard input is not JSON: {error}") from None
    if not isinstance(options, dict):
        raise AgentError("sensor: standard input must be an object of options")
    return check_here(base, name, options)


def _survey(base: Path, request: str) -> Any:
    from edgecompress_agent.survey import survey

    try:
        wanted = json.loads(request)
    except ValueError as error:
        raise AgentError(f"survey: the request is not JSON: {error}") from None
    if not isinstance(wanted, dict):
        raise AgentError("survey: the request must be an object")
    return survey(base, wanted)


def _work(base: Path, job_id: str) -> None:
    from edgecompress_agent.worker import work

    work(base, job_id)


_VERBS: Dict[str, Tuple[int, Callable[..., Any]]] = {
    "hello": (0, _hello),
    "have": (0, _have),
    "start": (1, supervisor.start),
    "status": (1, supervisor.status),
    "cancel": (1, supervisor.cancel),
    "clean": (1, lambda base, job_id: {"removed": store.clean(base, job_id)}),
    "prune": (1, _prune),
    "clock": (0, _clock),
    "sensor": (1, _sensor),
    "survey": (1, _survey),
    "_work": (1, _work),
}
"""Verb → (number of arguments after ROOT, function)."""


def _answer(arguments: List[str]) -> Any:
    if arguments[:1] == ["_probe"] and len(arguments) == 2:
        from edgecompress_agent.probe import here

        return here(arguments[1])
    verb, *rest = arguments or [""]
    if verb not in _VERBS or len(rest) != 1 + _VERBS[verb][0]:
        raise AgentError(f"usage: VERB ROOT …, with the verbs {', '.join(v for v in _VERBS if v[0] != '_')}")
    base = store.root(rest[0])
    why = None if verb == "survey" else private.complaint(str(base))
    if why is not None:
        raise AgentError(f"the agent's directory is not its user's alone: {why}")
    return _VERBS[verb][1](base, *rest[1:])


def _end_with_reader(protocol: int, abandon: Callable[[], None]) -> None:
    """End `hello` when nobody reads its answer any more. It takes long, and a host whose link was lost asks again: on a slow board
    those before would still be importing engines beside it, each making all of them slower."""
    ended = select.poll()
    ended.register(protocol, 0)  # POLLERR and POLLHUP are told unasked; the thread sleeps in the kernel
    ended.poll()
    abandon()
    os._exit(1)


def main() -> int:
    """Answer one verb. The agent keeps standard output for itself and gives everyone else (the banner of an engine, written
    by C code to descriptor 1) standard error in its place."""
    protocol = os.dup(1)
    os.dup2(2, 1)
    os.umask(0o077)
    # ONNX Runtime 1.29 and newer otherwise writes to the home directory when it is imported, and sends what it runs to its maker
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    status = 0
    if sys.argv[1:2] == ["hello"]:
        # Imported before there are two threads: each importing it at once, one may see it half done.
        from edgecompress_agent.probe import abandon

        threading.Thread(target=_end_with_reader, args=(protocol, abandon), daemon=True).start()
    try:
        bundle_path.path()
        answer = _answer(sys.argv[1:])
    except (AgentError, wire.WireError, OSError) as error:
        if sys.argv[1:2] == ["_work"]:
            raise  # the worker's own hook makes a failed result of it
        answer, status = {"error": str(error)}, 1
    with os.fdopen(protocol, "wb") as out:
        out.write(wire.encode(answer) + b"\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
