"""The parts of a dataset (train, val, test): images by index as uint8, from an array or decoded from files."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from edgecompress.errors import UserError


class Part(Protocol):
    """Images with labels. `subset` shares the images with its origin."""

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), classes from 0."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, C) of the images at `indices` (0 ≤ i < N), in that order."""
        ...

    def subset(self, indices: np.ndarray) -> Part:
        """The part that holds the images at `indices`, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayPart:
    """Rows of an array in memory. pixels: uint8 (M, H, W, C); all_labels: int64 (M,); rows: which of the M, in order."""

    pixels: np.ndarray = field(repr=False)
    all_labels: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, pixels: np.ndarray, labels: np.ndarray) -> ArrayPart:
        """All rows of uint8 images (N, H, W, C) with their labels (N,)."""
        return cls(pixels, labels.astype(np.int64), np.arange(len(labels)))

    @property
    def labels(self) -> np.ndarray:
        labels: np.ndarray = self.all_labels[self.rows]
        return labels

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, indices: np.ndarray) -> np.ndarray:
        pixels: np.ndarray = self.pixels[self.rows[indices]]
        return pixels

    def subset(self, indices: np.ndarray) -> ArrayPart:
        return ArrayPart(self.pixels, self.all_labels, self.rows[indices])


@dataclass(frozen=True, eq=False)
class FolderPart:
    """Image files, decoded when asked for by as many threads as there are CPUs (8 at most), as RGB.

    The shorter side is scaled to `size` × 256/224 (bilinear, as torchvision's ImageNet evaluation does) and the centre
    `size` × `size` is cut out. files: (N,); labels: int64 (N,).
    """

    files: tuple[Path, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """As `Part.images`. UserError names the file that cannot be decoded."""
        out: np.ndarray = np.empty((len(indices), self.size, self.size, 3), np.uint8)

        def decode(slot: int) -> None:
            out[slot] = decode_file(self.files[indices[slot]], self.size)

        workers = max(1, min(8, os.cpu_count() or 1, len(indices)))
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, range(len(indices))):
                pass
        return out

    def subset(self, indices: np.ndarray) -> FolderPart:
        return FolderPart(tuple(self.files[i] for i in indices), self.labels[indices], self.size)


def decode_file(path: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3): RGB, shorter side to size × 256/224, centre crop. UserError for a file that is no image."""
    from PIL import Image, UnidentifiedImageError

    shorter = round(size * 256 / 224)
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "not an image that Pillow reads" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"cannot be decoded: {reason}", where=str(path), fix="Replace or remove the file.") from None
    # Sizes and offsets are rounded as torchvision's Resize and CenterCrop round them.
    width, height = image.size
    if min(width, height) != shorter:
        long = int(shorter * max(width, height) / min(width, height))
        width, height = (shorter, long) if width <= height else (long, shorter)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels: np.ndarray = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels
