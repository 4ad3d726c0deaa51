"""What a training makes small: cross-entropy, or distillation from a teacher. Each is `(model, images, labels) → scalar`."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

from edgecompress.evaluate import device_of, logits

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    Vinyals and Dean 2015, section 2). The teacher is in eval mode and follows the images' device.
    """

    teacher: nn.Module = dataclasses.field(repr=False)
    temperature: float
    alpha: float
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        student = logits(model, images)
        with torch.no_grad():
            if device_of(self.teacher) != images.device:
                self.teacher.to(images.device)
            teacher = logits(self.teacher, images)
        soft = divergence(student, teacher, self.temperature)
        hard = cross_entropy(student, labels, label_smoothing=self.label_smoothing)
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard

    def facts(self) -> str:
        """All that the loss depends on, the teacher's weights by their hash: a resumed training must have the same."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self.teacher.state_dict().items()):
            digest.update(name.encode())
            digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        return f"{self!r} {digest.hexdigest()}"


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)), summed over classes, mean over the batch; logits are (N, classes)."""
    from torch.nn.functional import kl_div, log_softmax

    return kl_div(
        log_softmax(student / temperature, dim=1),
        log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
