"""What a training makes small: cross-entropy, or distillation from a teacher. Each is `(model, images, labels) → scalar`."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecompress.evaluate import device_of, logits

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The loss of plain training: cross-entropy of the logits, (N, classes), with label smoothing."""

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits(model, images), labels, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation:
    """alpha · T² · KL(p_teacher^T ‖ p_student^T) + (1 − alpha) · cross-entropy(labels, p_student), means over the batch.

    p^T is the softmax of logits / T, temperature T > 0. T² keeps the size of the soft gradient when T changes (Hinton,
    Vinyals and Dean 2015, section 2). The teacher is in eval mode and follows the images' device. kept: a .npy file with
    its logits (images, classes) for the training part, in order, which then stand for its forward pass.
    """

    teacher: nn.Module = dataclasses.field(repr=False)
    temperature: float
    alpha: float
    label_smoothing: float = 0.0
    kept: Path | None = dataclasses.field(default=None, repr=False)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        student = logits(model, images)
        with torch.no_grad():
            if device_of(self.teacher) != images.device:
                self.teacher.to(images.device)
            teacher = logits(self.teacher, images)
        return self._of(student, teacher, labels)

    def by_row(self, model: nn.Module, images: Tensor, labels: Tensor, rows: np.ndarray) -> Tensor:
        """The same for images whose places in the training part are known, int64 (N,): what is kept is looked up."""
        import numpy as np

        if self.kept is None:
            return self(model, images, labels)
        # Opened anew for each batch: a mapping cannot go to another process, and costs nothing to make.
        teacher = torch.from_numpy(np.load(self.kept, mmap_mode="r")[rows]).to(images.device)
        return self._of(logits(model, images), teacher, labels)

    def _of(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        soft = divergence(student, teacher, self.temperature)
        hard = cross_entropy(student, labels, label_smoothing=self.label_smoothing)
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard

    def facts(self) -> str:
        """All that the loss depends on, the teacher's weights by their hash: a resumed training must have the same."""
        return (
            f"{self!r} {'kept' if self.kept else ''} {getattr(self.teacher, 'facts', '')} {weights_hash(self.teacher)}"
        )


class Ensemble(nn.Module):
    """Several teachers as one: logits whose softmax at the temperature is the mean of theirs.

    mean: arithmetic, of the softened probabilities; or geometric, which is the mean of the logits (both are in Hinton,
    Vinyals and Dean 2015, section 1). Input as theirs; output (N, classes).
    """

    def __init__(self, teachers: Sequence[nn.Module], temperature: float, mean: str) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.temperature, self.mean = temperature, mean
        self.facts = f"{mean} {temperature} {[type(teacher).__qualname__ for teacher in teachers]}"

    def forward(self, images: Tensor) -> Tensor:
        each = torch.stack([logits(teacher, images) for teacher in self.teachers])
        if self.mean == "geometric":
            return each.mean(0)
        softened = (each / self.temperature).log_softmax(2)
        return self.temperature * (softened.logsumexp(0) - math.log(len(each)))


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)), summed over classes, mean over the batch; logits are (N, classes)."""
    from torch.nn.functional import kl_div, log_softmax

    return kl_div(
        log_softmax(student / temperature, dim=1),
        log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
