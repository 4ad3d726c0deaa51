"""Distillation: the loss to the letter of the paper, the teacher untouched, masks held."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from edgecompress import masks
from edgecompress.compress import magnitude
from edgecompress.compress.contract import Context, full_params, parse_params
from edgecompress.compress.distill import apply, training
from edgecompress.data import batches
from edgecompress.distillation import DistillSpec, FineTuneSpec
from edgecompress.errors import UserError
from edgecompress.losses import CrossEntropy, Distillation, Ensemble
from edgecompress.models import build
from edgecompress.recipe import frozen_copy, run_steps
from edgecompress.study import ModelSpec, Step, TrainSpec
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy


class Fixed(nn.Module):
    """Logits that are the parameters themselves, one row per image."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x):
        return self.rows * 1.0


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (20.0, 1.0), (2.5, 0.0)])
def test_the_loss_equals_the_formula(temperature, alpha):
    rng = np.random.default_rng(0)
    z, v, labels = rng.normal(size=(6, 10)) * 3, rng.normal(size=(6, 10)) * 3, rng.integers(0, 10, 6)
    p, q = softmax(v / temperature), softmax(z / temperature)
    soft = (p * (np.log(p) - np.log(q))).sum(1).mean()
    hard = -np.log(softmax(z)[np.arange(6), labels]).mean()
    expected = alpha * temperature**2 * soft + (1 - alpha) * hard
    loss = Distillation(Fixed(torch.tensor(v).float()), temperature, alpha)
    value = loss(Fixed(torch.tensor(z).float()), torch.zeros(6, 1, 1, 1), torch.tensor(labels))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_soft_part_is_that_of_the_paper():
    # ∂(T² · KL)/∂z = T (q − p) / N, q and p at temperature T
    rng = np.random.default_rng(1)
    z, v, t = rng.normal(size=(4, 10)), rng.normal(size=(4, 10)), 3.0
    student = Fixed(torch.tensor(z).float())
    Distillation(Fixed(torch.tensor(v).float()), t, 1.0)(
        student, torch.zeros(4, 1, 1, 1), torch.zeros(4).long()
    ).backward()
    np.testing.assert_allclose(
        student.rows.grad.numpy(), t * (softmax(z / t) - softmax(v / t)) / 4, rtol=1e-4, atol=1e-6
    )


def context(tmp_path, teacher, data):
    return Context(data=data, seed=0, teacher=frozen_copy(teacher), scratch=tmp_path)


def test_a_student_of_its_own_is_trained_and_the_teacher_is_not(tmp_path):
    torch.set_num_threads(1)
    data, teacher = few_digits(120), small_net()
    own = {"student": {"name": "tests.small_nets:small_net", "args": {"seed": 3}}, "epochs": 2, "batch_size": 60}
    ctx = context(tmp_path, teacher, data)
    before = frozen_copy(teacher)
    student = apply(teacher, parse_params("distill", own), ctx)
    assert student is not teacher and not same_state(student, small_net(3))
    assert same_state(ctx.teacher, before) and all(p.grad is None for p in ctx.teacher.parameters())
    assert "replaced_model" in ctx.notes
    (record,) = ctx.trainings
    assert record.epochs == 2 and record.history[1]["loss"] < record.history[0]["loss"]


def test_the_model_itself_keeps_its_mask(tmp_path):
    torch.set_num_threads(1)
    data, model = few_digits(120), small_net()
    ctx = context(tmp_path, model, data)
    keep = torch.arange(24 * 256).reshape(24, 256) % 5 == 0
    masks.put(model, {"fc1.weight": keep})
    result = apply(model, parse_params("distill", {"epochs": 1, "batch_size": 60}), ctx)
    assert result is model and "replaced_model" not in ctx.notes
    assert torch.equal(model.fc1.weight != 0, keep) and not same_state(model, ctx.teacher)


def test_shortcuts_stand_over_train_and_defaults_depend_on_the_student(tmp_path):
    spec = training(parse_params("distill", {"epochs": 3, "train": {"epochs": 9, "lr": 0.2, "optimizer": "adam"}}))
    assert (spec.epochs, spec.lr, spec.optimizer) == (3, 0.2, "adam")
    assert training(parse_params("distill", {})).lr == 0.01
    assert training(parse_params("distill", {"student": "resnet20"})).lr == 0.1
    full = full_params("distill", {"student": "resnet20"})
    assert full["student"]["name"] == "resnet20" and full_params("distill", full) == full


def test_bad_input_is_one_clear_message(tmp_path):
    with pytest.raises(UserError, match="needs data"):
        apply(small_net(), parse_params("distill", {}), context(tmp_path, small_net(), None))
    other = {"student": {"name": "tests.small_nets:small_net", "args": {"classes": 7}}}
    with pytest.raises(UserError, match="10 classes"):
        apply(small_net(), parse_params("distill", other), context(tmp_path, small_net(), few_digits(40)))
    with pytest.raises(UserError, match=r"teacher.*10 classes"):
        apply(small_net(), parse_params("distill", {}), context(tmp_path, small_net(classes=7), few_digits(40)))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"alpha": 1.1}, "alpha"),
        ({"epochs": 0}, "epochs"),
        ({"student": "resnet21"}, "unknown model 'resnet21'"),
        ({"epochs": 2, "train": {"warmup_epochs": 3}}, "warmup_epochs"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words):
        parse_params("distill", params)


SOFT = {"temperature": 3.0, "alpha": 0.8}
TUNE = {"epochs": 1, "batch_size": 60}


def close(a, b) -> bool:
    """Equal to a few roundings: a row of a matrix product depends on the batch that it is in."""
    return all(torch.allclose(x, b.state_dict()[k], rtol=1e-4, atol=1e-6) for k, x in a.state_dict().items())


def pruned(tmp_path, finetune, **more):
    torch.set_num_threads(1)
    step = Step(method="magnitude", params={"sparsity": 0.5, "finetune": finetune, **more})
    return run_steps(small_net(), (step,), data=few_digits(120), seed=0, scratch=tmp_path)


def test_any_steps_fine_tuning_can_be_under_the_dense_model(tmp_path):
    model, (record,) = pruned(tmp_path / "soft", {**TUNE, "distill": SOFT})
    assert record.notes["distilled"] == {
        **SOFT,
        "teachers": ["dense"],
        "teacher_outputs": "anew for each batch: the augmentation (crop) changes the images",
    }
    assert record.params["finetune"]["distill"].items() >= SOFT.items() and record.params["finetune"]["lr"] == 0.01
    plain, (other,) = pruned(tmp_path / "plain", TUNE)
    assert "distilled" not in other.notes and other.params["finetune"]["distill"] is None
    assert not same_state(model, plain)
    # What the context makes of the words is the loss given by hand.
    by_hand, context_ = small_net(), context(tmp_path / "hand", small_net(), few_digits(120))
    masks.put(by_hand, masks.get(model))
    loss = Distillation(context_.teacher, 3.0, 0.8)
    context_.train(by_hand, FineTuneSpec(**TUNE, lr=0.01), method="magnitude", loss=loss)
    assert same_state(model, by_hand)


def test_every_round_of_a_gradual_pruning_is_distilled(tmp_path):
    _, (record,) = pruned(tmp_path, {**TUNE, "epochs": 2, "distill": SOFT}, steps=2)
    assert len(record.trainings) == 2 and record.notes["distilled"]["temperature"] == 3.0


def test_distill_is_no_word_of_a_baseline_and_checks_its_values(tmp_path):
    with pytest.raises(ValidationError, match="distill"):
        TrainSpec.model_validate({"distill": SOFT})
    for bad, words in (({"temperature": 0}, "temperature"), ({"alpha": 2}, "alpha"), ({"T": 4}, "T: Extra")):
        with pytest.raises(ValueError, match=words):
            parse_params("magnitude", {"finetune": {"distill": bad}})
    with pytest.raises(UserError, match=r"the teacher.*10 classes"):
        apply_pruning = parse_params("magnitude", {"finetune": {**TUNE, "distill": {}}})
        magnitude.apply(small_net(), apply_pruning, context(tmp_path, small_net(classes=7), few_digits(40)))


def test_a_method_with_a_loss_of_its_own_refuses_a_distilled_training(tmp_path):
    spec = FineTuneSpec(epochs=1, distill=DistillSpec())
    with pytest.raises(UserError, match="loss of its own"):
        context(tmp_path, small_net(), few_digits(40)).train(small_net(), spec, method="own", loss=CrossEntropy())


def plain(data):
    return dataclasses.replace(data, augment="none")


def test_kept_outputs_train_as_those_of_each_batch_do(tmp_path):
    torch.set_num_threads(1)
    spec = {"epochs": 2, "batch_size": 50, "lr": 0.01, "precision": "32"}  # a last batch that is smaller
    data, results = plain(few_digits(120)), {}
    for cache in (True, False):
        ctx = context(tmp_path / str(cache), small_net(), data)
        results[cache] = small_net(4)
        ctx.train(results[cache], FineTuneSpec(**spec, distill=DistillSpec(cache=cache)), method="own")
        assert ctx.notes["distilled"]["teacher_outputs"].startswith("computed once" if cache else "anew for each batch")
        assert bool(list((tmp_path / str(cache)).rglob("teacher-*.npy"))) == cache
    assert close(results[True], results[False])
    # Images out of their order would not pass for the same.
    (file,) = (tmp_path / "True").rglob("teacher-*.npy")
    rows = np.load(file)
    with torch.no_grad():
        images = torch.cat([x for x, _ in batches(data, data.train, **IN_ORDER)])
        assert np.allclose(rows, small_net().eval()(images).numpy(), atol=1e-5)


IN_ORDER = {"batch_size": 7, "shuffle": False, "augment": False, "seed": 0, "epoch": 0}


def test_augmented_images_are_never_looked_up(tmp_path):
    torch.set_num_threads(1)
    ctx = context(tmp_path, small_net(), dataclasses.replace(few_digits(60), augment="shift"))
    ctx.train(small_net(1), FineTuneSpec(epochs=1, batch_size=30, distill=DistillSpec()), method="own")
    assert "augmentation (shift)" in ctx.notes["distilled"]["teacher_outputs"]
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_an_ensemble_is_the_mean_of_its_teachers(mean):
    rng = np.random.default_rng(2)
    rows = [rng.normal(size=(5, 10)) * 4 for _ in range(3)]
    ensemble = Ensemble([Fixed(torch.tensor(r).float()) for r in rows], 2.5, mean)
    found = softmax(ensemble(torch.zeros(5, 1, 1, 1)).detach().numpy() / 2.5)
    each = np.stack([softmax(r / 2.5) for r in rows])
    expected = each.mean(0) if mean == "arithmetic" else np.exp(np.log(each).mean(0))
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def lenet(seed: int = 0, width: float = 0.2):
    return build(ModelSpec(name="lenet300", width=width), num_classes=10, in_shape=(1, 32, 32), seed=seed)


def test_teachers_beside_and_instead_of_the_dense_model(tmp_path):
    torch.set_num_threads(1)
    data, dense = few_digits(60), lenet()
    save_file(lenet(7).state_dict(), tmp_path / "other.safetensors")
    other = {"weights": str(tmp_path / "other.safetensors")}
    once = {"epochs": 1, "batch_size": 30}
    results = []
    for teachers in ("dense", ["dense", other], other):
        ctx = context(tmp_path / str(len(results)), dense, data)
        results.append(apply(lenet(3), parse_params("distill", {**once, "teachers": teachers}), ctx))
    assert ctx.notes["distilled"]["teachers"] == ["lenet300 (other.safetensors)"]
    assert not same_state(results[0], results[1]) and not same_state(results[1], results[2])
    # Instead of the dense model: the same as that one being the dense model.
    alone = apply(lenet(3), parse_params("distill", once), context(tmp_path / "alone", lenet(7), data))
    assert same_state(results[2], alone)


def test_a_student_like_the_dense_model_but_smaller(tmp_path):
    def student(dense, given):
        return parse_params("distill", {"student": given}).student.resolved(dense, "the student")

    assert student(lenet(), {"width": 0.5}).width == pytest.approx(0.1)
    dense = build(ModelSpec(name="resnet32"), num_classes=10, in_shape=(1, 32, 32))
    smaller = student(dense, {"width": 0.5, "depth": 0.4})
    assert (smaller.name, smaller.width, smaller.depth, smaller.weights) == ("resnet32", 0.5, 0.4, None)
    net = build(smaller, num_classes=10, in_shape=(1, 32, 32))
    assert len(net.layer1) == 2 and net.linear.in_features == 32
    own = ModelSpec(name="tests.small_nets:small_net", args={"seed": 3})
    assert student(build(own, num_classes=10, in_shape=(1, 32, 32)), {"args": {"seed": 4}}).args == {"seed": 4}


@pytest.mark.parametrize(
    ("dense", "student", "words"),
    [
        (small_net, {"width": 0.5}, r"the student cannot be made like the dense model: that is a module of your own"),
        (lenet, {"depth": 0.5}, r"lenet300 has no stages that depth could multiply"),
        (
            lambda: build(ModelSpec(name="tests.small_nets:small_net"), num_classes=10, in_shape=(1, 32, 32)),
            {"width": 0.5},
            r"tests\.small_nets:small_net by width, which is for models of the zoo",
        ),
    ],
)
def test_a_copy_that_cannot_be_made_is_one_clear_message(tmp_path, dense, student, words):
    with pytest.raises(UserError, match=words):
        apply(dense(), parse_params("distill", {"student": student}), context(tmp_path, dense(), few_digits(40)))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"teachers": [{"name": "resnet20"}]}, "must be trained: give its weights"),
        ({"teachers": []}, "name one teacher at least"),
        ({"teachers": ["sparse"]}, r"teachers\.0\.word: Input should be 'dense'"),
        ({"teachers": {"weights": "/nowhere.pt"}}, "no such file"),
        ({"student": {"name": "resnet20", "args": {"a": 1}}}, "takes width and depth only"),
        ({"mean": "harmonic"}, "mean"),
    ],
)
def test_bad_teachers_and_students_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_params("distill", params)
    assert str(caught.value).count("method distill") == 1  # one mistake, one message
