"""Sensors: what reads power on the board. One file each; the file's name is the name in a device profile.

The contract: the module defines

    open(options: Dict[str, Any]) -> Sensor

which raises AgentError for options that it does not know, or when the device is not there or may not be read. The sensor
is a context manager: entered once the warm-up is over, left when the last block has ended, so that a sampler thread lives
exactly as long as the timed part. `reason` says afterwards why there is no trace, and is None where there is one.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import TracebackType
from typing import Any, Dict, List, Optional, Protocol, Type, cast

from edgecompress_agent.errors import AgentError


class Sensor(Protocol):
    """What `open` gives: see above."""

    reason: Optional[str]

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> Optional[bool]: ...


def names() -> List[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_sensor(name: str, options: Dict[str, Any]) -> Sensor:
    """The sensor of this name. AgentError: unknown name, or what its `open` says."""
    if name not in names():
        raise AgentError(f"unknown sensor {name!r}: this agent has {', '.join(names())}")
    return cast(Sensor, importlib.import_module(f"{__name__}.{name}").open(options))
