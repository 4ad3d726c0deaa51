"""Distillation as the loss of a training: what a user may write of it, and the loss that comes of it (Hinton 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from edgecompress.study import Spec, TrainSpec

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.data import Dataset
    from edgecompress.losses import Distillation


class DistillSpec(Spec):
    """The soft targets of a training: alpha · T² · KL(p_teacher^T ‖ p_student^T) + (1 − alpha) · cross-entropy."""

    temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False, description="T, softens both outputs")
    alpha: float = Field(default=0.9, ge=0, le=1, description="weight of the soft part; the labels have 1 − alpha")


class FineTuneSpec(TrainSpec):
    """The training after a method has changed the weights: any TrainSpec, on labels alone or under the dense model."""

    distill: DistillSpec | None = Field(
        default=None, description="train under the dense model's softened outputs beside the labels; null: labels alone"
    )


def distillation_loss(spec: DistillSpec, teacher: nn.Module, data: Dataset, label_smoothing: float) -> Distillation:
    """The loss of a training under the teacher (frozen, eval mode). UserError when its classes are not those of the data."""
    from edgecompress.losses import Distillation
    from edgecompress.models.building import check_output

    check_output(teacher, num_classes=data.num_classes, in_shape=data.in_shape, where="the teacher")
    return Distillation(teacher, spec.temperature, spec.alpha, label_smoothing)
