"""Distillation as the loss of a training: what a user may write of it, and the loss that comes of it (Hinton 2015)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from edgecompress.errors import UserError
from edgecompress.study import ExistingPath, ModelSpec, Spec, TrainSpec

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.contract import Context
    from edgecompress.data import Dataset
    from edgecompress.losses import Distillation
    from edgecompress.progress import Progress


class RelativeSpec(Spec):
    """A network by name, or one made like the dense model: narrower, shallower, or with other arguments or weights."""

    name: str | None = Field(
        default=None, description="as in a study's model; null: what the dense model was made from"
    )
    args: dict[str, Any] = Field(
        default={}, description="keyword arguments; without a name over those of the dense model"
    )
    width: float | None = Field(
        default=None, gt=0, description="multiplies the channels; without a name those of the dense model"
    )
    depth: float | None = Field(
        default=None, gt=0, description="multiplies the layers of a stage; without a name those of the dense model"
    )
    weights: ExistingPath | None = Field(default=None, description="checkpoint, as in a study's model")

    @model_validator(mode="after")
    def _consistent(self) -> RelativeSpec:
        if self.name is not None:
            try:
                ModelSpec.model_validate(self.model_dump())
            except ValidationError as error:
                raise ValueError(_reason(error)) from None
        return self

    def resolved(self, dense: nn.Module, who: str) -> ModelSpec:
        """The model to build. UserError: one like the dense model is asked for, and cannot be made of what that one is."""
        from edgecompress.models import origin

        if self.name is not None:
            return ModelSpec.model_validate(self.model_dump())
        known = origin(dense)
        if known is None:
            raise UserError(
                f"{who} cannot be made like the dense model: that is a module of your own, not built from a name",
                fix='Name the network: {name: "package.module:callable", args: {…}}, or one of the zoo.',
            )
        spec = known.spec
        for key in ("width", "depth"):
            if getattr(self, key) is not None and ":" in spec.name:
                raise UserError(
                    f"{who} cannot be made from {spec.name} by {key}, which is for models of the zoo",
                    fix="Give the args in which it differs, for example args: {channels: 12}.",
                )
        # A copy does not start from the pretrained weights that torchvision's `weights` argument asks for.
        args = {key: value for key, value in spec.args.items() if key != "weights" or ":" not in spec.name} | self.args
        factors = {key: _product(getattr(spec, key), getattr(self, key)) for key in ("width", "depth")}
        try:
            return ModelSpec.model_validate({"name": spec.name, "args": args, "weights": self.weights, **factors})
        except ValidationError as error:
            raise UserError(
                f"{who} cannot be made like the dense model: {_reason(error)}", fix="Name another network."
            ) from None


def _product(one: float | None, other: float | None) -> float | None:
    return one if other is None else (1.0 if one is None else one) * other


def _reason(error: ValidationError) -> str:
    return "; ".join(d["msg"].removeprefix("Value error, ") for d in error.errors(include_url=False))


class TeacherSpec(RelativeSpec):
    """A teacher beside or instead of the dense model: trained, so its weights must come from somewhere."""

    @model_validator(mode="after")
    def _trained(self) -> TeacherSpec:
        own_business = self.name is not None and ":" in self.name
        torchvision = self.name is not None and self.name.startswith("torchvision:")
        if self.weights is None and (not own_business or (torchvision and not self.args.get("weights"))):
            raise ValueError("a teacher must be trained: give its weights")
        return self


def _listed(value: Any) -> Any:
    found = [value] if isinstance(value, (str, dict)) else value
    if isinstance(found, (list, tuple)) and not found:
        raise ValueError("name one teacher at least, or leave teachers out")
    return found


def _kind(value: Any) -> str:
    return "word" if isinstance(value, str) else "model"


Teacher = Annotated[
    Annotated[Literal["dense"], Tag("word")] | Annotated[TeacherSpec, Tag("model")], Discriminator(_kind)
]
"""`dense`, the model that the recipe started from, or another trained network."""

Teachers = Annotated[tuple[Teacher, ...], BeforeValidator(_listed)]
"""One teacher or more; one alone may stand without its list."""


class DistillSpec(Spec):
    """The soft targets of a training: alpha · T² · KL(p_teacher^T ‖ p_student^T) + (1 − alpha) · cross-entropy."""

    temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False, description="T, softens both outputs")
    alpha: float = Field(default=0.9, ge=0, le=1, description="weight of the soft part; the labels have 1 − alpha")
    teachers: Teachers = Field(
        default=("dense",),
        description="dense (the model that the recipe started from), or models with weights; several are an ensemble",
    )
    mean: Literal["arithmetic", "geometric"] = Field(
        default="arithmetic", description="of the teachers' softened probabilities; geometric: the mean of their logits"
    )
    cache: bool = Field(
        default=True, description="compute the teachers' outputs once where no augmentation changes the images"
    )


class FineTuneSpec(TrainSpec):
    """The training after a method has changed the weights: any TrainSpec, on labels alone or under the dense model."""

    distill: DistillSpec | None = Field(
        default=None, description="train under the dense model's softened outputs beside the labels; null: labels alone"
    )


def distillation_loss(spec: DistillSpec, training: TrainSpec, context: Context) -> Distillation:
    """The loss of a training under the context's dense model and whatever other teachers the spec names.

    Their outputs are kept in a file under the context's scratch where they would come out the same in every epoch. The step's
    notes say what was done. UserError: a teacher whose classes are not those of the data, or that cannot be built.
    """
    from edgecompress.losses import Distillation, Ensemble
    from edgecompress.models.building import check_output
    from edgecompress.recipe import frozen_copy

    data = context.need_data("distill")
    check_output(context.teacher, num_classes=data.num_classes, in_shape=data.in_shape, where="the teacher")
    teachers, names = [], list[str]()
    for number, one in enumerate(spec.teachers, 1):
        if isinstance(one, str):
            teachers.append(context.teacher)
            names.append(one)
        else:
            model = one.resolved(context.teacher, f"teacher {number}")
            teachers.append(frozen_copy(context.build(model)))
            names.append(f"{model.name} ({model.weights.name})" if model.weights else model.name)
    teacher = teachers[0] if len(teachers) == 1 else Ensemble(teachers, spec.temperature, spec.mean)
    reason = _why_not_kept(spec, data, context.scratch)
    kept = None
    if reason is None and training.epochs:
        kept = keep_logits(teacher, data, context.scratch, context.progress)
    note = {"temperature": spec.temperature, "alpha": spec.alpha, "teachers": names}
    note |= {"mean": spec.mean} if len(names) > 1 else {}
    context.note(
        "distilled", note | {"teacher_outputs": f"anew for each batch: {reason}" if reason else "computed once"}
    )
    return Distillation(teacher, spec.temperature, spec.alpha, training.label_smoothing, kept)


def _why_not_kept(spec: DistillSpec, data: Dataset, scratch: Path) -> str | None:
    if not spec.cache:
        return "cache is off"
    if data.augment != "none":
        return f"the augmentation ({data.augment}) changes the images"
    folder = next(parent for parent in (scratch, *scratch.parents) if parent.exists())
    needed, free = 4 * len(data.train) * data.num_classes, shutil.disk_usage(folder).free
    return None if needed < free / 2 else f"they take {needed} bytes, more than half of what is free on disk"


def keep_logits(teacher: nn.Module, data: Dataset, folder: Path, progress: Progress) -> Path:
    """A .npy file under `folder` with the teacher's float32 logits (images, classes) for `data.train`, in order.

    One that is there already for the same teacher and data is taken as it is. Memory: one batch. On a GPU where there is one.
    """
    import numpy as np
    import torch

    from edgecompress.data import batches
    from edgecompress.evaluate import device_of, logits
    from edgecompress.losses import weights_hash

    digest = hashlib.sha256(f"{weights_hash(teacher)} {getattr(teacher, 'facts', '')}".encode())
    digest.update(json.dumps(data.record(), sort_keys=True).encode() + data.train.labels.tobytes())
    path = folder / f"teacher-{digest.hexdigest()[:16]}.npy"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    home = device_of(teacher)
    device = torch.device("cuda") if torch.cuda.is_available() else home
    rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(data.train), data.num_classes))
    teacher.to(device)
    try:
        with torch.no_grad(), progress.task("the teacher's outputs", len(rows)) as task:
            start = 0
            stream = batches(data, data.train, batch_size=256, shuffle=False, augment=False, seed=0, epoch=0)
            for images, labels in stream:
                rows[start : start + len(labels)] = logits(teacher, images.to(device)).cpu().numpy()
                start += len(labels)
                task.advance(len(labels))
        rows.flush()
    finally:
        teacher.to(home)
    partial.replace(path)
    return path
