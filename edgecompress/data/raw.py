"""What a loader hands over: the parts as they lie on disk, before the split of val from train."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.data.parts import Part

RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, for every dataset of RGB images: what most published checkpoints, CIFAR's ResNets too, were trained with."""


@dataclass(frozen=True)
class RawDataset:
    """train, test, and val where the data bring one of their own (else None: it is split from train).

    mean, std: None means "measure them on the training images". augment: what `augment: auto` stands for.
    preprocessing: how the files' images became these arrays, in words; "" where nothing was done.
    """

    train: Part
    test: Part
    num_classes: int
    in_shape: tuple[int, int, int]
    augment: str
    val: Part | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preprocessing: str = ""
