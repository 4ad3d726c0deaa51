"""Images in folders: class numbers, splits, decoding, and each way in which a folder can be wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecompress import data
from edgecompress.data.parts import decode_file
from edgecompress.data.wnids import WNIDS
from edgecompress.errors import UserError
from edgecompress.study import DataSpec


def write(path: Path, colour: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def tree(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        for i in range(count):
            write(root / name / f"{i}.png", (i, 0, 0))
    return root


def spec(root: Path, name: str = "imagefolder", size: int | None = 16) -> DataSpec:
    return DataSpec(name=name, root=root, image_size=size)


def test_classes_are_numbered_by_their_sorted_names_and_test_follows_train(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"zebra": 5, "ant": 5, "Bee": 5})
    tree(tmp_path / "val", {"zebra": 2, "ant": 1})  # no bee: the numbers must not move
    (tmp_path / "train" / ".thumbnails").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("x")
    dataset = data.load(spec(tmp_path), seed=0)
    assert dataset.class_names == ("Bee", "ant", "zebra") and dataset.num_classes == 3
    assert dataset.test.labels.tolist() == [1, 2, 2]
    assert len(dataset.train) + len(dataset.val) == 15 and dataset.in_shape == (3, 16, 16)
    assert dataset.augment == "crop-flip" and "centre crop 16×16" in dataset.record()["preprocessing"]


def test_train_val_and_test_are_each_what_they_are_called(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("val", 2), ("test", 3)):
        tree(tmp_path / name, {"a": count, "b": count})
    dataset = data.load(spec(tmp_path), seed=0)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (8, 4, 6)
    assert dataset.val_indices_sha256 is None


def test_a_single_tree_is_divided_alike_for_every_seed(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 10, "truck": 10})  # a class may be called train
    first, other = (data.load(spec(tmp_path), seed=s) for s in (0, 1))
    assert (len(first.train), len(first.val), len(first.test)) == (14, 2, 4)
    assert first.test.files == other.test.files and np.bincount(first.test.labels).tolist() == [2, 2]  # type: ignore[attr-defined]
    assert first.train.files != other.train.files  # type: ignore[attr-defined]


def test_images_are_found_in_folders_below_the_class(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a/2020": 2, "a/2021": 2, "b": 2})
    tree(tmp_path / "test", {"a": 1, "b": 1})
    dataset = data.load(spec(tmp_path), seed=0)
    assert dataset.class_names == ("a", "b") and len(dataset.train) + len(dataset.val) == 6


def test_a_file_becomes_rgb_scaled_and_cropped_in_the_centre(tmp_path: Path) -> None:
    array = np.zeros((64, 128, 3), np.uint8)
    array[:, 32:96] = (200, 100, 50)  # the centre square; black at both sides
    Image.fromarray(array).save(tmp_path / "wide.png")
    out = decode_file(tmp_path / "wide.png", 28)  # shorter side to 32, centre 28 of 32×64
    assert out.shape == (28, 28, 3) and (out == (200, 100, 50)).all()
    Image.fromarray(array.transpose(1, 0, 2).copy()).save(tmp_path / "tall.png")
    assert np.array_equal(decode_file(tmp_path / "tall.png", 28), out)
    Image.new("L", (40, 40), 77).save(tmp_path / "grey.png")
    assert (decode_file(tmp_path / "grey.png", 28) == 77).all()
    Image.new("RGBA", (5, 7), (1, 2, 3, 0)).save(tmp_path / "tiny.png")
    assert decode_file(tmp_path / "tiny.png", 28).shape == (28, 28, 3)


@pytest.mark.heavy
def test_decoding_equals_torchvisions_imagenet_evaluation(edgecompress_data: Path, tmp_path: Path) -> None:
    from edgecompress.models.torchvision_import import import_torchvision

    transforms = import_torchvision().transforms
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    for number, path in enumerate(sorted((edgecompress_data / "imagenet-sample").rglob("*.jpg"))[:6]):
        with Image.open(path) as opened:
            # Odd sizes, wide and tall, that have to be scaled.
            image = opened.convert("RGB").resize((301 + 17 * number, 399 - 23 * number))
        image.save(tmp_path / f"{number}.png")
        assert np.array_equal(decode_file(tmp_path / f"{number}.png", 224), np.asarray(reference(image)))


def test_the_imagenet_sample_as_any_folder(edgecompress_data: Path) -> None:
    dataset = data.load(spec(edgecompress_data / "imagenet-sample", size=None), seed=0)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (36, 4, 10)
    assert dataset.num_classes == 50 and dataset.in_shape == (3, 224, 224)
    assert data.calibration_images(dataset).shape == (36, 3, 224, 224)


def test_the_imagenet_sample_keeps_imagenets_numbers(edgecompress_data: Path) -> None:
    sample = edgecompress_data / "imagenet-sample"
    assert tuple((sample / "wnids.txt").read_text().split()) == WNIDS
    with (sample / "classes.csv").open() as table:
        number = {sample / row["file"]: int(row["class_index"]) for row in csv.DictReader(table)}
    dataset = data.load(spec(sample, "imagenet", None), seed=0)
    assert dataset.num_classes == 1000 and dataset.class_names == WNIDS
    seen = {}
    for part in (dataset.train, dataset.val, dataset.test):
        seen |= dict(zip(part.files, part.labels.tolist(), strict=True))  # type: ignore[attr-defined]
    assert seen == number


def test_imagenets_layout_with_a_part_of_its_classes(tmp_path: Path) -> None:
    tree(tmp_path / "train", {WNIDS[5]: 3, WNIDS[999]: 3})
    tree(tmp_path / "val", {WNIDS[999]: 2})
    dataset = data.load(spec(tmp_path, "imagenet"), seed=0)
    assert dataset.test.labels.tolist() == [999, 999] and set(dataset.train.labels) == {5, 999}


def test_the_fingerprint_follows_names_and_sizes_and_decodes_nothing(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 2})
    first = data.fingerprint(spec(tmp_path))
    assert first["files"] == 4
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "9.png")
    renamed = data.fingerprint(spec(tmp_path))
    (tmp_path / "a" / "9.png").write_bytes(b"no image, and that is not looked at here")
    assert len({str(f) for f in (first, renamed, data.fingerprint(spec(tmp_path)))}) == 3


@pytest.mark.heavy
def test_an_image_that_cannot_be_decoded_is_named_also_through_batches(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 3, "b": 3})
    whole = write(tmp_path / "cut.bmp", size=(300, 300)).read_bytes()
    for bad in (b"no image at all", whole[:2000], b""):
        (tmp_path / "a" / "1.png").write_bytes(bad)
        dataset = data.load(spec(tmp_path), seed=0)
        everything = [dataset.train, dataset.val, dataset.test]
        with pytest.raises(UserError, match=r"a/1\.png: cannot be decoded"):
            for part in everything:
                list(data.batches(dataset, part, batch_size=2, shuffle=False, augment=False, seed=0, epoch=0))


@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
def test_folders_that_are_wrong(tmp_path: Path, name: str) -> None:
    a, b, c = WNIDS[:3]

    def refused(root: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            data.load(spec(root, name), seed=0)
        assert caught.value.where.startswith(str(root)) and caught.value.fix

    refused(tmp_path / "absent", "no such directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no folders of classes|holds no images")
    refused(tree(tmp_path / "single", {a: 3}), f"has a single class: {a}")
    refused(tree(tmp_path / "no-train" / "val", {a: 3, b: 3}).parent, "has no train folder")
    refused(tree(tmp_path / "train-only" / "train", {a: 3, b: 3}).parent, "neither val nor test beside it")
    (tree(tmp_path / "hollow", {a: 3, b: 3}) / c).mkdir()
    refused(tmp_path / "hollow", f"{c}: holds no image")
    tree(tmp_path / "flat-val" / "train", {a: 3, b: 3})
    write(tmp_path / "flat-val" / "val" / "ILSVRC2012_val_00000001.png")
    refused(tmp_path / "flat-val", "val: holds images and no folders of classes")
    tree(tmp_path / "stranger" / "train", {a: 3, b: 3})
    tree(tmp_path / "stranger" / "val", {a: 3, "n99": 3})
    refused(tmp_path / "stranger", "the folder 'n99' is no class of")
