"""A model directory into one `.ecz` file and back, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.coding import safetensors_file, sections, tables
from edgecompress.coding.ecz import HEAD, LIMIT_BYTES, EczFile, head
from edgecompress.coding.safetensors_file import TensorInfo
from edgecompress.coding.sections import Bits, Coded
from edgecompress.coding.sizes import PackReport, tensor_size
from edgecompress.errors import UserError

_DESCRIPTION = "model.json"
_MAIN = "weights.safetensors"


def pack(directory: Path, out: Path, *, coder: str = "huffman") -> PackReport:
    """Write the model directory (model.json and the files that it names) as an `.ecz` file, and say where its bytes go.

    Nothing is rounded: every tensor is kept bit by bit. The same directory makes the same bytes. Other files of the
    directory are not part of the model and stay out. coder: "huffman", or "range" to take constriction's range coder where it
    is the smaller (the extra `range`, also to unpack). UserError: no model directory, a damaged one, an `out` that exists.
    """
    allowed = tables.coders(coder)
    if out.exists():
        raise UserError("is there already", where=str(out), fix="Choose another name; nothing is overwritten.")
    description, sources = _read_directory(directory)
    main = {info.name: bits for info, bits in sources[_MAIN]}
    plans: list[tuple[str, TensorInfo, Bits, Coded]] = []
    for file, tensors in sources.items():
        for info, bits in tensors:
            of = main.get(info.name) if file != _MAIN else None
            plans.append((file, info, bits, sections.plan(bits, info.kind, support_of=of)))
    pool, picks = tables.choose([stream for *_, coded in plans for stream, _ in coded.streams], allowed)
    waiting = iter(picks)
    lengths: dict[str, list[tuple[TensorInfo, int]]] = {file: [] for file in sources}
    rows = []
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    body = out.with_name(f".{out.name}.{os.getpid()}.body")
    try:
        with body.open("wb") as target:
            for file, info, bits, coded in plans:
                own = [next(waiting) for _ in coded.streams]
                parts = sections.write(coded, bits, pool, own)
                crc = 0
                for part in parts:
                    crc = zlib.crc32(part, crc)
                    target.write(part)
                target.write(crc.to_bytes(4, "little"))
                lengths[file].append((info, sum(map(len, parts))))
                coded_bits = [
                    0 if pick is None else tables.written_bits(stream.counts, pool[pick], part)
                    for (stream, _), pick, part in zip(coded.streams, own, parts[1:], strict=False)
                ]
                rows.append(tensor_size(file, info, coded, parts, coded_bits))
        start, table_bytes = head(description, lengths, pool)
        with partial.open("wb") as target, body.open("rb") as written:
            target.write(start)
            shutil.copyfileobj(written, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        file_bytes = partial.stat().st_size
        partial.replace(out)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), fix="Choose another place.") from None
    finally:
        body.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    source_bytes = sum((directory / name).stat().st_size for name in [_DESCRIPTION, *sources])
    return PackReport(
        tensors=tuple(rows), table_bytes=table_bytes, head_bytes=HEAD.size,
        directory_bytes=len(start) - table_bytes - HEAD.size, file_bytes=file_bytes, source_bytes=source_bytes,
    )  # fmt: skip


def unpack(path: Path, directory: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Write the model directory that `pack` took. limit_bytes: most bytes that the tensors may take.

    UserError: a damaged file; tensors above the limit; a directory that is not empty. Then nothing is written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError("is there already and not empty", where=str(directory), fix="Choose another directory.")
    with EczFile(path, limit_bytes=limit_bytes) as packed:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as work:
                whole = Path(work) / "model"
                whole.mkdir()
                _write_files(packed, whole)
                whole.replace(directory)
        except OSError as error:
            raise UserError(
                f"cannot be written: {error.strerror}", where=str(directory), fix="Choose another directory."
            ) from None


def _write_files(packed: EczFile, directory: Path) -> None:
    digests = packed.model.get("files")
    if not isinstance(digests, dict) or set(digests) != set(packed.files):
        raise UserError(
            "is damaged, or no .ecz file: its model.json names other files", where=str(packed.path),
            fix="Get the file again, or pack the model again.",
        )  # fmt: skip
    for file, tensors in packed.files.items():
        digest = hashlib.sha256()
        with (directory / file).open("wb") as stream:
            start = safetensors_file.header([entry.info for entry in tensors.values()])
            digest.update(start)
            stream.write(start)
            for name in tensors:
                data = packed.tensor(file, name).data
                digest.update(data)
                stream.write(data)
        if digest.hexdigest() != digests[file]:
            raise UserError(
                f"is damaged: {file} is not what was packed (another sha256)", where=str(packed.path),
                fix="Get the file again, or pack the model again.",
            )  # fmt: skip
    (directory / _DESCRIPTION).write_bytes(_json_bytes(packed.model))


def _read_directory(directory: Path) -> tuple[dict[str, Any], dict[str, list[tuple[TensorInfo, Bits]]]]:
    """The description and the tensors of each file, the weights first."""
    fix = "Give a directory that edgecompress wrote (with model.json and weights.safetensors)."
    path = directory / _DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
        digests = description["files"]
        names = sorted(digests, key=lambda name: (name != _MAIN, name))
    except OSError:
        raise UserError("is no model directory: model.json is missing", where=str(directory), fix=fix) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError("is no description of a model", where=str(path), fix=fix) from None
    if _MAIN not in names or not all(name.endswith(".safetensors") for name in names):
        raise UserError("names files that are no safetensors, or no weights", where=str(path), fix=fix)
    sources = {}
    described = dict(digests)
    for name in names:
        file = directory / name
        if not file.is_file() or _sha256(file) != digests[name]:
            raise UserError("is damaged, or was not written to its end", where=str(file), fix="Make the model again.")
        sources[name] = safetensors_file.read(file)
        # Of a file that another version of safetensors wrote the tensors are kept, and the header is written anew.
        described[name] = _sha256_again(sources[name])
    return {**description, "files": described}, sources


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_again(tensors: list[tuple[TensorInfo, Bits]]) -> str:
    digest = hashlib.sha256(safetensors_file.header([info for info, _ in tensors]))
    for _, bits in tensors:
        digest.update(np.ascontiguousarray(bits).data)
    return digest.hexdigest()


def _json_bytes(description: dict[str, Any]) -> bytes:
    """As `models.checkpoint.save_model` writes it."""
    return json.dumps(description, indent=1).encode()
