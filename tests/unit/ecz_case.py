"""A small model directory with a tensor for each form of the container, and files bent in each way that a reader must survive."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgecompress.coding import ecz
from edgecompress.coding.bitstream import Damaged
from edgecompress.coding.table_bytes import write_varint


def write_model(directory: Path, seed: int = 0, size: int = 6000) -> Path:
    """model.json, weights.safetensors and masks.safetensors, as `save_model` writes them."""
    rng = np.random.default_rng(seed)
    few = rng.choice(np.linspace(-1, 1, 8, dtype=np.float32), size)
    sparse = np.where(rng.random(size) < 0.1, few, np.float32(0))
    rare = np.where(rng.random(size) < 0.002, few, np.float32(0))
    dense = np.where(rng.random(size) < 0.9, few, np.float32(0))
    weights = {
        "sparse": sparse.reshape(-1, 10, 3), "rare": rare, "dense": dense.reshape(2, -1), "zeros": np.zeros((3, 7), np.float32),
        "one_value": np.where(sparse, np.float32(0.5), np.float32(0)), "float": rng.normal(size=(size // 20, 5)).astype(np.float32),
        "tiny": rng.normal(size=3).astype(np.float32), "count": np.array(17), "nothing": np.zeros((0, 4), np.float32),
        "odd": np.array([-0.0, np.nan, np.inf, 0.0] * 50, np.float32), "half": (sparse * 3).astype(np.float16),
        "bytes": rng.integers(-9, 9, size).astype(np.int8), "double": rng.normal(size=40),
    }  # fmt: skip
    masks = {
        "sparse": weights["sparse"] != 0,
        "dense": (dense != 0).reshape(2, -1) & (rng.random((2, size // 2)) < 0.99),
    }
    directory.mkdir(parents=True)
    files = {}
    for name, tensors in (("weights.safetensors", weights), ("masks.safetensors", masks)):
        save_file(tensors, directory / name)
        files[name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    description = {
        "format": 1,
        "model": None,
        "num_classes": 2,
        "in_shape": [1, 2, 2],
        "later": {"ü": [1, None]},
        "files": files,
    }
    (directory / "model.json").write_bytes(json.dumps(description, indent=1).encode())
    return directory


def with_good_checksums(data: bytes) -> bytes:
    """The file with the CRC32 of its head and of every section that its directory places made right again."""
    bent = bytearray(data)
    if len(bent) < ecz.HEAD.size:
        return data
    magic, version, flags, packed, unpacked, tables, _ = ecz.HEAD.unpack(bent[: ecz.HEAD.size])
    body = ecz.HEAD.size + packed + tables
    fields = (magic, version, flags, packed, unpacked, tables)
    crc = zlib.crc32(bent[ecz.HEAD.size : body], zlib.crc32(ecz.HEAD.pack(*fields, 0)[:-4]))
    bent[: ecz.HEAD.size] = ecz.HEAD.pack(*fields, crc)
    at = body
    try:
        described = ecz._directory(bytes(bent[ecz.HEAD.size : ecz.HEAD.size + packed]), unpacked)["files"]
        lengths = [length for file in described for length in file["bytes"]]
        for length in lengths:
            if at + length + 4 > len(bent):
                break
            bent[at + length : at + length + 4] = zlib.crc32(bent[at : at + length]).to_bytes(4, "little")
            at += length + 4
    except (Damaged, KeyError, TypeError):
        pass
    return bytes(bent)


def mutations(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Bent copies of a file without end: (kind, bytes). Half of them have good checksums again."""
    body = ecz.HEAD.size + sum(ecz.HEAD.unpack(data[: ecz.HEAD.size])[i] for i in (3, 5))
    while True:
        for kind in ("cut", "bits", "section", "table", "number", "insert", "grown", "directory"):
            bent = bytearray(data)
            place = int(rng.integers(len(bent)))
            if kind == "cut":
                del bent[place:]
            elif kind == "grown":
                bent += rng.bytes(int(rng.integers(1, 400)))
            elif kind == "insert":
                bent[place:place] = rng.bytes(int(rng.integers(1, 9)))
            elif kind == "number":  # a huge varint, as of a declared count, somewhere in the sections
                place = int(rng.integers(body, len(bent)))
                huge = write_varint(int(rng.integers(1, 1 << 62)) >> int(rng.integers(0, 60)))
                bent[place : place + len(huge)] = huge
            elif kind == "directory":
                bent = bytearray(_bent_directory(data, rng))
            else:
                low, high = {"bits": (0, len(bent)), "section": (body, len(bent)), "table": (ecz.HEAD.size, body)}[kind]
                for _ in range(int(rng.integers(1, 4))):
                    bent[int(rng.integers(low, high))] ^= 1 << int(rng.integers(8))
            yield kind, bytes(bent)
            yield f"{kind}, checksums right", with_good_checksums(bytes(bent))


def _bent_directory(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with another directory: one value of it exchanged for a wrong or an oversized one."""
    import lzma

    magic, version, flags, packed, unpacked, tables, crc = ecz.HEAD.unpack(data[: ecz.HEAD.size])
    directory = ecz._directory(data[ecz.HEAD.size : ecz.HEAD.size + packed], unpacked)
    wrong: list[Any] = [None, -1, 0, 1, 2**31, 2**63, 2**70, 1.5, True, "", "../x.safetensors", [], {}, [[]], "F32", "F64", "BOOL",
             [2**20, 2**20], [2**40] * 9, [1] * 40]  # fmt: skip
    value = wrong[int(rng.integers(len(wrong)))]
    file = directory["files"][int(rng.integers(len(directory["files"])))]
    key = str(rng.choice([*file, "whole"]))
    if key == "whole":
        directory[str(rng.choice(["model", "files"]))] = value
    elif isinstance(file[key], list) and file[key] and rng.random() < 0.8:
        file[key][int(rng.integers(len(file[key])))] = value
    else:
        file[key] = value
    text = json.dumps(directory).encode()
    packed_text = lzma.compress(text, format=lzma.FORMAT_RAW, filters=ecz._FILTERS)
    head = ecz.HEAD.pack(magic, version, flags, len(packed_text), len(text), tables, crc)
    return head + packed_text + data[ecz.HEAD.size + packed :]
