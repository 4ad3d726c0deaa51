"""Knowledge distillation: a student is trained on the softened outputs of the dense model, beside the labels.

What it does: the model that the recipe started from is the teacher. The student (a new network, or the model itself, for
one that earlier steps pruned) is trained with alpha · T² · KL(p_teacher^T ‖ p_student^T) + (1 − alpha) · cross-entropy.
Costs: a training of the student plus a forward pass of the teacher for each batch.
Needs: data, and a teacher that is good at it. Gains: what the student's own size gives, in bytes, MACs and latency.
Paper: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from edgecompress import masks
from edgecompress.compress.contract import FINETUNE_LR, Context
from edgecompress.study import ModelSpec, Positive, TrainSpec

if TYPE_CHECKING:
    from torch import nn


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Params:
    """Parameters of distillation.

    student: the network to train, a name or a mapping as for a study's model; None: the model itself, masks held.
    temperature: T > 0, softens both outputs; 2 to 5 for small students, up to 20 for large ones.
    alpha: weight of the soft part, 0 to 1; the labels have 1 − alpha.
    epochs, lr, batch_size: of the training; over `train` where both are given.
    train: every other choice of the training. Default lr: 0.1 for a student from scratch, 0.01 for the model itself or a
        student with weights.
    """

    student: Annotated[ModelSpec | None, BeforeValidator(_by_name)] = None
    temperature: Annotated[Positive, Field(allow_inf_nan=False)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    epochs: Annotated[int, Field(ge=1)] | None = None
    lr: Positive | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    train: TrainSpec | None = None

    def __post_init__(self) -> None:
        training(self)


def training(params: Params) -> TrainSpec:
    """The training that the parameters ask for. ValueError when they contradict each other."""
    fresh = params.student is not None and params.student.weights is None
    spec = params.train or (TrainSpec() if fresh else TrainSpec(lr=FINETUNE_LR))
    shortcuts = {"epochs": params.epochs, "lr": params.lr, "batch_size": params.batch_size}
    given = {key: value for key, value in shortcuts.items() if value is not None}
    return TrainSpec.model_validate({**spec.model_dump(), **given})


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The student, trained; or the model itself, trained in place. UserError when there is no data or the classes differ."""
    from edgecompress.evaluate import device_of
    from edgecompress.losses import Distillation
    from edgecompress.models.building import check_output

    data = context.need_data("distill")
    teacher = context.teacher
    check_output(teacher, num_classes=data.num_classes, in_shape=data.in_shape, where="the teacher")
    if params.student is None:
        student = model
    else:
        student = context.build(params.student)
        context.replaced_model(f"a student, {params.student.name}")
        if masks.get(model):
            context.progress.say("distill: the student is a new network, the masks of earlier steps end here")
    spec = training(params)
    home = device_of(teacher)
    try:
        loss = Distillation(teacher, params.temperature, params.alpha, spec.label_smoothing)
        context.train(student, spec, method="distill", loss=loss)
    finally:
        teacher.to(home)
    return student
