"""results.csv: one line per row, for spreadsheets. Lists and objects are JSON in their cell; comparisons are dotted columns."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from edgecompress.report import fields, wording

FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the start of a formula; plain text is kept from being one by an apostrophe."""


def render(document: dict[str, Any]) -> str:
    """Header and rows, RFC 4180. Empty: null (the reason stands in the column beside it)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(name for field in fields.ROW for name in _columns(field))
    for row in document["rows"]:
        writer.writerow(cell for field in fields.ROW for cell in _cells(field, row[field.name]))
    return out.getvalue()


def _columns(field: fields.Field) -> list[str]:
    if field.unit != "comparison":
        return [field.name]
    return [f"{field.name}.{part.name}" for part in fields.COMPARISON]


def _cells(field: fields.Field, value: Any) -> list[Any]:
    if field.unit != "comparison":
        return [_cell(value)]
    return [_cell(value[part.name] if value else None) for part in fields.COMPARISON]


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = "; ".join(value)
    text = wording.plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return f"'{text}" if text.startswith(FORMULA) else text
