"""Engines: what executes an artifact. One file each; the file's name is the name in a job.

The contract: the module defines

    found() -> EngineFound                        imports the library; raises AgentError when it is missing or broken
    load(path, threads, providers) -> Engine      the model ready to run; raises AgentError or the library's own error

Neither is called in the agent's own process before a subprocess has survived it (`probe`), or the supervisor watches.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Sequence

from edgecompress_agent import wire
from edgecompress_agent.errors import AgentError


@dataclass(frozen=True)
class Engine:
    """A loaded model.

    prepare: one array for each input, in order, of its dtype and a shape that fits → what `step` takes (never timed).
    step: set the inputs, run, fetch all outputs → sequence of arrays. This is what is timed, so it adds nothing of its own.
    """

    info: wire.EngineInfo
    prepare: Callable[[Sequence[Any]], Any]
    step: Callable[[Any], Sequence[Any]]


def find(name: str) -> ModuleType:
    """The engine of this name. AgentError for an unknown one."""
    if name not in wire.ENGINES:
        raise AgentError(f"unknown engine {name!r}: this agent has {', '.join(wire.ENGINES)}")
    return importlib.import_module(f"{__name__}.{name}")


def import_library(name: str, *, needs: str = "") -> ModuleType:
    """Import an engine's library. AgentError names what is missing (a module) or broken (anything else it raises)."""
    try:
        return importlib.import_module(name)
    # SystemError: a library built for numpy 1 that meets numpy 2
    except (ImportError, SystemError, AttributeError, OSError) as error:
        hint = f" ({needs})" if needs else ""
        raise AgentError(f"{name} cannot be imported: {type(error).__name__}: {error}{hint}") from error
