"""MNIST in torchvision's layout: root/MNIST/raw with the four idx files, packed (.gz) or not. `download: true` fetches them.

Read here and not through torchvision, which unpacks beside the archives and so fails where root is read-only.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.data.parts import ArrayPart
from edgecompress.data.raw import RawDataset
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from edgecompress.study import DataSpec

ACCEPTS = {"root": True, "download": False}

FILES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
"""Name → bytes, unpacked, of the official files."""


def load(spec: DataSpec) -> RawDataset:
    """60,000 training and 10,000 test images, uint8 (n, 28, 28, 1). UserError: files missing or damaged, no network."""
    raw = _raw_folder(spec)
    if spec.download and any(_find(raw, name) is None for name in FILES):
        _download(spec)
    parts = []
    for prefix in ("train", "t10k"):
        images = _idx(raw, f"{prefix}-images-idx3-ubyte", 3)
        labels = _idx(raw, f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or not len(labels) or labels.max() > 9:
            raise UserError(
                f"the {prefix} files hold {len(images)} images and {len(labels)} labels up to {labels.max(initial=0)}",
                where=str(raw),
                fix="Fetch them again.",
            )
        parts.append(ArrayPart.of(images[..., None], labels))
    train, test = parts
    return RawDataset(
        train=train, test=test, num_classes=10, in_shape=(1, 28, 28), augment="crop", class_names=tuple("0123456789")
    )


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    """Names and unpacked sizes: the same packed or not, and, where they are still to be downloaded, the official ones."""
    raw = _raw_folder(spec)
    found = {name: _find(raw, name) for name in FILES}
    if all(path is None for path in found.values()) and spec.download:
        return {"files": FILES}
    return {"files": {name: _unpacked_size(_need(path, raw, name)) for name, path in found.items()}}


def _raw_folder(spec: DataSpec) -> Path:
    assert spec.root is not None  # DataSpec has seen to it
    return spec.root / "MNIST" / "raw"


def _find(raw: Path, name: str) -> Path | None:
    return next((p for p in (raw / name, raw / f"{name}.gz") if p.is_file()), None)


def _need(path: Path | None, raw: Path, name: str) -> Path:
    if path is None:
        raise UserError(
            f"{name} (or {name}.gz) is missing",
            where=str(raw),
            fix="Put the four MNIST files there, or set download: true where there is a network.",
        )
    return path


def _unpacked_size(path: Path) -> int:
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(-4, 2)  # the last four bytes of a gzip file are the size of its content
        return int.from_bytes(stream.read(4), "little")


def _idx(raw: Path, name: str, axes: int) -> np.ndarray:
    """The uint8 array of an idx file: two zero bytes, the type (8), the number of axes, their lengths, the values."""
    path = _need(_find(raw, name), raw, name)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="Fetch it again.") from None
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) != 4 + 4 * axes + int(np.prod(shape)):
        raise UserError("is no idx file of the announced size", where=str(path), fix="Fetch it again.")
    values: np.ndarray = np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    return values


def _download(spec: DataSpec) -> None:
    from edgecompress.models.torchvision_import import import_torchvision

    try:
        import_torchvision().datasets.MNIST(str(spec.root), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not be downloaded: {error}",
            where=f"dataset mnist, root {spec.root}",
            fix="Fetch the files by hand.",
        ) from None
