"""Sensors: what reads power. One file each; the file's name is the name in a device profile.

The contract: the module defines

    OPTIONS: Dict[str, str]                        option → one sentence, with its unit and its default
    open(options: Dict[str, Any]) -> Sensor        raises AgentError: unknown option or value, device absent, no permission
                                                   (naming the group that has it), another chip than it should be, …
    probe() -> Optional[str]                       None: not here; else what was found. Disturbs nothing, takes at most 1 s

The same files serve on the board and at the workstation (a meter that hangs there): standard library only, Python >= 3.8.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Any, Dict, List, NamedTuple, Optional, Protocol

from edgecompress_agent.errors import AgentError
from edgecompress_agent.wire import SensorInfo


class SensorFault(AgentError):
    """The sensor worked and does so no more: it died, was unplugged, fell silent, or answers what cannot be a reading."""


class Sample(NamedTuple):
    """One reading. t_ns: time.monotonic_ns() at the moment that the value belongs to. power_uw: µW, with its sign.

    stale: the source repeated its old value. overflow: the source says that the value is out of its range.
    rails_mw: mW by rail, of the same rails in every sample, where power_uw was made of several.
    """

    t_ns: int
    power_uw: int
    stale: bool = False
    overflow: bool = False
    rails_mw: Optional[Dict[str, int]] = None


class Sensor(Protocol):
    """An open sensor. Used by one thread at a time."""

    @property
    def info(self) -> SensorInfo: ...

    def read(self, timeout_s: float) -> Sample:
        """The next new value: waits for it, asleep, for as long as the device takes. SensorFault after `timeout_s` without
        one, and for everything else that ends the readings."""
        ...

    def close(self) -> None:
        """Let go of the device. May be called twice, and while `read` waits in another thread (which may then raise)."""
        ...


def names() -> List[str]:
    """All sensors, `none` among them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """The module of a sensor. AgentError for an unknown one, with the near misses."""
    if name not in names():
        raise AgentError(f"unknown sensor {name!r}{_near(name, names())}: this agent has {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def check_options(name: str, options: Dict[str, Any], known: Dict[str, str]) -> None:
    """AgentError for an option that the sensor does not have, with the near misses."""
    unknown = sorted(set(options) - set(known))
    if not unknown:
        return
    if not known:
        raise AgentError(f"sensor {name} takes no options, not {', '.join(unknown)}")
    raise AgentError(
        f"sensor {name} has no option {unknown[0]!r}{_near(unknown[0], list(known))}: it has {', '.join(sorted(known))}"
    )


def open_sensor(name: str, options: Dict[str, Any]) -> Sensor:
    """The sensor of this name. AgentError: unknown name, unknown option, or what its `open` says."""
    module = find(name)
    check_options(name, options, module.OPTIONS)
    sensor: Sensor = module.open(options)
    return sensor


def _near(name: str, known: List[str]) -> str:
    close = difflib.get_close_matches(name, known, n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
