"""The split, the record, the fingerprint, normalisation and augmentation: what every dataset shares."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgecompress import data
from edgecompress.data.batching import augmented, crop_padding, normalise
from edgecompress.data.parts import ArrayPart
from edgecompress.data.splitting import stratified
from edgecompress.errors import UserError
from edgecompress.study import DataSpec

DIGITS = DataSpec(name="digits")


def test_digits_are_split_into_1300_and_497() -> None:
    digits = data.load(DIGITS, seed=0)
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1170, 130, 497)
    assert digits.in_shape == (1, 32, 32) and digits.num_classes == 10 and digits.augment == "crop"
    images = digits.test.images(np.arange(5))
    assert images.shape == (5, 32, 32, 1) and images.dtype == np.uint8
    assert digits.test.labels.dtype == np.int64 and set(digits.test.labels) == set(range(10))


def test_the_parts_of_digits_are_disjoint_and_are_all_of_it() -> None:
    digits = data.load(DIGITS, seed=3)
    rows = np.concatenate([p.rows for p in (digits.train, digits.val, digits.test) if isinstance(p, ArrayPart)])
    assert sorted(rows) == list(range(1797))


def test_the_seed_moves_val_and_calibration_but_never_test() -> None:
    first, again, other = (data.load(DIGITS, seed=s) for s in (1, 1, 2))
    assert first.record() == again.record()
    assert first.record()["val_indices_sha256"] != other.record()["val_indices_sha256"]
    assert first.calibration_indices != other.calibration_indices
    everything = np.arange(497)
    assert np.array_equal(first.test.images(everything), other.test.images(everything))


def test_val_keeps_the_shares_of_the_classes() -> None:
    digits = data.load(DataSpec(name="digits", val_fraction=0.25), seed=0)
    before = np.bincount(np.concatenate([digits.train.labels, digits.val.labels])) * 0.25
    assert len(digits.val) == 325 and (abs(np.bincount(digits.val.labels) - before) < 1).all()


def test_the_record_says_what_was_used_and_is_json() -> None:
    digits = data.load(DataSpec(name="digits", calibration_images=20, augment="none", mean=(0.5,), std=(0.25,)), seed=0)
    record = json.loads(json.dumps(digits.record()))
    assert record["images"] == {"train": 1170, "val": 130, "test": 497}
    assert record["calibration_indices"] == list(digits.calibration_indices) and len(digits.calibration_indices) == 20
    assert record["mean"] == [0.5] and record["std"] == [0.25] and record["augment"] == "none"
    assert data.calibration_images(digits).shape == (20, 1, 32, 32)
    assert set(digits.train.labels[list(digits.calibration_indices)]) == set(range(10))
    held_back = np.setdiff1d(np.arange(1300), np.flatnonzero(np.isin(_train_rows(), digits.train.rows)))  # type: ignore[attr-defined]
    assert record["val_indices_sha256"] == hashlib.sha256(held_back.astype("<i8").tobytes()).hexdigest()


def _train_rows() -> np.ndarray:
    """The rows of the 1,300 training images, val included, as the loader hands them over."""
    from edgecompress.data import digits

    rows: np.ndarray = digits.load(DIGITS).train.rows  # type: ignore[attr-defined]
    return rows


def test_more_calibration_images_than_there_are_means_all_of_them() -> None:
    digits = data.load(DataSpec(name="digits", calibration_images=5000), seed=0)
    assert digits.calibration_indices == tuple(range(1170))


def test_the_fingerprint_is_json_and_stays() -> None:
    assert json.loads(json.dumps(data.fingerprint(DIGITS))) == data.fingerprint(DIGITS)


def test_normalise_is_the_formula_in_channel_first_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    out = normalise(images, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert out.shape == (2, 3, 3, 4) and out.dtype == np.float32 and out.flags.c_contiguous
    assert out[1, 2, 0, 3] == pytest.approx((images[1, 0, 3, 2] / 255 - 0.3) / 0.7, abs=1e-6)
    grey = normalise(images[..., :1], (0.0,), (1.0,))
    assert grey.shape == (2, 1, 3, 4) and grey[0, 0, 0, 0] == pytest.approx(images[0, 0, 0, 0] / 255)


def test_measured_mean_and_std_make_the_training_images_standard() -> None:
    digits = data.load(DataSpec(name="digits", val_fraction=0.01), seed=0)
    out = normalise(digits.train.images(np.arange(len(digits.train))), digits.mean, digits.std)
    assert abs(out.mean()) < 0.01 and abs(out.std() - 1) < 0.01


def test_stratified_takes_exactly_so_many_even_of_single_images() -> None:
    labels = np.arange(50)
    chosen = stratified(labels, 10, seed=0)
    assert len(chosen) == len(set(chosen)) == 10 and np.array_equal(chosen, np.sort(chosen))
    assert not np.array_equal(chosen, stratified(labels, 10, seed=1))
    assert np.array_equal(stratified(np.repeat([4, 9], [30, 10]), 4, seed=0) >= 30, [False, False, False, True])
    assert len(stratified(labels, 0, seed=0)) == 0 and len(stratified(labels, 50, seed=0)) == 50


def test_flip_mirrors_some_images_whole_and_leaves_the_others() -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    out = augmented(images, "flip", np.random.default_rng(1))
    mirrored = [np.array_equal(o, i[:, ::-1]) for o, i in zip(out, images, strict=True)]
    kept = [np.array_equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True)) and 16 < sum(mirrored) < 48


def test_crop_shifts_each_image_by_up_to_an_eighth_with_black_outside() -> None:
    assert crop_padding(32) == 4
    images = np.zeros((200, 16, 16, 1), np.uint8)
    images[:, 8, 8] = 255
    out = augmented(images, "crop", np.random.default_rng(0))
    places = [tuple(np.argwhere(o[..., 0])[0]) for o in out]
    assert {p[0] for p in places} == {p[1] for p in places} == {6, 7, 8, 9, 10}
    edge = augmented(np.full((200, 16, 16, 1), 7, np.uint8), "crop", np.random.default_rng(0))
    assert set(np.unique(edge)) == {0, 7}


@pytest.mark.heavy
def test_batches_are_the_same_for_a_seed_and_epoch_and_hold_every_image_once() -> None:
    import torch

    digits = data.load(DIGITS, seed=0)

    def epoch(seed: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        read = list(
            data.batches(digits, digits.train, batch_size=128, shuffle=True, augment=True, seed=seed, epoch=number)
        )
        assert [len(labels) for _, labels in read] == [128] * 9 + [18]
        assert read[0][0].dtype == torch.float32 and read[0][1].dtype == torch.int64
        return torch.cat([i for i, _ in read]), torch.cat([labels for _, labels in read])

    images, labels = epoch(0, 0)
    again, _ = epoch(0, 0)
    later, other_order = epoch(0, 1)
    assert torch.equal(images, again) and not torch.equal(images, later) and not torch.equal(labels, other_order)
    assert np.array_equal(np.bincount(labels), np.bincount(digits.train.labels))


@pytest.mark.heavy
def test_batches_without_shuffling_are_the_part_in_order() -> None:
    import torch

    digits = data.load(DIGITS, seed=0)
    read = list(data.batches(digits, digits.val, batch_size=50, shuffle=False, augment=False, seed=0, epoch=0))
    expected = normalise(digits.val.images(np.arange(130)), digits.mean, digits.std)
    assert torch.equal(torch.cat([i for i, _ in read]), torch.from_numpy(expected))
    assert np.array_equal(torch.cat([labels for _, labels in read]), digits.val.labels)


@pytest.mark.heavy
def test_a_caller_may_stop_in_the_middle_of_an_epoch() -> None:
    digits = data.load(DIGITS, seed=0)
    reading = data.batches(digits, digits.val, batch_size=8, shuffle=True, augment=True, seed=0, epoch=0)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert next(reading, None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "npz"}, "needs 'path'"),
        ({"name": "imagefolder"}, "needs 'root'"),
        ({"name": "mnist"}, "needs 'root'"),
        ({"name": "cifar10"}, "needs 'root'"),
        ({"name": "digits", "root": "x"}, "digits takes no 'root'"),
        ({"name": "npz", "path": __file__, "image_size": 32}, "npz takes no 'image_size'"),
        ({"name": "imagenet", "root": "x", "download": True}, "imagenet takes no 'download'"),
    ],
)
def test_each_dataset_takes_what_it_needs_and_nothing_else(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSpec.model_validate(given)


def test_mean_and_std_for_another_number_of_channels() -> None:
    with pytest.raises(UserError, match="images have 1 channel, mean 3 and std 3 values"):
        data.load(DataSpec(name="digits", mean=(0.5,) * 3, std=(0.5,) * 3), seed=0)


def test_mnist_in_torchvisions_layout(edgecompress_data: Path, unpacked_data: Path) -> None:
    spec = DataSpec(name="mnist", root=edgecompress_data)
    mnist = data.load(spec, seed=0)
    assert (len(mnist.train), len(mnist.val), len(mnist.test)) == (54_000, 6_000, 10_000)
    assert mnist.mean == (0.1307,) and mnist.std == (0.3081,)  # the figures that everyone uses, measured here
    with np.load(unpacked_data / "mnist.npz") as archive:
        assert np.array_equal(mnist.test.images(np.arange(10_000)), archive["x_test"])
        assert np.array_equal(mnist.test.labels, archive["y_test"])
    assert data.fingerprint(spec) == data.fingerprint(DataSpec(name="mnist", root=Path("not-there-yet"), download=True))


def test_mnist_that_is_absent_or_damaged(tmp_path: Path) -> None:
    spec = DataSpec(name="mnist", root=tmp_path)
    for call in (lambda: data.load(spec, seed=0), lambda: data.fingerprint(spec)):
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte \(or .*\.gz\) is missing"):
            call()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b\x08 cut")
    with pytest.raises(UserError, match="cannot be read"):
        data.load(spec, seed=0)
    (raw / "train-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28)))
    with pytest.raises(UserError, match="is no idx file of the announced size"):
        data.load(spec, seed=0)


def _binary_cifar(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """CIFAR-10's binary version out of some of its images: five training batches and a test batch."""
    folder.mkdir(parents=True)
    records = np.concatenate(
        [labels[:, None].astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(len(images), -1)], 1
    )
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, chunk in zip(names, np.array_split(records, 6), strict=True):
        (folder / name).write_bytes(chunk.tobytes())


def test_cifar10_in_its_binary_version(tmp_path: Path, unpacked_data: Path) -> None:
    with np.load(unpacked_data / "cifar10.npz") as archive:
        images, labels = archive["x_train"][:600], archive["y_train"][:600]
    _binary_cifar(tmp_path / "cifar-10-batches-bin", images, labels)
    spec = DataSpec(name="cifar10", root=tmp_path)
    cifar = data.load(spec, seed=0)
    assert (len(cifar.train), len(cifar.val), len(cifar.test)) == (450, 50, 100)
    assert np.array_equal(cifar.test.images(np.arange(100)), images[500:])
    assert np.array_equal(cifar.test.labels, labels[500:]) and cifar.class_names is not None
    before = data.fingerprint(spec)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    assert data.fingerprint(spec) != before
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is no batch of CIFAR-10"):
        data.load(spec, seed=0)
    path.unlink()
    with pytest.raises(UserError, match=r"test_batch\.bin: is missing"):
        data.fingerprint(spec)


def test_cifar10_that_is_absent(tmp_path: Path) -> None:
    spec = DataSpec(name="cifar10", root=tmp_path)
    for call in (lambda: data.load(spec, seed=0), lambda: data.fingerprint(spec)):
        with pytest.raises(UserError, match="holds neither cifar-10-batches-bin nor cifar-10-batches-py"):
            call()


def _pickled_cifar(folder: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """CIFAR-10's Python version out of some of its images; each file's MD5."""
    import pickle

    folder.mkdir(parents=True)
    sums = {}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    contents = {
        name: {"data": rows[chunk], "labels": labels[chunk].tolist()}
        for name, chunk in zip(names, np.array_split(np.arange(len(rows)), 6), strict=True)
    }
    for name, content in {**contents, "batches.meta": {"label_names": list("abcdefghij")}}.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return sums


@pytest.mark.heavy
def test_cifar10_in_its_python_version_opens_nothing_but_the_official_files(
    tmp_path: Path, unpacked_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecompress.models.torchvision_import import import_torchvision

    with np.load(unpacked_data / "cifar10.npz") as archive:
        images, labels = archive["x_train"][:60], archive["y_train"][:60]
    sums = _pickled_cifar(tmp_path / "cifar-10-batches-py", images, labels)
    spec = DataSpec(name="cifar10", root=tmp_path)
    with pytest.raises(UserError, match="a file is missing, or is not the official one"):
        data.load(spec, seed=0)
    # The same files pass once their sums are the expected ones: it is the sums that decide.
    cifar10 = import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(cifar10, "train_list", [[n, s] for n, s in sums.items() if n.startswith("data")])
    monkeypatch.setattr(cifar10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        cifar10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )
    cifar = data.load(spec, seed=0)
    assert (len(cifar.train), len(cifar.val), len(cifar.test)) == (45, 5, 10)
    assert np.array_equal(cifar.test.images(np.arange(10)), images[50:])


def test_shift_moves_every_image_by_up_to_two_pixels():
    images = np.zeros((400, 28, 28, 1), np.uint8)
    images[:, 10, 12] = 255
    out = augmented(images, "shift", np.random.default_rng(0))
    _, rows, columns, _ = np.nonzero(out)
    assert len(rows) == 400
    assert set(rows - 10) == set(columns - 12) == {-2, -1, 0, 1, 2}


def test_batch_rows_name_the_images_of_each_batch():
    digits = data.load(DataSpec(name="digits", augment="none", mean=(0.0,), std=(1.0,)), seed=0)
    chosen = {"batch_size": 100, "shuffle": True, "seed": 3, "epoch": 2}
    rows = data.batch_rows(len(digits.train), **chosen)
    stream = data.batches(digits, digits.train, augment=True, **chosen)
    for places, (images, labels) in zip(rows, stream, strict=True):
        assert np.array_equal(digits.train.labels[places], labels.numpy())
        assert np.array_equal(digits.train.images(places)[..., 0], (images[:, 0].numpy() * 255).round())
