"""The training loop: learns, repeats itself, keeps masks, resumes to the same bits after kill -9, stops at NaN."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import masks, resume
from edgecompress.data import Dataset
from edgecompress.data.parts import ArrayPart
from edgecompress.errors import StepFailed, UserError
from edgecompress.evaluate import accuracy
from edgecompress.optim import Ema, fabric_precision, lr_factor
from edgecompress.study import TrainSpec
from edgecompress.train import fit
from tests.small_nets import SmallNet, few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return few_digits()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recorder:
    """Progress that remembers what it was told, and can end the process by SIGKILL at a given step."""

    def __init__(self, kill_at: int | None = None, kill_at_epoch_end: int | None = None) -> None:
        self.steps, self.total, self.texts, self.said = 0.0, None, [], []
        self.kill_at, self.kill_at_epoch_end = kill_at, kill_at_epoch_end

    @contextmanager
    def task(self, label, total):
        self.label, self.total = label, total
        yield self

    def advance(self, steps=1):
        self.steps += steps
        if self.kill_at is not None and self.steps >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def describe(self, text):
        self.texts.append(text)

    def say(self, text):
        self.said.append(text)


def test_it_learns_and_records_what_it_took(digits):
    model, progress = small_net(), Recorder()
    record = fit(model, digits, TrainSpec(epochs=8, lr=0.1, batch_size=32), progress=progress, label="baseline")
    assert accuracy(model, digits, "test").top1 > 0.75  # 200 images teach this network that much; chance is 0.1
    assert record.epochs == 8 and record.images == 8 * 200
    assert len(record.history) == 8 and record.history[-1]["loss"] == record.final_loss < record.history[0]["loss"] / 2
    seconds = [h["seconds"] for h in record.history]
    assert seconds[0] > 0 and seconds == sorted(seconds) and seconds[-1] == record.seconds
    assert record.energy_j is None and record.energy_reason
    assert record.resumed_at_epoch is None and record.device.startswith("cpu")
    assert not model.training
    assert all(p.is_contiguous() for p in model.parameters())
    assert progress.label == "baseline" and progress.steps == progress.total == 8 * 7
    assert progress.texts[-1].startswith("epoch 8/8 loss ")


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(digits):
    spec = TrainSpec(epochs=2, lr=0.05, batch_size=64)
    one, two, other = small_net(), small_net(), small_net()
    torch.manual_seed(11)
    fit(one, digits, spec, seed=3)
    torch.manual_seed(99)
    drawn_before = torch.rand(3)
    torch.manual_seed(99)
    fit(two, digits, spec, seed=3)
    assert torch.equal(torch.rand(3), drawn_before), "fit must leave the caller's random numbers alone"
    fit(other, digits, spec, seed=4)
    assert same_state(one, two)
    assert not same_state(one, other)


@pytest.mark.parametrize(
    "choices",
    [
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.5, "ema": 0.9},
        {"optimizer": "sgd", "ema": 0.5, "clip_norm": 0.5, "precision": "bf16"},
    ],
)
def test_zeros_stay_exactly_zero_and_the_rest_learns(digits, choices):
    model = small_net()
    keep = {
        name: torch.rand(p.shape, generator=torch.Generator().manual_seed(5)) < 0.3
        for name, p in model.named_parameters()
        if name in ("conv1.weight", "conv2.weight", "fc1.weight")
    }
    masks.put(model, keep)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, digits, TrainSpec(**{"epochs": 2, "lr": 0.05, "batch_size": 32, **choices}))
    for name, mask in keep.items():
        weight = dict(model.named_parameters())[name].detach()
        assert torch.equal(weight[~mask].view(torch.int32), torch.zeros(int((~mask).sum()), dtype=torch.int32)), name
        assert (weight[mask] != start[name][mask]).float().mean() > 0.9, name
    assert torch.equal(masks.get(model)["fc1.weight"], keep["fc1.weight"])


def test_dropped_weights_do_not_count_in_the_clipped_norm(digits):
    # All but two weights of the network are frozen or dropped: with a tiny clip, the step of those two has the clip's length.
    model = small_net()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.conv1.weight.requires_grad_(True)
    keep = torch.zeros_like(model.conv1.weight, dtype=torch.bool)
    keep[0, 0, 2, 1:3] = True
    masks.put(model, {"conv1.weight": keep})
    before = model.conv1.weight.detach().clone()
    spec = TrainSpec(
        epochs=1,
        lr=1.0,
        momentum=0,
        weight_decay=0,
        clip_norm=1e-4,
        schedule="constant",
        batch_size=200,
        precision="32",
    )
    fit(model, digits, spec)
    assert (model.conv1.weight - before).norm().item() == pytest.approx(1e-4, rel=1e-2)


CHILD = """
import sys
sys.path[:0] = [{root!r}, {unit!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_train import Recorder, interrupted_model, INTERRUPTED
from tests.small_nets import few_digits
from edgecompress.train import fit
fit(interrupted_model(), few_digits(), INTERRUPTED, seed=7, checkpoints=Path({folder!r}), progress=Recorder(kill_at={at}))
"""

INTERRUPTED = TrainSpec(epochs=3, lr=0.05, batch_size=40, ema=0.8, warmup_epochs=1, precision="32")
"""5 steps an epoch, 15 in all."""


def interrupted_model() -> SmallNet:
    model = small_net(1)
    masks.put(model, {"fc1.weight": torch.arange(24 * 256).reshape(24, 256) % 3 == 0})
    return model


@pytest.mark.parametrize(("kill_at", "resumes_at"), [(3, None), (8, 1), (15, 2)])
def test_after_kill_9_the_end_is_the_same_to_the_bit(digits, tmp_path, kill_at, resumes_at):
    """Killed in the first epoch, in the middle of the second, and in the third's last step, before its checkpoint."""
    code = CHILD.format(root=str(ROOT), unit=str(ROOT / "tests" / "unit"), folder=str(tmp_path), at=kill_at)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert child.returncode == -signal.SIGKILL, child.stderr

    whole, resumed = interrupted_model(), interrupted_model()
    expected = fit(whole, digits, INTERRUPTED, seed=7)
    progress = Recorder()
    record = fit(resumed, digits, INTERRUPTED, seed=7, checkpoints=tmp_path, progress=progress)
    assert record.resumed_at_epoch == resumes_at
    assert same_state(whole, resumed)
    assert [h["loss"] for h in record.history] == [h["loss"] for h in expected.history]
    assert record.images == expected.images and progress.steps == progress.total == 15
    assert (resumed.fc1.weight[~masks.get(resumed)["fc1.weight"]] == 0).all()


def test_a_finished_training_is_not_repeated_and_another_one_is_not_gone_on_from(digits, tmp_path):
    spec = TrainSpec(epochs=1, lr=0.05, batch_size=100)
    first, again = small_net(), small_net()
    fit(first, digits, spec, checkpoints=tmp_path)
    record = fit(again, digits, spec, checkpoints=tmp_path)
    assert record.resumed_at_epoch == 1 and same_state(first, again)

    other_start = small_net(5)
    assert fit(other_start, digits, spec, checkpoints=tmp_path).resumed_at_epoch is None
    assert fit(small_net(5), digits, spec, seed=1, checkpoints=tmp_path).resumed_at_epoch is None
    masked = small_net(5)
    masks.put(masked, {"fc2.weight": torch.ones_like(masked.fc2.weight, dtype=torch.bool)})
    assert fit(masked, digits, spec, seed=1, checkpoints=tmp_path).resumed_at_epoch is None
    fewer = dataclasses.replace(digits, train=digits.train.subset(np.arange(150)))
    assert fit(small_net(5), fewer, spec, seed=1, checkpoints=tmp_path).resumed_at_epoch is None


def _truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def _random(whole: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(whole))


def _some_bytes_random(whole: bytes) -> bytes:
    """In the middle of the weights, where torch itself notices nothing."""
    middle = len(whole) // 2
    return whole[:middle] + np.random.default_rng(0).bytes(16) + whole[middle + 16 :]


def _empty(whole: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_truncated, _random, _some_bytes_random, _empty])
def test_a_damaged_checkpoint_is_named_and_begun_anew(digits, tmp_path, damage):
    spec, file = TrainSpec(epochs=1, lr=0.05, batch_size=100), tmp_path / "checkpoint.pt"
    whole, again = small_net(), small_net()
    fit(whole, digits, spec, checkpoints=tmp_path)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with pytest.raises(UserError, match="this checkpoint is damaged") as error:
        resume.read(tmp_path, "any")
    assert error.value.where == str(file) and "Delete the file" in error.value.fix
    progress = Recorder()
    record = fit(again, digits, spec, checkpoints=tmp_path, progress=progress)
    assert record.resumed_at_epoch is None and same_state(whole, again)
    (said,) = progress.said
    assert said.startswith(f"{file}: this checkpoint is damaged, and what it kept is done anew: ") and "\n" not in said
    assert fit(small_net(), digits, spec, checkpoints=tmp_path).resumed_at_epoch == 1


def test_a_file_of_torchs_that_is_no_checkpoint_counts_as_damaged(tmp_path):
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="it holds a list"):
        resume.read(tmp_path, "any")


def test_divergence_says_where_and_what_to_try(digits):
    with pytest.raises(
        StepFailed, match=r"baseline diverged: .* no longer finite in epoch \d+, step \d+.*smaller lr"
    ) as e:
        fit(small_net(), digits, TrainSpec(epochs=4, lr=1e18, batch_size=32), label="baseline")
    assert "warmup_epochs" in str(e.value) and "clip_norm" in str(e.value)


def test_a_weight_that_ends_infinite_is_found_even_when_no_later_loss_tells(digits):
    # One step in all: its own loss is finite, what it makes of the weights is not.
    with pytest.raises(StepFailed, match="is no longer finite in epoch 1, step 1"):
        fit(small_net(), digits, TrainSpec(epochs=1, lr=3e38, batch_size=200, weight_decay=1e3))


def test_no_epochs_change_nothing(digits):
    model = small_net()
    record = fit(model, digits, TrainSpec(epochs=0))
    assert same_state(model, small_net()) and record.epochs == 0 and record.seconds == 0 and record.history == ()


def test_a_last_batch_of_one_image_is_left_out(digits):
    # Batch norm over 1×1 maps cannot be trained on one image: torch raises on it.
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    record = fit(model, digits, TrainSpec(epochs=1, batch_size=199))
    assert record.images == 199


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x), x


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (small_net(classes=7), "10 classes"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10)), "1 channel"),
        (Pair(), "tuple"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_a_clear_message(digits, model, words):
    with pytest.raises(UserError, match=words):
        fit(model, digits, TrainSpec(epochs=1))


def test_too_few_images_and_nothing_to_train_are_clear_messages(digits):
    one = ArrayPart.of(np.zeros((1, 32, 32, 1), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(UserError, match="too few"):
        fit(small_net(), dataclasses.replace(digits, train=one), TrainSpec(epochs=1))
    with pytest.raises(UserError, match="no parameter that can be trained"):
        fit(small_net().requires_grad_(False), digits, TrainSpec(epochs=1))


def test_float16_needs_a_gpu():
    with pytest.raises(UserError, match="needs a GPU"):
        fabric_precision("16", "cpu")
    assert fabric_precision("32", "cpu") == "32-true" and fabric_precision("bf16", "cpu") == "bf16-mixed"


def test_bfloat16_trains(digits):
    model = small_net()
    record = fit(model, digits, TrainSpec(epochs=8, batch_size=32, lr=0.1, precision="bf16"))
    assert record.precision == "bf16-mixed" and record.final_loss < record.history[0]["loss"] / 2
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_two_processes_train_like_one_on_the_same_batches(digits):
    """The several-GPU path, on two CPU processes: gradients are averaged, the weights come back to the caller."""
    spec = TrainSpec(epochs=1, lr=0.05, batch_size=50, precision="32")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 10))  # no batch norm, no dropout
    one, two = plain, nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 10))
    two.load_state_dict(one.state_dict())
    progress = Recorder()
    single, double = fit(one, digits, spec), fit(two, digits, spec, devices=2, progress=progress)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert double.final_loss == pytest.approx(single.final_loss, rel=1e-4) and double.images == single.images
    assert double.device.startswith("2 × cpu") and "2 processes" in progress.said[0]


def test_two_processes_stop_at_a_loss_that_is_not_finite(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 10))
    with pytest.raises(StepFailed, match="smaller lr"):
        fit(model, digits, TrainSpec(epochs=4, lr=1e18, batch_size=32), devices=2)


def test_schedules():
    cosine = TrainSpec(epochs=4, warmup_epochs=1)
    factors = [lr_factor(cosine, step, 10) for step in range(40)]
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert factors[10] == 1 and factors[25] == pytest.approx(0.5) and 0 < factors[-1] < 0.01
    assert factors[10:] == sorted(factors[10:], reverse=True)
    steps = TrainSpec(epochs=4, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert [lr_factor(steps, step, 10) for step in (0, 19, 20, 29, 30, 39)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert lr_factor(TrainSpec(schedule="constant"), 17, 10) == 1


def test_the_average_of_the_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, 0.9)
    nn.init.ones_(model.weight)
    expected = 0.0
    for t in range(1, 200):
        ema.update(model)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay)
    ema.store(model)
    assert model.weight.item() == pytest.approx(expected, abs=1e-6) and math.isclose(expected, 1, abs_tol=1e-6)
