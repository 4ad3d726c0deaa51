"""Accuracy: image by image, in order, with ties and five classes or fewer as the record says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress.data import normalise
from edgecompress.data.parts import ArrayPart
from edgecompress.errors import StepFailed, UserError
from edgecompress.evaluate import accuracy
from tests.small_nets import few_digits, small_net

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def digits():
    return few_digits()


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_it_equals_a_plain_argmax_over_all_images_at_once(digits):
    model = small_net().train()
    result = accuracy(model, digits, "test", batch_size=50)
    assert model.training, "the mode is put back"
    x = torch.from_numpy(normalise(digits.test.images(np.arange(120)), digits.mean, digits.std))
    with torch.no_grad():
        logits = model.eval()(x)
    right = logits.argmax(1).numpy() == digits.test.labels
    assert result.correct == "".join("01"[int(r)] for r in right)
    assert result.images == 120 and result.split == "test" and result.top1 == pytest.approx(right.mean())
    top5 = (logits.topk(5).indices.numpy() == digits.test.labels[:, None]).any(1)
    assert result.top5 == pytest.approx(top5.mean())
    assert accuracy(model, digits, "val").images == len(digits.val)


def test_equal_logits_count_for_the_lower_class(digits):
    labels = digits.test.labels
    assert accuracy(Constant(*[0.0] * 10), digits, "test").top1 == pytest.approx((labels == 0).mean())
    assert accuracy(Constant(*[0.0] * 10), digits, "test").top5 == pytest.approx((labels < 5).mean())


def test_no_top5_for_five_classes(digits):
    five = dataclasses.replace(digits, num_classes=5, test=digits.test.subset(np.flatnonzero(digits.test.labels < 5)))
    assert accuracy(Constant(0.0, 1.0, 0.0, 0.0, 0.0), five, "test").top5 is None


def test_outputs_that_are_not_finite_are_no_accuracy(digits):
    with pytest.raises(StepFailed, match="not finite"):
        accuracy(Constant(*[float("nan")] * 10), digits, "test")


def test_a_model_or_part_that_does_not_fit_is_a_clear_message(digits):
    with pytest.raises(UserError, match="10 classes"):
        accuracy(Constant(0.0, 1.0), digits, "test")
    empty = ArrayPart.of(np.zeros((0, 32, 32, 1), np.uint8), np.zeros(0, np.int64))
    with pytest.raises(UserError, match="no images"):
        accuracy(small_net(), dataclasses.replace(digits, val=empty), "val")
