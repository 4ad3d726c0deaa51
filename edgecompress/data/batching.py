"""From uint8 images to what a network is fed: normalisation, augmentation, batches."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.data.parts import Part

if TYPE_CHECKING:
    from torch import Tensor

    from edgecompress.data import Dataset


def normalise(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(x/255 - mean)/std, channel by channel. images: uint8 (N, H, W, C); result: float32 (N, C, H, W), contiguous."""
    channels_first: np.ndarray = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    shape = (1, -1, 1, 1)
    channels_first /= np.float32(255)
    channels_first -= np.asarray(mean, np.float32).reshape(shape)
    channels_first /= np.asarray(std, np.float32).reshape(shape)
    return channels_first


SHIFT = 2
"""Pixels that augment: shift moves an image by, at most."""


def crop_padding(side: int) -> int:
    """Pixels of black around an image before a random crop: an eighth of its side (4 at 32), as is usual for CIFAR."""
    return max(1, side // 8)


def augmented(images: np.ndarray, augment: str, rng: np.random.Generator) -> np.ndarray:
    """Each image cropped at its own random place out of its padded self, and mirrored by the toss of a coin.

    images: uint8 (N, H, W, C), and so the result. augment: none, flip, crop, crop-flip, or shift: a crop that moves the
    image by up to two pixels in each direction whatever its size (Hinton et al. 2015 on MNIST).
    """
    count, height, width, _ = images.shape
    if augment == "shift" or "crop" in augment:
        pad_y, pad_x = (SHIFT, SHIFT) if augment == "shift" else (crop_padding(height), crop_padding(width))
        padded = np.pad(images, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)))
        rows = rng.integers(0, 2 * pad_y + 1, (count, 1)) + np.arange(height)
        columns = rng.integers(0, 2 * pad_x + 1, (count, 1)) + np.arange(width)
        images = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if "flip" in augment:
        mirrored = rng.random((count, 1, 1, 1)) < 0.5
        images = np.where(mirrored, images[:, :, ::-1], images)
    return images


def batches(
    dataset: Dataset, part: Part, *, batch_size: int, shuffle: bool, augment: bool, seed: int, epoch: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches of (images float32 (n, C, H, W) normalised, labels int64 (n,)); every image once, the last batch may be smaller.

    Order and augmentation (`dataset.augment`, where `augment`) depend on seed and epoch only. The next batch is read
    (decoded, for image files) in a thread while the caller works on this one.
    """
    chunks = batch_rows(len(part), batch_size=batch_size, shuffle=shuffle, seed=seed, epoch=epoch)
    return _read_ahead(dataset, part, chunks, augment, (seed, epoch))


def batch_rows(count: int, *, batch_size: int, shuffle: bool, seed: int, epoch: int) -> list[np.ndarray]:
    """Which images of a part of `count` each batch of `batches` holds, int64 (n,) into the part."""
    order = np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def _read_ahead(
    dataset: Dataset, part: Part, chunks: list[np.ndarray], augment: bool, seeds: tuple[int, int]
) -> Generator[tuple[Tensor, Tensor], None, None]:
    import torch

    labels = part.labels

    def read(number: int) -> tuple[Tensor, Tensor]:
        images = part.images(chunks[number])
        if augment and dataset.augment != "none":
            images = augmented(images, dataset.augment, np.random.default_rng([*seeds, number]))
        return (
            torch.from_numpy(normalise(images, dataset.mean, dataset.std)),
            torch.from_numpy(labels[chunks[number]].astype(np.int64)),
        )

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, 0) if chunks else None
        for number in range(len(chunks)):
            assert ahead is not None
            batch = ahead.result()
            ahead = reader.submit(read, number + 1) if number + 1 < len(chunks) else None
            yield batch
