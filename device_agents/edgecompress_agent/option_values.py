"""Values of a sensor's options, checked: they come from a person's device profile."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional

from edgecompress_agent.errors import AgentError


def number(sensor: str, options: Dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    """The option as a number from low to high, or its default. AgentError for anything else."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _wrong(sensor, name, f"a number from {low:g} to {high:g}", value)
    return float(value)


def choice(sensor: str, options: Dict[str, Any], name: str, default: Any, choices: Iterable[Any]) -> Any:
    """The option as one of the choices, of the same type, or its default. AgentError for anything else."""
    value, allowed = options.get(name, default), list(choices)
    if not any(type(value) is type(one) and value == one for one in allowed):
        known = ", ".join(map(str, allowed)) if len(allowed) <= 20 else f"{allowed[0]} to {allowed[-1]}"
        raise _wrong(sensor, name, f"one of {known}", value)
    return value


def text(sensor: str, options: Dict[str, Any], name: str) -> Optional[str]:
    """The option as text, or None when it is not given. AgentError for anything else."""
    value = options.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise _wrong(sensor, name, "text", value)
    return value.strip()


def _wrong(sensor: str, name: str, wanted: str, value: Any) -> AgentError:
    return AgentError(f"sensor {sensor}: option {name} must be {wanted}, not {repr(value)[:80]}")
