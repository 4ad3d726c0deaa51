"""Datasets by name. A loader is one file here (the file's name is its name) with three things:

- `ACCEPTS: dict[str, bool]`: which of path, root, download and image_size of the spec it takes, and whether it needs it;
- `load(spec) -> RawDataset`: the parts as they lie on disk;
- `fingerprint(spec) -> dict`: JSON that changes when the data change, without torch and without decoding an image.

Nothing heavy is imported here: torch only where a batch of tensors is made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress import plugins
from edgecompress.data.batching import batch_rows, batches, normalise
from edgecompress.data.parts import Part
from edgecompress.data.splitting import stratified
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from edgecompress.study import DataSpec

__all__ = [
    "Dataset",
    "Part",
    "batch_rows",
    "batches",
    "calibration_images",
    "check_images",
    "fingerprint",
    "load",
    "normalise",
]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset, split and ready. Methods and searches see train and val, never test.

    in_shape: (channels, height, width). mean, std: per channel, of images in 0..1. augment: none, flip, crop, crop-flip or shift.
    calibration_indices: into train. val_indices_sha256: of the val images' positions (int64, little endian) in the
    training images as they lie on disk; None where the data bring a val part of their own.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...] | None
    in_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    train: Part
    val: Part
    test: Part
    calibration_indices: tuple[int, ...]
    val_indices_sha256: str | None = None
    preprocessing: str = ""

    def record(self) -> dict[str, Any]:
        """What a report must say about the data, as plain JSON values."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "in_shape": list(self.in_shape),
            "images": {"train": len(self.train), "val": len(self.val), "test": len(self.test)},
            "val_indices_sha256": self.val_indices_sha256,
            "calibration_indices": list(self.calibration_indices),
            "mean": list(self.mean),
            "std": list(self.std),
            "augment": self.augment,
            "preprocessing": self.preprocessing,
        }


def load(spec: DataSpec, *, seed: int) -> Dataset:
    """The dataset of a spec. `seed` chooses the val and calibration images; the test part is the same for every seed.

    UserError: files that are missing or wrong, too few images, mean and std for another number of channels.
    """
    raw = plugins.find("edgecompress.data", spec.name, attribute="ACCEPTS", kind="dataset").load(spec)
    where = f"dataset {spec.name}"
    train, val, val_sha256 = raw.train, raw.val, None
    if val is None:
        if len(train) < 2:
            raise UserError(f"has {len(train)} training images; 2 are the least", where=where, fix="Give more images.")
        count = min(max(1, round(len(train) * spec.val_fraction)), len(train) - 1)
        held_back = stratified(train.labels, count, seed=seed)
        val_sha256 = hashlib.sha256(held_back.astype("<i8").tobytes()).hexdigest()
        val = train.subset(held_back)
        train = train.subset(np.setdiff1d(np.arange(len(train)), held_back))
    mean, std = spec.mean or raw.mean, spec.std or raw.std
    if mean is None or std is None:
        mean, std = _measure(raw.train, where)
    channels = raw.in_shape[0]
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"its images have {channels} channel{'s' if channels != 1 else ''}, mean {len(mean)} and std {len(std)} values",
            where=where,
            fix="Give mean and std one value for each channel.",
        )
    calibration = stratified(train.labels, min(spec.calibration_images, len(train)), seed=seed + 1)
    return Dataset(
        name=spec.name,
        num_classes=raw.num_classes,
        class_names=raw.class_names,
        in_shape=raw.in_shape,
        mean=tuple(float(v) for v in mean),
        std=tuple(float(v) for v in std),
        augment=raw.augment if spec.augment == "auto" else spec.augment,
        train=train,
        val=val,
        test=raw.test,
        calibration_indices=tuple(int(i) for i in calibration),
        val_indices_sha256=val_sha256,
        preprocessing=raw.preprocessing,
    )


def _measure(train: Part, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of all training images in 0..1, to 4 digits (val included: seedless)."""
    total = squares = np.zeros(1)
    pixels = 0
    for start in range(0, len(train), 4096):
        chunk = train.images(np.arange(start, min(start + 4096, len(train)))).astype(np.float64) / 255
        total = total + chunk.sum((0, 1, 2))
        squares = squares + (chunk**2).sum((0, 1, 2))
        pixels += chunk[..., 0].size
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    if (std < 5e-5).any():
        raise UserError(
            "a channel is the same in every training image", where=where, fix="Mend the images, or give mean and std."
        )
    return tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in std)


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    """Plain JSON that changes when the data change, made without torch and without decoding images. UserError as `load`."""
    loader = plugins.find("edgecompress.data", spec.name, attribute="ACCEPTS", kind="dataset")
    return {"name": spec.name, **loader.fingerprint(spec)}


def calibration_images(dataset: Dataset) -> np.ndarray:
    """The images that calibrate int8 exports, normalised: float32 (n, C, H, W)."""
    return normalise(dataset.train.images(np.asarray(dataset.calibration_indices, np.int64)), dataset.mean, dataset.std)


def check_images(images: np.ndarray, in_shape: tuple[int, ...]) -> None:
    """UserError unless the calibration images are finite float32 (N ≥ 1, C, H, W) of the model's input shape."""
    where = "calibration images"
    if images.ndim != 4 or images.shape[1:] != tuple(in_shape) or len(images) == 0:
        raise UserError(
            f"shape {images.shape} does not fit: (N ≥ 1, {', '.join(map(str, in_shape))}) is needed",
            where=where,
            fix="Calibrate with images of the model's own dataset.",
        )
    if images.dtype != np.float32:
        raise UserError(
            f"type {images.dtype} instead of float32", where=where, fix="Normalise them with data.normalise."
        )
    bad = int((~np.isfinite(images).all(axis=(1, 2, 3))).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(images)} images hold NaN or infinity",
            where=where,
            fix="Look at the dataset's mean and std.",
        )
