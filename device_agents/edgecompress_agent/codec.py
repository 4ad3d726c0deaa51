"""Strict JSON of frozen dataclasses: every type is checked, because what the other side sent is untrusted input.

Understands int, float, str, bool, Any, dataclasses, Optional[X], Tuple[X, ...] and Dict[str, X], nested. A record with a field
`protocol` is of the version that is this field's default, and refused when it says another.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from typing import Any, Type, TypeVar, Union

Record = TypeVar("Record")

_WANTED = {int: "an integer", str: "text", bool: "true or false"}
_LARGEST = sys.float_info.max
_MOST_PARTS = 1_000_000
"""Lists and objects, or texts, of one message: as Python's objects they take up to forty times their size. A result has two for
each image that it scored."""


class WireError(ValueError):
    """What the other side sent is not what this protocol version says: the message names the field."""


def need(true: bool, where: str, wanted: str, got: Any) -> None:
    """WireError unless `true`."""
    if not true:
        raise WireError(f"{where} must be {wanted}, not {short(got)}")


def to_json(record: Any) -> Any:
    """Plain JSON values: dataclasses to dicts, tuples to lists."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, (list, tuple)):
        # latencies are lists of a million plain integers: no call for each of them
        return list(record) if all(type(v) is int for v in record) else [to_json(v) for v in record]
    if isinstance(record, dict):
        return {str(k): to_json(v) for k, v in record.items()}
    return record


def from_json(kind: Type[Record], value: Any) -> Record:
    """The record of type `kind` from JSON values. WireError: other protocol, unknown or missing fields, wrong types."""
    return typing.cast(Record, _read(kind, value, getattr(kind, "__name__", str(kind))))


def encode(record: Any) -> bytes:
    """One line of compact JSON, UTF-8, without the line's end."""
    return json.dumps(to_json(record), separators=(",", ":"), allow_nan=False).encode()


def decode(kind: Type[Record], data: bytes) -> Record:
    """The record in JSON bytes. WireError as in `from_json`, and for what is not JSON."""
    parts = max(data.count(b"[") + data.count(b"{"), data.count(b'"') // 2)
    if parts > _MOST_PARTS:
        raise WireError(f"{getattr(kind, '__name__', kind)}: {parts} lists, objects or texts are no message of ours")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"{getattr(kind, '__name__', kind)}: not JSON: {error}") from None
    return from_json(kind, value)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Union:  # Optional is the only union here
        return None if value is None else _read(inner[0], value, where)
    if origin is tuple:
        need(isinstance(value, list), where, "a list", value)
        if inner[0] is int and all(type(v) is int for v in value):
            return tuple(value)
        return tuple(_read(inner[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        need(isinstance(value, dict), where, "an object", value)
        return {k: _read(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, value, where)
    if kind is float:
        # the bound keeps an integer of a thousand digits from overflowing
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
        need(number, where, "a finite number", value)
        return float(value)
    need(type(value) is kind, where, _WANTED[kind], value)
    return value


def _read_record(kind: Any, value: Any, where: str) -> Any:
    need(isinstance(value, dict), where, "an object", value)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if "protocol" in fields and value.get("protocol") != fields["protocol"].default:
        raise WireError(
            f"{where} is of protocol {short(value.get('protocol'))}, this side speaks {fields['protocol'].default}: "
            "host and agent are of different versions of edgecompress"
        )
    unknown = sorted(set(value) - set(fields))
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [n for n in needed if n not in value]
    if unknown or missing:
        raise WireError(f"{where}: unknown fields {short(unknown)}, missing fields {short(missing)}")
    hints = typing.get_type_hints(kind)
    return kind(**{k: _read(hints[k], v, f"{where}.{k}") for k, v in value.items()})


def short(value: Any) -> str:
    """At most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
