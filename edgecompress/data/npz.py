"""A NumPy file with `x_train, y_train, x_test, y_test`: images uint8 (N, H, W, C), labels whole numbers (N,) from 0.

Optional: `class_names` (K,) text, which also allows classes without a training image. Read with allow_pickle=False.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.data.parts import ArrayPart
from edgecompress.data.raw import RGB_MEAN, RGB_STD, RawDataset
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from edgecompress.study import DataSpec

ACCEPTS = {"path": True}

KEYS = ("x_train", "y_train", "x_test", "y_test")
_LAYOUT = "Images are uint8 (N, height, width, channels), labels whole numbers (N,) from 0."


def load(spec: DataSpec) -> RawDataset:
    """The file's parts. UserError: missing keys, wrong type or shape, labels that are no classes."""
    assert spec.path is not None  # DataSpec has seen to it
    arrays = _read(spec.path)
    where = str(spec.path)
    for part in ("train", "test"):
        _check_images(arrays[f"x_{part}"], f"x_{part}", where)
        _check_labels(arrays[f"y_{part}"], len(arrays[f"x_{part}"]), f"y_{part}", where)
    x_train, x_test = arrays["x_train"], arrays["x_test"]
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"x_train holds images of {x_train.shape[1:]}, x_test of {x_test.shape[1:]}",
            where=where,
            fix="Give both parts the same height, width and channels (all grey or all RGB).",
        )
    names = _class_names(arrays, where)
    classes = _count_classes(arrays["y_train"], arrays["y_test"], names, where)
    _, height, width, channels = x_train.shape
    rgb = channels == 3
    return RawDataset(
        train=ArrayPart.of(x_train, arrays["y_train"]),
        test=ArrayPart.of(x_test, arrays["y_test"]),
        num_classes=classes,
        in_shape=(channels, height, width),
        # Grey images are mostly digits and letters, which a mirror turns into something else.
        augment="crop-flip" if rgb else "crop",
        class_names=names,
        mean=RGB_MEAN if rgb else None,
        std=RGB_STD if rgb else None,
    )


def fingerprint(spec: DataSpec) -> dict[str, Any]:
    assert spec.path is not None
    try:
        with Path(spec.path).open("rb") as stream:
            return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(spec.path), fix="Give a .npz file.") from None


def _read(path: Path) -> dict[str, np.ndarray]:
    where = str(path)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError("is one array, not a .npz archive", where=where, fix="Write it with np.savez.")
        with archive:
            missing = [k for k in KEYS if k not in archive.files]
            if missing:
                raise UserError(
                    f"lacks {', '.join(missing)}; it holds {', '.join(archive.files) or 'nothing'}",
                    where=where,
                    fix="Write it with np.savez(path, x_train=…, y_train=…, x_test=…, y_test=…).",
                )
            return {k: archive[k] for k in (*KEYS, "class_names") if k in archive.files}
    except FileNotFoundError:
        raise UserError("no such file", where=where, fix="Give the path of a .npz file.") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                "holds Python objects, which are not read", where=where, fix=f"Save plain arrays. {_LAYOUT}"
            ) from None
        raise UserError(f"is no readable .npz file: {error}", where=where, fix="Write it with np.savez.") from None


def _check_images(images: np.ndarray, key: str, where: str) -> None:
    shape = images.shape
    if images.dtype != np.uint8:
        hint = " Multiply by 255 and round." if images.dtype.kind == "f" else ""
        raise UserError(f"{key} is {images.dtype}, not uint8", where=where, fix=_LAYOUT + hint)
    if images.ndim == 3:
        raise UserError(
            f"{key} has shape {shape}: the axis of the channels is missing",
            where=where,
            fix=f"{key}[..., None]. {_LAYOUT}",
        )
    if images.ndim != 4 or 0 in shape:
        raise UserError(f"{key} has shape {shape}", where=where, fix=_LAYOUT)
    if shape[1] in (1, 3) and shape[3] > 4:
        raise UserError(
            f"{key} has shape {shape}: the channels stand second",
            where=where,
            fix=f"{key}.transpose(0, 2, 3, 1). {_LAYOUT}",
        )


def _check_labels(labels: np.ndarray, images: int, key: str, where: str) -> None:
    if labels.dtype.kind not in "iu":
        raise UserError(f"{key} is {labels.dtype}, not whole numbers", where=where, fix=_LAYOUT)
    if labels.shape != (images,):
        raise UserError(
            f"{key} has shape {labels.shape} for {images} images", where=where, fix=f"({images},). {_LAYOUT}"
        )
    if labels.min() < 0:
        raise UserError(f"{key} holds the label {labels.min()}", where=where, fix=_LAYOUT)


def _class_names(arrays: dict[str, np.ndarray], where: str) -> tuple[str, ...] | None:
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(
            f"class_names is {names.dtype} of shape {names.shape}",
            where=where,
            fix="One text for each class: np.array([…]).",
        )
    return tuple(str(n) for n in names)


def _count_classes(train: np.ndarray, test: np.ndarray, names: tuple[str, ...] | None, where: str) -> int:
    count = len(names) if names is not None else int(train.max()) + 1
    for key, labels in (("y_train", train), ("y_test", test)):
        if labels.max() >= count:
            source = "class_names has" if names is not None else "y_train has labels for"
            raise UserError(
                f"{key} holds the label {labels.max()}, and {source} {count} classes (0..{count - 1})",
                where=where,
                fix="Mend the labels; class_names, where given, names every class.",
            )
    if count < 2:
        raise UserError("has a single class", where=where, fix="A classifier needs images of two classes or more.")
    absent = np.setdiff1d(np.arange(count), train)
    if names is None and len(absent):
        shown = ", ".join(str(c) for c in absent[:5]) + (" …" if len(absent) > 5 else "")
        raise UserError(
            f"y_train goes up to {count - 1}, and has no image of class {shown}",
            where=where,
            fix="Number the classes from 0 without gaps, or add class_names with the name of every class.",
        )
    return count
