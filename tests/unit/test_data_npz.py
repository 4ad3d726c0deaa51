"""npz files: the real ones, and each way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress import data
from edgecompress.errors import UserError
from edgecompress.study import DataSpec


def arrays(classes: int = 3, channels: int = 3, **changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (30, 6, 5, channels), dtype=np.uint8),
        "y_train": np.arange(30) % classes,
        "x_test": rng.integers(0, 256, (9, 6, 5, channels), dtype=np.uint8),
        "y_test": np.arange(9) % classes,
    }
    return {k: v for k, v in (good | changed).items() if v is not None}


def spec(folder: Path, content: dict[str, Any]) -> DataSpec:
    np.savez(folder / "d.npz", **content)
    return DataSpec(name="npz", path=folder / "d.npz")


def test_a_good_file(tmp_path: Path) -> None:
    dataset = data.load(spec(tmp_path, arrays(y_train=(np.arange(30) % 3).astype(np.uint8))), seed=0)
    assert dataset.in_shape == (3, 6, 5) and dataset.num_classes == 3 and dataset.augment == "crop-flip"
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (27, 3, 9)
    assert dataset.mean == (0.485, 0.456, 0.406) and sorted(dataset.val.labels) == [0, 1, 2]


def test_grey_images_are_measured_and_never_mirrored(tmp_path: Path) -> None:
    content = arrays(channels=1)
    dataset = data.load(spec(tmp_path, content), seed=0)
    assert dataset.augment == "crop" and dataset.in_shape == (1, 6, 5)
    assert dataset.mean == (round(float((content["x_train"] / 255).mean()), 4),)
    assert dataset.std == (round(float((content["x_train"] / 255).std()), 4),)


def test_class_names_allow_classes_without_images(tmp_path: Path) -> None:
    dataset = data.load(spec(tmp_path, arrays(class_names=np.array(["a", "b", "c", "d"]))), seed=0)
    assert dataset.num_classes == 4 and dataset.class_names == ("a", "b", "c", "d")


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = data.fingerprint(spec(tmp_path, arrays()))
    assert data.fingerprint(spec(tmp_path, arrays())) == first
    assert data.fingerprint(spec(tmp_path, arrays(y_test=np.zeros(9, int)))) != first


def test_the_real_cifar10(unpacked_data: Path) -> None:
    dataset = data.load(DataSpec(name="npz", path=unpacked_data / "cifar10.npz"), seed=0)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (8_100, 900, 9_980)
    assert dataset.in_shape == (3, 32, 32) and dataset.num_classes == 10 and len(dataset.calibration_indices) == 256


NCHW = np.zeros((30, 3, 32, 32), np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_train": None, "x_test": None}, "lacks y_train, x_test; it holds x_train, y_test"),
        ({"x_train": np.zeros((30, 6, 5, 3), np.float32)}, "x_train is float32, not uint8(.|\n)*Multiply by 255"),
        ({"x_test": np.zeros((9, 6, 5, 3), np.int64)}, "x_test is int64, not uint8"),
        ({"x_train": np.zeros((30, 6, 5), np.uint8)}, "the axis of the channels is missing"),
        ({"x_train": NCHW}, "the channels stand second"),
        ({"x_test": np.zeros((0, 6, 5, 3), np.uint8), "y_test": np.zeros(0, int)}, r"x_test has shape \(0, 6, 5, 3\)"),
        ({"x_test": np.zeros((9, 6, 5, 1), np.uint8)}, r"images of \(6, 5, 3\), x_test of \(6, 5, 1\)"),
        ({"y_train": np.zeros(30)}, "y_train is float64, not whole numbers"),
        ({"y_train": np.array(["cat"] * 30)}, "y_train is <U3, not whole numbers"),
        ({"y_train": np.zeros((30, 1), int)}, r"y_train has shape \(30, 1\) for 30 images"),
        ({"y_test": np.zeros(8, int)}, r"y_test has shape \(8,\) for 9 images"),
        ({"y_train": np.arange(30) % 3 - 1}, "y_train holds the label -1"),
        ({"y_test": np.arange(9) % 3 + 1}, r"y_test holds the label 3, and y_train has labels for 3 classes \(0..2\)"),
        ({"class_names": np.array(["a", "b"])}, r"y_train holds the label 2, and class_names has 2 classes"),
        ({"class_names": np.arange(3)}, r"class_names is int64 of shape \(3,\)"),
        ({"y_train": np.arange(30) % 3 + 1}, "goes up to 3, and has no image of class 0"),
        ({"y_train": np.zeros(30, int), "y_test": np.zeros(9, int)}, "has a single class"),
        ({"x_train": np.array([None] * 30)}, "holds Python objects, which are not read"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    wrong = spec(tmp_path, arrays(**changed))
    with pytest.raises(UserError, match=message) as caught:
        data.load(wrong, seed=0)
    assert caught.value.where == str(tmp_path / "d.npz") and caught.value.fix


def test_black_images_cannot_be_normalised(tmp_path: Path) -> None:
    black = np.zeros((30, 6, 5, 1), np.uint8)
    with pytest.raises(UserError, match="a channel is the same in every training image"):
        data.load(spec(tmp_path, arrays(channels=1, x_train=black)), seed=0)


def test_a_single_training_image_cannot_be_split(tmp_path: Path) -> None:
    one = {
        "x_train": np.zeros((1, 6, 5, 3), np.uint8),
        "y_train": np.zeros(1, int),
        "class_names": np.array(["a", "b", "c"]),
    }
    with pytest.raises(UserError, match="has 1 training images; 2 are the least"):
        data.load(spec(tmp_path, arrays(**one)), seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no readable"),
        (b"hello", "holds Python objects|is no readable"),
        (b"PK\x03\x04cut off", "is no readable"),
    ],
)
def test_files_that_are_no_npz(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.load(DataSpec(name="npz", path=tmp_path / "d.npz"), seed=0)


def test_a_bare_array_and_a_file_that_went_away(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"is one array, not a \.npz archive"):
        data.load(DataSpec(name="npz", path=tmp_path / "d.npy"), seed=0)
    gone = spec(tmp_path, arrays())
    (tmp_path / "d.npz").unlink()
    for call in (lambda: data.load(gone, seed=0), lambda: data.fingerprint(gone)):
        with pytest.raises(UserError, match=r"no such file|cannot be read"):
            call()
