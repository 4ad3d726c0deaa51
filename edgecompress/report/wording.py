"""Figures as people read them: units, digits, intervals, signs. Text of others made harmless for every format."""

from __future__ import annotations

import unicodedata
from typing import Any

NONE = "–"


def plain(text: object) -> str:
    """Text on one line without control characters: what a board or a file name says cannot move a cursor or forge a line."""
    spaced = " ".join(str(text).split())
    kept = "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return " ".join(kept.split())


def board(row: dict[str, Any]) -> str:
    """The device of a row, and the board that measured where that is one of several."""
    device, member = row["device"], row["member"]
    return plain(device if member in (None, device) else f"{device} ({member})")


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f} %"


def percent_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def points(value: float | None) -> str:
    return NONE if value is None else signed(f"{100 * value:+.2f}")


def points_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{signed(f'{100 * low:+.2f}')} to {signed(f'{100 * high:+.2f}')}"


def signed(text: str) -> str:
    return text.replace("-", "−")


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.{_decimals(value)}f}"


def milliseconds_interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    digits = _decimals(low)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def interval(row: dict[str, Any], name: str) -> str:
    """The interval of a row's figure in ms or mJ."""
    return milliseconds_interval(row[f"{name}_low"], row[f"{name}_high"])


def watts(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f} W" if value < 10 else f"{value:.2f} W"


def _decimals(value: float) -> int:
    """Decimals that leave three or four significant digits."""
    return 4 if value < 0.1 else 3 if value < 10 else 2 if value < 100 else 1


def ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"


def ratio_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def size(value: float | None) -> str:
    """Decimal units, as storage is sold: 1 kB = 1000 bytes."""
    if value is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:.0f} {unit}"
    return f"{value:.0f} B"


def count(value: float | None) -> str:
    """1,814,073,344 as 1.81 G."""
    if value is None:
        return NONE
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:.0f} {unit}"
    return f"{value:.0f}"


def seconds(value: float | None) -> str:
    if value is None:
        return NONE
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def probability(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def step(method: str, params: dict[str, Any]) -> str:
    """magnitude (sparsity 0.8, allocation uniform, finetune: epochs 2, lr 0.01)."""
    inside = value_text({k: v for k, v in params.items() if v is not None})
    return plain(f"{method} ({inside})" if inside else method)


def value_text(value: Any) -> str:
    """Any JSON value on one line, without braces and quotes at the outer level."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        parts = (
            f"{k}: {{{value_text(v)}}}" if isinstance(v, dict) else f"{k} {value_text(v)}"
            for k, v in value.items()
            if v is not None
        )
        return plain(", ".join(parts))
    if isinstance(value, (list, tuple)):
        return plain(", ".join(value_text(v) for v in value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else plain(value)
