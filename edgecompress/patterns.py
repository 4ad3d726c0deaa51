"""Values per layer, as a user gives them: one for all layers, or a mapping from patterns of layer names to values."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import TypeVar

from edgecompress.errors import UserError, near_misses

ValueT = TypeVar("ValueT")


def of_layers(given: ValueT | Mapping[str, ValueT], layers: Iterable[str], key: str) -> dict[str, ValueT]:
    """The value of each layer. In a mapping `*` and `?` match as in file names, and the pattern with most other characters wins.

    key: the parameter's name, for messages. UserError: a pattern that matches no layer, a layer that no pattern matches, or
    two patterns that match a layer equally well and disagree.
    """
    names = list(layers)
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    for pattern in given:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"{key}: {pattern!r} matches none of the layers", fix=near_misses(pattern, names))
    return {name: _best(given, name, key) for name in names}


def _best(given: Mapping[str, ValueT], name: str, key: str) -> ValueT:
    matching = [pattern for pattern in given if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
        raise UserError(
            f"{key}: no pattern matches the layer {name}",
            fix="Add one ('*' matches every layer), or exclude the layer.",
        )
    best = max(_literal(pattern) for pattern in matching)
    chosen = [pattern for pattern in matching if _literal(pattern) == best]
    if any(given[pattern] != given[chosen[0]] for pattern in chosen):
        raise UserError(
            f"{key}: {' and '.join(map(repr, chosen))} match the layer {name} equally well", fix=f"Name it: {name!r}."
        )
    return given[chosen[0]]


def _literal(pattern: str) -> int:
    """How much of a name the pattern spells out."""
    return sum(character not in "*?[]" for character in pattern)
