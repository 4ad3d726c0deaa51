"""No sensor: power is not measured, and the result says so."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Dict, Optional

from edgecompress_agent.errors import AgentError


class _Nothing(AbstractContextManager):  # type: ignore[type-arg]
    reason: Optional[str] = "no sensor on this device"

    def __exit__(self, *exc: object) -> None:
        return None


def open(options: Dict[str, Any]) -> _Nothing:
    """A sensor that reads nothing. AgentError when it is given options: it could only ignore them."""
    if options:
        raise AgentError(f"sensor none takes no options, not {', '.join(sorted(options))}")
    return _Nothing()
