"""Layers by name, as a user gives them: patterns in which `*` and `?` match as in file names, and values by pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from edgecompress.errors import UserError, near_misses

ValueT = TypeVar("ValueT")


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


LayerNames = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
"""Type of a method's parameter: one pattern or several."""


def fits(pattern: str, layer: str) -> bool:
    """Whether a pattern matches a layer's name."""
    return fnmatch.fnmatchcase(layer, pattern)


def matching(given: Iterable[str], layers: Iterable[str], key: str) -> list[str]:
    """The layers that a pattern matches, in their order. key: the parameter's name. UserError: a pattern that matches none."""
    names = list(layers)
    found: set[str] = set()
    for pattern in given:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise UserError(
                f"{key}: {pattern!r} matches no convolution or linear layer", fix=near_misses(pattern, names)
            )
        found.update(matched)
    return [name for name in names if name in found]


def of_layers(
    given: ValueT | Mapping[str, ValueT], layers: Collection[str], key: str, *, partial: bool = False
) -> dict[str, ValueT]:
    """The value of each layer: one for all, or by pattern, of which the one with most other characters than `*` and `?` wins.

    partial: layers that no pattern matches are left out. UserError: a pattern that matches no layer, a layer that none
    matches (unless partial), or two patterns that match a layer equally well and disagree.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(layers, given)
    matched = matching(given, layers, key)
    for name in () if partial else layers:
        if name not in matched:
            raise UserError(
                f"{key}: no pattern matches the layer {name}",
                fix="Add one ('*' matches every layer), or exclude the layer.",
            )
    return {name: _best(given, name, key) for name in matched}


def _best(given: Mapping[str, ValueT], name: str, key: str) -> ValueT:
    fitting = [pattern for pattern in given if fits(pattern, name)]
    best = max(_literal(pattern) for pattern in fitting)
    chosen = [pattern for pattern in fitting if _literal(pattern) == best]
    if any(given[pattern] != given[chosen[0]] for pattern in chosen):
        raise UserError(
            f"{key}: {' and '.join(map(repr, chosen))} match the layer {name} equally well", fix=f"Name it: {name!r}."
        )
    return given[chosen[0]]


def _literal(pattern: str) -> int:
    """How much of a name the pattern spells out."""
    return sum(character not in "*?[]" for character in pattern)
