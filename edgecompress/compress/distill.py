"""Knowledge distillation: a student is trained on the softened outputs of the dense model, beside the labels.

What it does: the model that the recipe started from is the teacher. The student (a new network, or the model itself, for
one that earlier steps pruned) is trained with alpha · T² · KL(p_teacher^T ‖ p_student^T) + (1 − alpha) · cross-entropy.
Costs: a training of the student plus a forward pass of the teachers for each batch, or one over the data without augmentation.
Needs: data, and a teacher that is good at it. Gains: what the student's own size gives, in bytes, MACs and latency.
Paper: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from edgecompress import masks
from edgecompress.compress.contract import FINETUNE_LR, Context
from edgecompress.distillation import DistillSpec, FineTuneSpec, RelativeSpec, Teachers
from edgecompress.study import Positive, TrainSpec

if TYPE_CHECKING:
    from torch import nn


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Params:
    """Parameters of distillation.

    student: the network to train, a name or a mapping as for a study's model; without a name in the mapping, one made like
        the dense model with width, depth or args of its own; None: the model itself, masks held.
    temperature: T > 0, softens both outputs; 2 to 5 for small students, up to 20 for large ones.
    alpha: weight of the soft part, 0 to 1; the labels have 1 − alpha.
    teachers: "dense", or models with weights (without a name: made like the dense model); several are an ensemble.
    mean: of an ensemble's softened probabilities, "arithmetic" or "geometric" (the mean of the logits).
    cache: compute the teachers' outputs once where the data have no augmentation.
    epochs, lr, batch_size: of the training; over `train` where both are given.
    train: every other choice of the training. Default lr: 0.1 for a student from scratch, 0.01 for the model itself or a
        student with weights.
    """

    student: Annotated[RelativeSpec | None, BeforeValidator(_by_name)] = None
    temperature: Annotated[Positive, Field(allow_inf_nan=False)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    teachers: Teachers = ("dense",)
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    cache: bool = True
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


def keeps_layers(params: Params) -> bool:
    """Whether the network after the step has the layers and sizes of the one before."""
    return params.student is None


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The student, trained; or the model itself, trained in place. UserError: no data, other classes, no such copy."""
    context.need_data("distill")
    if params.student is None:
        student = model
    else:
        spec = params.student.resolved(context.teacher, "the student")
        student = context.build(spec)
        factors = [f"{key} {value:g}" for key in ("width", "depth") if (value := getattr(spec, key)) is not None]
        context.replaced_model(", ".join([f"a student, {spec.name}", *factors]))
        if masks.get(model):
            context.progress.say("distill: the student is a new network, the masks of earlier steps end here")
    soft = DistillSpec(
        temperature=params.temperature,
        alpha=params.alpha,
        teachers=params.teachers,
        mean=params.mean,
        cache=params.cache,
    )
    context.train(student, FineTuneSpec(**training(params).model_dump(), distill=soft), method="distill")
    return student
