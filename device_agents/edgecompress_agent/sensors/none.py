"""No sensor: power is not measured, and the result says so."""

from __future__ import annotations

from typing import Any, Dict, NoReturn, Optional

from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import check_options

OPTIONS: Dict[str, str] = {}
REASON = "no sensor on this device"


def open(options: Dict[str, Any]) -> NoReturn:
    """AgentError always: there is nothing to open, and options could only be ignored."""
    check_options("none", options, OPTIONS)
    raise AgentError(REASON)


def probe() -> Optional[str]:
    """None: nothing is here, everywhere."""
    return None
