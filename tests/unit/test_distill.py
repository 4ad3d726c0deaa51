"""Distillation: the loss to the letter of the paper, the teacher untouched, masks held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgecompress import masks
from edgecompress.compress import magnitude
from edgecompress.compress.contract import Context, full_params, parse_params
from edgecompress.compress.distill import apply, training
from edgecompress.distillation import DistillSpec, FineTuneSpec
from edgecompress.errors import UserError
from edgecompress.losses import CrossEntropy, Distillation
from edgecompress.recipe import frozen_copy, run_steps
from edgecompress.study import Step, TrainSpec
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


def pruned(tmp_path, finetune, **more):
    torch.set_num_threads(1)
    step = Step(method="magnitude", params={"sparsity": 0.5, "finetune": finetune, **more})
    return run_steps(small_net(), (step,), data=few_digits(120), seed=0, scratch=tmp_path)


def test_any_steps_fine_tuning_can_be_under_the_dense_model(tmp_path):
    model, (record,) = pruned(tmp_path / "soft", {**TUNE, "distill": SOFT})
    assert record.notes["distilled"] == SOFT
    assert record.params["finetune"]["distill"] == SOFT and record.params["finetune"]["lr"] == 0.01
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
    assert len(record.trainings) == 2 and record.params["finetune"]["distill"] == SOFT


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
