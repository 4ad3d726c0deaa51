"""What this board has: Python, engines, conditions. Every engine's import is tried in a process of its own, because a
wheel that does not suit the CPU ends it by a signal."""

from __future__ import annotations

import concurrent.futures
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from edgecompress_agent import bundle_path, conditions, engines, wire
from edgecompress_agent.errors import AgentError
from edgecompress_agent.supervisor import last_line, signal_sentence

_IMPORT_S = 120.0
"""TensorFlow from an SD card is that slow."""
_importing: List["subprocess.Popen[bytes]"] = []


def hello(base: Path) -> wire.Hello:
    """The answer to `hello`. Makes the agent's directories."""
    bundle_path.used()
    numpy, engines_here = engines_found()
    writable, free_bytes = _room(base)
    return wire.Hello(
        agent_sha256=bundle_path.sha256(),
        python=platform.python_version(),
        machine=platform.machine(),
        numpy=numpy,
        engines=engines_here,
        conditions=conditions.read("hello"),
        writable=writable,
        free_bytes=free_bytes,
    )


def engines_found() -> Tuple[Optional[str], Dict[str, wire.EngineFound]]:
    """(numpy's version, every engine), each imported in a process of its own, all at once."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        numpy, *found = pool.map(_probe, ("numpy", *wire.ENGINES))
    return numpy.version, dict(zip(wire.ENGINES, found))


def here(name: str) -> wire.EngineFound:
    """Import an engine, or numpy itself, in this process: the part that may not survive."""
    try:
        numpy = engines.import_library("numpy")
        if name == "numpy":
            return wire.EngineFound(version=str(numpy.__version__), package="numpy")
        found: wire.EngineFound = engines.find(name).found()
    except AgentError as error:
        return wire.EngineFound(version=None, reason=str(error))
    return found


def abandon() -> None:
    """Kill the imports that are under way: nobody is there any more who asked."""
    for process in list(_importing):
        process.kill()


def _probe(name: str) -> wire.EngineFound:
    process = subprocess.Popen(
        bundle_path.command("_probe", name), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _importing.append(process)
    try:
        answer, complaint = process.communicate(timeout=_IMPORT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return wire.EngineFound(version=None, reason=f"its import takes longer than {_IMPORT_S:g} s")
    said = last_line(complaint.decode("utf-8", "replace"))
    if process.returncode < 0:
        return wire.EngineFound(version=None, reason=f"its import is ended by {signal_sentence(-process.returncode)}")
    if process.returncode > 0:
        return wire.EngineFound(version=None, reason=f"its import ends with exit status {process.returncode}: {said}")
    return wire.decode(wire.EngineFound, answer)


def _room(base: Path) -> Tuple[bool, Optional[int]]:
    """(whether the agent's directory takes files, free bytes there)."""
    try:
        for name in ("agent", "blobs", "jobs"):
            (base / name).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.fspath(base)) as file:
            file.write(b"x")
            file.flush()
        return True, shutil.disk_usage(os.fspath(base)).free
    except OSError:
        return False, None
