"""A policy as a file: YAML that a person can read and change, and that fits any checkpoint of the same architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from edgecompress import patterns
from edgecompress.errors import UserError, near_misses
from edgecompress.rundir import write_atomically
from edgecompress.studyfile import read_yaml, validate

if TYPE_CHECKING:
    from edgecompress.compress.amc.environment import Units
    from edgecompress.compress.amc.spaces import Space

HEAD = """\
# Fraction kept of each group of channels (granularity: channels) or of each layer's weights (granularity: weights).
# Apply it with {method: amc, policy: THIS_FILE}. A group goes by any layer that writes its channels; names may hold * and ?
# (the pattern that spells out most of a name wins); what no name matches stays whole.
"""


class Policy(BaseModel):
    """What is in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    amc_policy: Literal[1] = Field(description="version of the format")
    granularity: Literal["channels", "weights"] = "channels"
    keep: dict[str, Annotated[float, Field(strict=True)]] = Field(
        min_length=1, description="layer or pattern → fraction kept, above 0 and at most 1"
    )


def read(path: Path) -> Policy:
    """The policy in a file. UserError: no YAML, unknown keys, a fraction that is none."""
    found = validate(Policy, read_yaml(path, example="docs/methods/amc.md"), where=str(path), base=path.parent)
    for name, keep in found.keep.items():
        if not 0 < keep <= 1:
            raise UserError(
                f"keep.{name}: {keep:g} is no fraction that can be kept", where=str(path),
                fix="Give a number above 0 and at most 1; 1 keeps all.",
            )  # fmt: skip
    return found


def text(granularity: str, keep: Mapping[str, float]) -> str:
    """The file's text."""
    body: dict[str, Any] = {"amc_policy": 1, "granularity": granularity, "keep": dict(keep)}
    return HEAD + yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


def write(path: Path, granularity: str, keep: Mapping[str, float]) -> None:
    write_atomically(path, text(granularity, keep))


def restore(path: Path, granularity: str, keep: Mapping[str, float], say: Callable[[str], None]) -> None:
    """Write a file that is gone again, and say so; and where its folder is gone, too, or takes no files, how to come by it."""
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}")
        write(path, granularity, keep)
    except OSError as error:
        say(
            f"warning: amc: {path} is gone and cannot be written again: {error.strerror or error}. Mend that and run the study "
            "again; the search is kept."
        )
    else:
        say(f"amc: {path} was gone and is written again")


def ratios(space: Space, units: Units) -> dict[str, float]:
    """Name → fraction kept, from which `units_of` makes these units again."""
    return {c.name: round(n / c.size, 6) for c, n in zip(space.choices, units, strict=True)}


def unnamed(policy: Policy, space: Space) -> list[str]:
    """The choices that no name of a policy is about."""
    named = {
        choice
        for layer, choice in space.aliases().items()
        if any(patterns.fits(pattern, layer) for pattern in policy.keep)
    }
    return [c.name for c in space.choices if c.name not in named]


def units_of(policy: Policy, space: Space, *, where: str) -> Units:
    """The units that a policy keeps of each choice: the nearest whole number, 1 at least.

    UserError: a name that this network has no group for (a locked one among them), or two names of one group that disagree.
    """
    aliases = space.aliases()
    for pattern in policy.keep:
        if not any(patterns.fits(pattern, layer) for layer in aliases):
            raise UserError(
                f"keep: {pattern!r} matches nothing of this network that can be cut", where=where,
                fix=near_misses(pattern, aliases),
            )  # fmt: skip
    by_layer: dict[str, float] = patterns.of_layers(policy.keep, list(aliases), "keep", partial=True)
    named: dict[str, dict[str, float]] = {}
    for layer, keep in by_layer.items():
        named.setdefault(aliases[layer], {})[layer] = keep
    units = []
    for choice in space.choices:
        given = named.get(choice.name, {})
        if len(set(given.values())) > 1:
            said = ", ".join(f"{layer} {keep:g}" for layer, keep in given.items())
            raise UserError(
                f"keep: {said}: these layers share their channels", where=where, fix="Give them one fraction."
            )
        keep = next(iter(given.values()), 1.0)
        units.append(min(choice.size, max(1, round(choice.size * keep))))
    return tuple(units)
