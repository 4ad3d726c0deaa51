"""results.json: the whole document, as docs/results-format.md describes it."""

from __future__ import annotations

import json
from typing import Any


def render(document: dict[str, Any]) -> str:
    """Indented JSON with a line's end; never NaN or Infinity."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
