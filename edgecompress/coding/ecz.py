"""The container file `.ecz`: its head and directory, written and read. `docs/ecz-format.md` has every byte.

Read through a memory map: opening reads the head, and a tensor's bytes when it is asked for. Nothing that the file
declares is believed before it is checked against the file's own length and a limit on what it may unpack to.
"""

from __future__ import annotations

import json
import lzma
import math
import mmap
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgecompress.coding import section_reading
from edgecompress.coding.bitstream import Damaged
from edgecompress.coding.safetensors_file import TensorInfo
from edgecompress.coding.sections import CHUNK, DTYPES, SUPPORT, Bits
from edgecompress.coding.table_bytes import Table, read_table, write_table
from edgecompress.errors import UserError

MAGIC = b"\x93ECZ"
VERSION = 1
HEAD = struct.Struct("<4sHHIIII")
"""Magic, version, flags (0), bytes of the directory in the file, bytes of it unpacked, bytes of the tables, CRC32."""
LIMIT_BYTES = 4 << 30
"""Most bytes that the tensors of a file may unpack to, unless the caller allows more."""
MAX_DIRECTORY = 4 << 20
MAX_DIMENSIONS = 32
# The settings are part of the format, so that the reader takes none from the file.
_FILTERS = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0, "mode": lzma.MODE_NORMAL,
             "mf": lzma.MF_BT4, "nice_len": 273, "depth": 512}]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor of the file. start, stop: the bytes of its section, its CRC32 left out."""

    info: TensorInfo
    start: int
    stop: int


def head(
    model: Mapping[str, Any],
    files: Mapping[str, Sequence[tuple[TensorInfo, int]]],
    tables: Sequence[Table],
) -> tuple[bytes, int]:
    """The file before its sections, and how many bytes of it are code tables.

    model: the content of model.json. files: name → its tensors, each with the bytes of its section, in order.
    """
    described = [
        {
            "name": name,
            "tensors": [info.name for info, _ in tensors],
            "dtypes": [info.dtype for info, _ in tensors],
            "shapes": [list(info.shape) for info, _ in tensors],
            "bytes": [length for _, length in tensors],
        }
        for name, tensors in files.items()
    ]
    text = json.dumps({"model": model, "files": described}, separators=(",", ":"), ensure_ascii=False).encode()
    packed = lzma.compress(text, format=lzma.FORMAT_RAW, filters=_FILTERS)
    table_bytes = b"".join(write_table(table) for table in tables)
    fields = (MAGIC, VERSION, 0, len(packed), len(text), len(table_bytes))
    crc = zlib.crc32(table_bytes, zlib.crc32(packed, zlib.crc32(HEAD.pack(*fields, 0)[:-4])))
    return HEAD.pack(*fields, crc) + packed + table_bytes, len(table_bytes)


class EczFile:
    """An open `.ecz` file: its description, and its tensors one by one. A context manager; `close` ends the map.

    model: the content of model.json. files: name → (tensor name → Entry).
    """

    model: dict[str, Any]
    files: dict[str, dict[str, Entry]]

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """UserError: no such file; not a whole and sound `.ecz`; tensors that unpack to more than `limit_bytes`."""
        self.path = path
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            reason = getattr(error, "strerror", None) or "the file is empty"
            raise UserError(f"cannot be read: {reason}", where=str(path), fix="Give an .ecz file.") from None
        try:
            self._read_head(limit_bytes)
        except Damaged as error:
            self._map.close()
            raise self._refused(str(error)) from None
        except UserError:
            self._map.close()
            raise

    def __enter__(self) -> EczFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._map.close()

    def tensor(self, file: str, name: str) -> Bits:
        """The bit patterns (elements,) of a tensor. UserError: a damaged section."""
        entry = self.files[file][name]
        try:
            section = self._map[entry.start : entry.stop]
            if zlib.crc32(section) != int.from_bytes(self._map[entry.stop : entry.stop + 4], "little"):
                raise Damaged("its checksum is wrong")
            data = memoryview(section)
            if section_reading.form(data) == SUPPORT:
                return self._support(file, entry, data)
            return section_reading.read(data, entry.info.elements, entry.info.size, self._tables)
        except Damaged as error:
            raise self._refused(f"{file}, tensor {name!r}: {error}") from None
        except UserError as error:
            raise UserError(error.what, where=str(self.path), fix=error.fix) from None

    def _support(self, file: str, entry: Entry, data: memoryview) -> Bits:
        first = next(iter(self.files))
        of = self.files[first].get(entry.info.name)
        if len(data) != 1 or file == first or of is None or of.info.elements != entry.info.elements:
            raise Damaged("a section that stands for another tensor's zeros is where there is none")
        source = self.tensor(first, entry.info.name)
        mask = np.empty(source.size, dtype=f"<u{entry.info.size}")
        for start in range(0, source.size, CHUNK):
            mask[start : start + CHUNK] = source[start : start + CHUNK] != 0
        return mask

    def _refused(self, reason: str) -> UserError:
        fix = "Get the file again, or pack the model again."
        return UserError(f"is damaged, or no .ecz file: {reason}", where=str(self.path), fix=fix)

    def _read_head(self, limit_bytes: int) -> None:
        if len(self._map) < HEAD.size:
            raise Damaged("it is shorter than its head")
        magic, version, flags, packed, unpacked, table_bytes, crc = HEAD.unpack(self._map[: HEAD.size])
        if magic != MAGIC:
            raise Damaged("it does not start as one")
        if version != VERSION or flags:
            raise UserError(
                f"has version {version} (flags {flags}); this program reads version {VERSION}",
                where=str(self.path), fix="Unpack it with the program that packed it.",
            )  # fmt: skip
        behind = HEAD.size + packed
        body = behind + table_bytes
        if body > len(self._map) or unpacked > MAX_DIRECTORY:
            raise Damaged("its directory is longer than the file, or than a directory may be")
        if zlib.crc32(self._map[HEAD.size : body], zlib.crc32(self._map[: HEAD.size - 4])) != crc:
            raise Damaged("the checksum of its directory is wrong")
        directory = _directory(self._map[HEAD.size : behind], unpacked)
        self._tables = _tables(self._map[behind:body])
        self.model, self.files = _entries(directory, body)
        last = [entry.stop + 4 for tensors in self.files.values() for entry in tensors.values()]
        if (last[-1] if last else body) != len(self._map):
            raise Damaged("its sections are longer or shorter than the file")
        total = sum(e.info.elements * e.info.size for tensors in self.files.values() for e in tensors.values())
        if total > limit_bytes:
            raise UserError(
                f"its tensors would take {total:,} bytes, more than the limit of {limit_bytes:,}",
                where=str(self.path), fix="Give a higher limit where you trust the file.",
            )  # fmt: skip


def _directory(packed: bytes, length: int) -> dict[str, Any]:
    try:
        text = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(packed, max_length=length + 1)
        value = json.loads(text)
    except (lzma.LZMAError, EOFError, ValueError, RecursionError) as error:
        raise Damaged(f"its directory cannot be read ({type(error).__name__})") from None
    if len(text) != length or not isinstance(value, dict) or set(value) != {"model", "files"}:
        raise Damaged("its directory is not what a directory is")
    return value


def _tables(data: bytes) -> list[Table]:
    view, at, tables = memoryview(data), 0, []
    while at < len(view):
        table, at = read_table(view, at)
        tables.append(table)
    if at != len(view):
        raise Damaged("a code table ends too early")
    return tables


def _entries(directory: dict[str, Any], start: int) -> tuple[dict[str, Any], dict[str, dict[str, Entry]]]:
    model, described = directory["model"], directory["files"]
    if not isinstance(model, dict) or not isinstance(described, list):
        raise Damaged("its directory is not what a directory is")
    files: dict[str, dict[str, Entry]] = {}
    for file in described:
        columns = ("name", "tensors", "dtypes", "shapes", "bytes")
        if not isinstance(file, dict) or set(file) != set(columns) or not _is_file_name(file["name"]):
            raise Damaged("its directory describes a file wrongly")
        values = [file[column] for column in columns[1:]]
        if not all(isinstance(v, list) and len(v) == len(values[0]) for v in values) or file["name"] in files:
            raise Damaged("its directory describes a file wrongly")
        tensors: dict[str, Entry] = {}
        for name, dtype, shape, length in zip(*values, strict=True):
            if not isinstance(name, str) or name in tensors or not isinstance(dtype, str) or dtype not in DTYPES:
                raise Damaged("its directory describes a tensor wrongly")
            if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, [*shape, length])):
                raise Damaged("its directory describes a tensor wrongly")
            if math.prod(shape) >= 1 << 62:
                raise Damaged("its directory describes a tensor that no memory holds")
            tensors[name] = Entry(TensorInfo(name, dtype, tuple(shape)), start, start + length)
            start += length + 4
        files[file["name"]] = tensors
    return model, files


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_file_name(name: Any) -> bool:
    """A plain name, so that unpacking writes inside its directory and over nothing of its own."""
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and name[0] != "."
        and not set(name) & set("/\\:\0")
        and name.isprintable()
        and len(name) <= 100
    )
