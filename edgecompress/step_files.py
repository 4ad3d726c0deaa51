"""The files that the steps of a study name. Those that they read are part of their keys, by what is in them, and so have to be
there, and done with, when the study is planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecompress.rundir import file_sha256

_READ = ("weights", "policy")
_WRITTEN = "save"
"""Parameters of steps that name files."""


def hashes(params: Any) -> list[str]:
    """SHA-256 of the files that a step's parameters name as weights or policy: another file under the same name is another step.

    (In the args of a network of torchvision's, weights may be a name.)
    """
    return [file_sha256(path) for path in map(Path, _named(params)) if path.is_file()]


def _named(params: Any) -> Iterator[str]:
    if isinstance(params, Mapping):
        yield from (value for key, value in params.items() if key in _READ and isinstance(value, str))
        params = list(params.values())
    if isinstance(params, (list, tuple)):
        for value in params:
            yield from _named(value)


def refuse_saved_and_read(recipes: Any, base: Path) -> None:
    """ValueError where a step reads a file that a step of the same study saves: it would be planned with what is in it before.

    recipes: as they are written, whatever is wrong in them; relative paths are under base.
    """
    steps = list(_steps(recipes))
    saved = {_path(params[_WRITTEN], base): place for place, params in steps if isinstance(params.get(_WRITTEN), str)}
    for place, params in steps:
        for name in _named(params):
            writer = saved.get(_path(name, base))
            if writer is not None:
                raise ValueError(
                    f"{place} reads {name}, which {writer} saves in this same study: it may not be there yet, or change. Do the "
                    "search in a study of its own, or copy the file once it is done and name the copy; or put what comes after the "
                    "search into its recipe, as further steps"
                )


def _path(name: str, base: Path) -> Path:
    """As the file system has it; what it cannot follow (a symlink loop, nobody's home) is for the parameter's own check."""
    try:
        return (base / Path(name).expanduser()).resolve()
    except RuntimeError:
        return base / name


def _steps(recipes: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, parameters) of every step."""
    if not isinstance(recipes, Mapping):
        return
    for recipe, steps in recipes.items():
        for number, step in enumerate(steps if isinstance(steps, (list, tuple)) else (), 1):
            params = step if isinstance(step, Mapping) else getattr(step, "params", {})
            if set(params) == {"method", "params"} and isinstance(params["params"], Mapping):
                params = params["params"]
            yield f"step {number} of {recipe}", params
