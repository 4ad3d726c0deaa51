"""Images in folders, a folder for each class: what `imagefolder` and `imagenet` share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.data.parts import FolderPart
from edgecompress.data.raw import RGB_MEAN, RGB_STD, RawDataset
from edgecompress.data.splitting import stratified
from edgecompress.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
IMAGE_SIZE = 224
TEST_FRACTION, TEST_SEED = 0.2, 0
LAYOUT = "The layout is root/train/CLASS/IMAGE with root/val or root/test beside train, or root/CLASS/IMAGE alone."


def load_folders(root: Path, image_size: int | None, known: tuple[str, ...] | None = None) -> RawDataset:
    """The dataset in a directory.

    With train and one of val and test beside it, that one is the test part; with all three, each is what it is called.
    A single tree of classes is divided: a fifth of each class is the test part, whatever the seed of the study.
    known: the classes in the order of their numbers, of which the folders may hold a part; None: the training folders'
    names, sorted. UserError: see `_classes`, `_files`.
    """
    size = image_size or IMAGE_SIZE
    trees = find_trees(root)
    classes = known or _classes(trees["train"])
    train = _part(trees["train"], classes, size, known is not None)
    if len(classes) < 2 or len(np.unique(train.labels)) < 2:
        raise UserError(
            f"has a single class: {classes[int(train.labels[0])]}",
            where=str(trees["train"]),
            fix=f"{LAYOUT} Two or more classes.",
        )
    others = [_part(trees[name], classes, size, known is not None) for name in ("val", "test") if name in trees]
    if others:
        val, test = others if len(others) == 2 else (None, others[0])
    else:
        count = max(1, round(len(train) * TEST_FRACTION))
        chosen = stratified(train.labels, count, seed=TEST_SEED)
        val, test = None, train.subset(chosen)
        train = train.subset(np.setdiff1d(np.arange(len(train)), chosen))
    return RawDataset(
        train=train,
        val=val,
        test=test,
        num_classes=len(classes),
        in_shape=(3, size, size),
        augment="crop-flip",
        class_names=tuple(classes),
        mean=RGB_MEAN,
        std=RGB_STD,
        preprocessing=f"RGB, shorter side to {round(size * 256 / 224)} (bilinear), centre crop {size}×{size}",
    )


def fingerprint_folders(root: Path) -> dict[str, Any]:
    """sha256 over the relative paths and sizes of all image files, and their number."""
    lines = []
    for tree in find_trees(root).values():
        for name in _folders(tree):
            lines += [f"{file.relative_to(root)}\0{file.stat().st_size}" for file in _images(tree / name)]
    digest = hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()
    return {"files": len(lines), "names_and_sizes_sha256": digest}


def find_trees(root: Path) -> dict[str, Path]:
    """The part's name → its tree of class folders: train with val, test or both; a single tree stands as train alone."""
    if not root.is_dir():
        raise UserError("no such directory", where=str(root), fix=LAYOUT)
    trees = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    # A class may be called "train": then its folder holds images, and no folders.
    if "train" in trees and _folders(trees["train"]):
        if len(trees) == 1:
            raise UserError("has train, and neither val nor test beside it", where=str(root), fix=LAYOUT)
        return trees
    if {"val", "test"} & set(trees) and any(_folders(tree) for tree in trees.values()):
        raise UserError("has no train folder with a folder for each class", where=str(root), fix=LAYOUT)
    return {"train": root}


def _folders(tree: Path) -> list[str]:
    with os.scandir(tree) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _classes(tree: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers: the sorted names of the folders, as torchvision's ImageFolder has it."""
    classes = tuple(_folders(tree))
    if not classes:
        raise UserError("holds no folders of classes", where=str(tree), fix=LAYOUT)
    return classes


def _images(folder: Path) -> list[Path]:
    found = []
    for directory, _, files in os.walk(folder, followlinks=True):
        found += [Path(directory, f) for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
    return sorted(found)


def _part(tree: Path, classes: tuple[str, ...], size: int, shared_list: bool) -> FolderPart:
    number = {name: index for index, name in enumerate(classes)}
    files: list[Path] = []
    labels: list[int] = []
    for name in _folders(tree):
        if name not in number:
            what = (
                "is no class of ImageNet-1k (a WordNet id such as n01440764)" if shared_list else "is no class of train"
            )
            raise UserError(f"the folder {name!r} {what}", where=str(tree), fix="Rename or remove the folder.")
        images = _images(tree / name)
        if not images:
            raise UserError(
                "holds no image",
                where=str(tree / name),
                fix=f"Add images ({', '.join(SUFFIXES)}), or remove the folder.",
            )
        files += images
        labels += [number[name]] * len(images)
    if not files:
        loose = any(f.suffix.lower() in SUFFIXES for f in tree.iterdir())
        what = "holds images and no folders of classes" if loose else "holds no images"
        raise UserError(what, where=str(tree), fix=LAYOUT)
    return FolderPart(tuple(files), np.asarray(labels, np.int64), size)
