"""The short form `NAME[:key=value,...]` of a dataset or a step on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecompress.errors import UserError
from edgecompress.study import DataSpec, Step
from edgecompress.studyfile import validate, yaml_value


def short_form(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """`name:key=value,...` as (name, values); values are YAML, so lists and mappings keep their brackets and commas."""
    name, _, rest = text.partition(":")
    return name, key_values(_split(rest), option) if rest else {}


def key_values(
    settings: list[str], option: str, example: str = "magnitude:sparsity=0.8,allocation=global"
) -> dict[str, Any]:
    """`key=value` texts as a dict; values are YAML. UserError for anything else, and for a key that stands twice."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UserError(
                f"{setting!r} is not key=value",
                where=option,
                fix=f"For example {example}",
            )
        if key in values:
            raise UserError(f"{key!r} stands twice", where=option, fix="Give it once.")
        values[key] = yaml_value(value, setting, where=option)
    return values


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and no quote."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return parts


def data_spec(text: str) -> DataSpec:
    name, values = short_form(text, "--data")
    return validate(DataSpec, {"name": name, **values}, where="--data", base=Path())


def step(text: str) -> Step:
    method, values = short_form(text, "--step")
    return validate(Step, {"method": method, "params": values}, where="--step", base=Path())
