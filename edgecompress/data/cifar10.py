"""CIFAR-10 (Krizhevsky 2009) in its two official layouts under `root`.

- `cifar-10-batches-bin`: the binary version, read here.
- `cifar-10-batches-py`: the Python version, which torchvision reads and, with `download: true`, fetches. Its files are
  pickles; torchvision checks each against its official MD5 before it opens it, so nothing but the original is ever run.

Normalised with ImageNet's mean and std unless the spec says otherwise, as the published CIFAR ResNets are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.data.parts import ArrayPart
from edgecompress.data.raw import RGB_MEAN, RGB_STD, RawDataset
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from edgecompress.study import DataSpec

ACCEPTS = {"root": True, "download": False}

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image in the binary version: its label, then 32×32 of red, of green, of blue."""


def load(spec: DataSpec) -> RawDataset:
    """50,000 training and 10,000 test images, uint8 (n, 32, 32, 3). UserError: files missing or damaged, no network."""
    root = _root(spec)
    train, test = _load_binary(root / BINARY) if (root / BINARY).is_dir() else _load_python(spec)
    return RawDataset(
        train=train,
        test=test,
        num_classes=10,
        in_shape=(3, 32, 32),
        augment="crop-flip",
        class_names=CLASSES,
        mean=RGB_MEAN,
        std=RGB_STD,
    )


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    """Binary version: names and sizes. Python version: a constant, for `load` accepts the official files only."""
    root = _root(spec)
    if (root / BINARY).is_dir():
        paths = [root / BINARY / name for name in (*TRAIN_FILES, *TEST_FILES)]
        return {"files": {p.name: p.stat().st_size for p in paths if _need(p)}}
    if not (root / PYTHON).is_dir() and not spec.download:
        raise _absent(root)
    return {"files": "official Python version"}


def _root(spec: DataSpec) -> Path:
    assert spec.root is not None  # DataSpec has seen to it
    return spec.root


def _absent(root: Path) -> UserError:
    return UserError(
        f"holds neither {BINARY} nor {PYTHON}",
        where=str(root),
        fix="Unpack CIFAR-10 there, or set download: true where there is a network.",
    )


def _need(path: Path) -> bool:
    if not path.is_file():
        raise UserError("is missing", where=str(path), fix="Unpack the binary version of CIFAR-10 again.")
    return True


def _load_binary(folder: Path) -> tuple[ArrayPart, ArrayPart]:
    parts = []
    for names in (TRAIN_FILES, TEST_FILES):
        records = np.concatenate([_records(folder / name) for name in names])
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts.append(ArrayPart.of(np.ascontiguousarray(pixels), records[:, 0]))
    return parts[0], parts[1]


def _records(path: Path) -> np.ndarray:
    _need(path)
    content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % RECORD or content[::RECORD].max() > 9:
        raise UserError("is no batch of CIFAR-10", where=str(path), fix="Unpack the binary version of CIFAR-10 again.")
    records: np.ndarray = content.reshape(-1, RECORD)
    return records


def _load_python(spec: DataSpec) -> tuple[ArrayPart, ArrayPart]:
    from edgecompress.models.torchvision_import import import_torchvision

    root = _root(spec)
    if not (root / PYTHON).is_dir() and not spec.download:
        raise _absent(root)
    cifar10 = import_torchvision().datasets.CIFAR10
    try:
        sets = [cifar10(str(root), train=train, download=spec.download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        if spec.download:
            what, fix = f"could not be downloaded: {error}", "Unpack CIFAR-10 there by hand."
        else:
            what, fix = "a file is missing, or is not the official one", "Unpack CIFAR-10 there again."
        raise UserError(what, where=str(root / PYTHON), fix=fix) from None
    train, test = (ArrayPart.of(s.data, np.asarray(s.targets)) for s in sets)
    return train, test
