"""Weights from and to disk. Nothing here runs code from a file: safetensors, or `torch.load(weights_only=True)`.

A saved model is a directory: `model.json` (format version, spec, classes, input shape, sha256 of the other files, the
channels that are kept of the spec's network where some were cut, and under `shared_values` the parameters whose weights share
values, which the values themselves tell), `weights.safetensors`, and `masks.safetensors` where parameters are masked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import StrictInt, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgecompress import codebooks, masks, quantization
from edgecompress.errors import UserError
from edgecompress.models import kept as kept_channels
from edgecompress.models import origin
from edgecompress.models.building import InShape, check_output, construct
from edgecompress.study import ModelSpec

FORMAT = 1
SHOWN = 5
"""Keys of each kind that a message names."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` in place from a checkpoint (values converted to the parameters' type and device). Strict.

    A dictionary under "state_dict", "model_state_dict" or "model" is unwrapped, and a `module.` that starts every key is
    dropped; BN's num_batches_tracked may be absent. UserError: unreadable file, or the keys that do not fit.
    """
    given = _strip_prefix(_unwrap(_read(path), path))
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in wanted]
    differing = [
        f"{k} {tuple(given[k].shape)} for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in given and given[k].shape != wanted[k].shape
    ]
    if missing or unexpected or differing:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        raise UserError(
            "is no checkpoint of this model: " + "; ".join(_some(kind, keys) for kind, keys in kinds if keys),
            where=str(path),
            fix="Give the model (name, width, args, classes of the data) that these weights were trained with.",
        )
    model.load_state_dict(given, strict=False)


def _some(kind: str, keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{kind}: {', '.join(keys[:SHOWN])}{more}"


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError("no such file", where=str(path), fix="Give the path of a checkpoint.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"not a safetensors file: {error}", where=str(path), fix="Save it again.") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            "holds more than tensors (Python objects that would run code when read), and is refused",
            where=str(path),
            fix="Where it comes from, save torch.save(model.state_dict(), …) or safetensors.",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # Each of these is what some broken or foreign file makes torch.load raise.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot be read as a checkpoint: {reason}",
            where=str(path),
            fix="Give a .safetensors file, or one that torch.save(model.state_dict(), …) wrote.",
        ) from None


def _unwrap(value: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    fix = "Give a state dict, bare or under 'state_dict', 'model_state_dict' or 'model'."
    if not isinstance(value, Mapping):
        raise UserError(f"holds a {type(value).__name__}, no state dict (names to tensors)", where=str(path), fix=fix)
    if not value or not all(isinstance(v, Tensor) for v in value.values()):
        keys = ", ".join(str(k) for k in list(value)[:SHOWN]) or "nothing"
        raise UserError(f"holds no state dict (names to tensors) but {keys}", where=str(path), fix=fix)
    return dict(value)


def _strip_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the `module.` that DataParallel puts before every key."""
    if all(k.startswith("module.") for k in state):
        return {k.removeprefix("module."): v for k, v in state.items()}
    return state


def save_model(directory: Path, model: nn.Module, *, num_classes: int = 0, in_shape: InShape | None = None) -> None:
    """Write a model directory; files that are there are replaced, each at once, `model.json` last.

    A network that `build` made can be built again from it. For a module of the caller's own, num_classes and in_shape
    (C, H, W) must be given, and `load_model` must be given the module to fill.
    """
    known = origin(model)
    if known is not None:
        num_classes, in_shape = known.num_classes, known.in_shape
    if in_shape is None or num_classes < 1:
        raise UserError(
            "a network of one's own is saved with its num_classes and in_shape",
            where=str(directory),
            fix="save_model(directory, model, num_classes=…, in_shape=(C, H, W)).",
        )
    spec = known.spec if known else None
    directory.mkdir(parents=True, exist_ok=True)
    kept = masks.get(model)
    files = {"weights.safetensors": _write_tensors(directory / "weights.safetensors", model.state_dict())}
    if kept:
        files["masks.safetensors"] = _write_tensors(directory / "masks.safetensors", kept)
    description: dict[str, Any] = {
        "format": FORMAT,
        "model": None if spec is None else spec.model_dump(mode="json", exclude={"weights"}),
        "architecture": "the caller's own torch.nn.Module" if spec is None else spec.name,
        "num_classes": num_classes,
        "in_shape": list(in_shape),
        "files": files,
    }
    cut = kept_channels.get(model)
    if cut:
        description["kept"] = {
            name: {side: list(index) for side, index in sides.items()} for name, sides in cut.items()
        }
    shared = sorted(codebooks.get(model))
    if shared:
        description["shared_values"] = shared
    settings = quantization.get(model)
    if settings != quantization.DEFAULT:
        description["quantization"] = dataclasses.asdict(settings)
    _replace(directory / "model.json", json.dumps(description, indent=1).encode())
    if not kept:
        (directory / "masks.safetensors").unlink(missing_ok=True)


def load_model(directory: Path, model: nn.Module | None = None) -> nn.Module:
    """The network of a model directory, in eval mode, masks and codes in place. No dataset is needed.

    model: the module to fill, for a directory that `save_model` wrote without a spec; with a spec it may be left out. It is
    the network before channels were cut out of it: they are cut here.
    UserError: not a model directory, an unfinished or damaged one, a module that does not fit.
    """
    description = _describe(directory)
    for name, digest in description["files"].items():
        path = directory / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError(
                "is damaged, or was not written to its end", where=str(path), fix="Make the model directory again."
            )
    num_classes, in_shape = description["num_classes"], tuple(description["in_shape"])
    if model is None:
        if description["model"] is None:
            raise UserError(
                "holds the weights of the caller's own network, and cannot build it",
                where=str(directory),
                fix="Pass the network: load_model(directory, model).",
            )
        try:
            spec = ModelSpec.model_validate(description["model"])
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise UserError(
                f"describes no model that this version builds: {reason}",
                where=str(directory / "model.json"),
                fix="Make the model directory again.",
            ) from None
        model = construct(spec, num_classes=num_classes, in_shape=in_shape, seed=0, pretrained=False)
    else:
        check_output(model, num_classes=num_classes, in_shape=in_shape, where=str(directory))
    _cut(model, description.get("kept", {}), directory)
    load_weights(model, directory / "weights.safetensors")
    masks.strip(model)
    if "masks.safetensors" in description["files"]:
        masks.put(model, load_file(directory / "masks.safetensors"))
    codebooks.strip(model)
    codebooks.put_by_value(model, description.get("shared_values", []))
    if "quantization" in description:
        quantization.put(model, _settings(description["quantization"], directory))
    return model.eval()


def _cut(model: nn.Module, recorded: Any, directory: Path) -> None:
    """Make the channels of a base network those that model.json records. A module that was cut in the same way is left."""
    where, fix = str(directory / "model.json"), "Give the network as it was before its channels were cut."
    try:
        sides_of = TypeAdapter(dict[str, dict[Literal["in", "out"], tuple[StrictInt, ...]]]).validate_python(recorded)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise UserError(f"kept: {reason}", where=where, fix="Make the model directory again.") from None
    present = kept_channels.get(model)
    if present == sides_of:
        return
    if present:
        raise UserError("holds another cut than that of the network to fill", where=where, fix=fix)
    try:
        kept_channels.cut(model, sides_of)
    except UserError as error:
        raise UserError(error.what, where=where, fix=fix) from None


def _settings(value: Any, directory: Path) -> quantization.Quantization:
    try:
        return TypeAdapter(quantization.Quantization).validate_python(value)
    except ValidationError as error:
        raise UserError(
            f"holds settings of quantisation that this version does not know: {error.errors(include_url=False)[0]['msg']}",
            where=str(directory / "model.json"),
            fix="Make the model directory again.",
        ) from None


def _describe(directory: Path) -> dict[str, Any]:
    path = directory / "model.json"
    fix = "Give a directory that edgecompress wrote (with model.json and weights.safetensors)."
    if not path.is_file():
        raise UserError("is no model directory: model.json is missing", where=str(directory), fix=fix)
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        raise UserError("is not valid JSON", where=str(path), fix=fix) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        version = value.get("format") if isinstance(value, dict) else None
        raise UserError(
            f"has format {version!r}; this version reads {FORMAT}",
            where=str(path),
            fix="Make it again with this version.",
        )
    absent = [key for key in ("model", "num_classes", "in_shape", "files") if key not in value]
    if absent:
        raise UserError(f"lacks {', '.join(absent)}", where=str(path), fix=fix)
    return value


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file at once; its sha256. Every tensor is a copy, so that tied weights may be saved."""
    copies = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"the model's state {name!r} is no tensor", fix="Keep extra state out of the state dict.")
        copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(copies, partial)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    _finish(partial, path)
    return digest


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    _finish(partial, path)


def _finish(partial: Path, path: Path) -> None:
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    partial.replace(path)
