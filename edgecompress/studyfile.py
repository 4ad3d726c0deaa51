"""Read a study or device file: safe YAML, no key twice, `${NAME}` from the environment, mistakes as one readable message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edgecompress.device_profile import WRITTEN, DeviceProfile
from edgecompress.errors import UserError, near_misses
from edgecompress.study import StudySpec

SpecT = TypeVar("SpecT", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping key that stands twice (YAML itself lets the last one win in silence)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the name {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


DEVICE_EXAMPLE = "profiles/devices/raspberry-pi-5.yaml"


def read_yaml(path: Path, *, example: str = "profiles/studies/quickstart.yaml") -> dict[str, Any]:
    """The mapping in a YAML file, environment variables filled in. UserError names the file, line and column. example: such a file,
    for who has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot be read: {reason}", where=str(path), fix="Give the path of a YAML file.") from None
    try:
        value = _UniqueKeyLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(
            f"not valid YAML: {error.problem}", where=at, fix="Mend the line; every name may stand once."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"not valid YAML: {error}", where=str(path), fix="Mend the file.") from None
    if not isinstance(value, dict):
        what = ("is empty, and " if value is None else "") + "must be a mapping of keys to values"
        raise UserError(what, where=str(path), fix=f"See {example}.")
    return {str(k): _environment(v, f"{path}: {k}") for k, v in value.items()}


def _environment(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {k: _environment(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_environment(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise UserError(f"the environment variable {name} is not set", where=where, fix=f"export {name}=…")
        return os.environ[name]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", fill, value)


def apply_settings(value: dict[str, Any], settings: list[str]) -> None:
    """Apply `--set a.b=value` to the raw mapping, in place: values are YAML, list items are numbers (`recipes.x.0.sparsity`)."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"{setting!r} is not key=value", where="--set", fix="For example --set measure.min_s=2")
        new = yaml_value(text, setting, where="--set")
        *parents, last = key.split(".")
        target: Any = value
        for part in parents:
            target = _child(target, part, setting)
        if isinstance(target, list):
            _child(target, last, setting)
            target[int(last)] = new
        else:
            target[last] = new


def yaml_value(text: str, setting: str, *, where: str) -> Any:
    """The YAML value in a text of the command line. UserError, naming the whole setting, for what a file may not hold either."""
    try:
        return _UniqueKeyLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(
            f"the value of {setting!r} is not valid YAML: {problem}", where=where, fix="Quote it."
        ) from None


def _child(target: Any, part: str, setting: str) -> Any:
    if isinstance(target, list):
        if not (part.isascii() and part.isdigit()) or int(part) >= len(target):
            raise UserError(
                f"{setting!r}: no item {part!r} in a list of {len(target)}", where="--set", fix="Items count from 0."
            )
        return target[int(part)]
    child = target.setdefault(part, {})
    if not isinstance(child, (dict, list)):
        raise UserError(f"{setting!r}: {part!r} holds a plain value", where="--set", fix="Set that key itself.")
    return child


_PLAIN = {"tuple_type": "Input should be a list", "dict_type": "Input should be a mapping of keys to values"}
"""YAML's words for what Python calls otherwise."""


def _messages(error: ValidationError, model: type[BaseModel], also: tuple[str, ...]) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        key = ""
        for part in location:
            if isinstance(part, int):
                key += f"[{part}]"
            elif not (part.startswith("function-") or part.endswith("]")):
                key += f".{part}" if key else str(part)
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        message = _PLAIN.get(detail["type"], message)
        if detail["type"] == "extra_forbidden":
            known = [*_fields_at(model, location[:-1]), *(also if len(location) == 1 else ())]
            message = f"unknown key. {near_misses(str(location[-1]), known)}"
        elif detail["type"] == "string_pattern_mismatch":
            allowed = WRITTEN.get(detail["ctx"]["pattern"], f"must match {detail['ctx']['pattern']}")
            message = f"{allowed}, not {detail['input']!r}"
        elif detail["type"] == "too_short":
            least = detail["ctx"]["min_length"]
            message = f"needs at least {least} item{'s' if least > 1 else ''}"
        elif detail["type"] == "missing":
            message = "is needed and missing"
        elif (
            "input" in detail
            and detail["type"] not in ("value_error", "missing", "too_short")
            and not isinstance(detail["input"], dict)
        ):
            message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
        yield f"{key}: {message}" if key else message


def _fields_at(model: Any, location: tuple[Any, ...]) -> list[str]:
    """Field names of the model at a location, for the near misses of an unknown key."""
    import typing

    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        candidates = [field.annotation, *typing.get_args(field.annotation)]
        model = next((c for c in candidates if hasattr(c, "model_fields")), model)
    return list(getattr(model, "model_fields", {}))


def validate(model: type[SpecT], value: dict[str, Any], *, where: str, base: Path, also: tuple[str, ...] = ()) -> SpecT:
    """The value as `model`, relative paths under `base`. UserError: one line for each mistake, with the file and the key.

    also: keys that would have made it something else, which a wrong one may have meant.
    """
    try:
        return model.model_validate(value, context={"base": base})
    except ValidationError as error:
        lines = list(_messages(error, model, also))
        raise UserError("\n".join([lines[0], *(f"{where}: {line}" for line in lines[1:])]), where=where) from None


def read_study(path: Path, settings: list[str] | None = None) -> StudySpec:
    """The study in a file, with `--set` settings applied."""
    raw = read_yaml(path)
    apply_settings(raw, settings or [])
    return validate(StudySpec, raw, where=str(path), base=path.resolve().parent)


def shipped_profiles(kind: str) -> dict[str, Path]:
    """Name → file of the profiles that come with the package; kind: 'devices' or 'studies'."""
    beside = Path(__file__).resolve().parent.parent / "profiles" / kind
    folder = beside if beside.is_dir() else Path(str(resources.files("edgecompress.profiles") / kind))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def device_file(name_or_file: str, *, base: Path | None = None, where: str = "") -> Path:
    """The file of a device: a shipped name's, or the path itself (relative to `base`, default the current directory)."""
    base = base or Path()
    shipped = shipped_profiles("devices")
    if name_or_file.endswith((".yaml", ".yml")) or "/" in name_or_file:
        path = Path(name_or_file).expanduser()
        return path if path.is_absolute() else base / path
    if name_or_file in shipped:
        return shipped[name_or_file]
    raise UserError(
        f"unknown device {name_or_file!r}",
        where=where,
        fix=near_misses(name_or_file, shipped) + " Or give a .yaml file.",
    )


def read_device(name_or_file: str, *, base: Path | None = None, where: str = "") -> DeviceProfile:
    """A device profile by its shipped name, or from a file (relative to `base`, default the current directory)."""
    path = device_file(name_or_file, base=base, where=where)
    raw = read_yaml(path, example=DEVICE_EXAMPLE)
    if "pool" in raw:
        boards = ", ".join(map(str, raw["pool"])) if isinstance(raw["pool"], list) else "see its file"
        raise UserError(
            "is a pool of boards, and one board is needed here", where=str(path), fix=f"Name one of them: {boards}."
        )
    return validate(DeviceProfile, raw, where=str(path), base=path.resolve().parent, also=("pool",))
