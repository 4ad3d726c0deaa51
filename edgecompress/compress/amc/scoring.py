"""What a policy is worth: the accuracy of its network on validation images (held out of the training part, never the test part),
without fine-tuning, and the reward that follows from it.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgecompress.compress.amc import Reward
    from edgecompress.data import Dataset, Part

BATCH = 50
"""Images that are fed at once: what a network makes of so few stays near the processor."""


def reward(kind: Reward, top1: float, macs: float, params: float) -> float:
    """-error; the accuracy; -error · ln(MACs); -error · ln(parameters). top1 in [0, 1]."""
    if kind == "accuracy":
        return top1
    factor = {"error": 1.0, "error-log-macs": math.log(max(macs, 1.0)), "error-log-params": math.log(max(params, 1.0))}
    return -(1.0 - top1) * factor[kind]


def some(part: Part, count: int, seed: int) -> np.ndarray:
    """Indices of at most `count` images of a part, each class with its share; the same for the same seed."""
    from edgecompress.data.splitting import stratified

    return stratified(part.labels, min(count, len(part)), seed=seed)


class Scorer:
    """The same images in the same order for every policy, kept in memory as the network is fed them."""

    def __init__(self, data: Dataset, images: int, seed: int) -> None:
        """images: of the validation part, at most. UserError: it has none."""
        import torch

        if len(data.val) == 0:
            fix = "Use data with a val part, or a val_fraction."
            raise UserError("amc needs validation images, and there are none", where=f"data {data.name}", fix=fix)
        chosen = some(data.val, images, seed)
        self.images = len(chosen)
        self.pass_s = 0.0
        """Seconds that networks took over the images, since this was made."""
        self._device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        # Narrow convolutions, which pruned ones are, run faster with the channels last.
        self._batches = [
            (images.to(self._device, memory_format=torch.channels_last), labels)
            for images, labels in _fed(data, data.val, chosen)
        ]

    def top1(self, model: nn.Module) -> float:
        """Fraction of the images whose largest logit is the label's (of equal ones the first counts); 0 where a logit is not
        finite. model: in eval mode; it may be left on another device and in another memory format."""
        began = time.monotonic()
        try:
            return self._right(model) / self.images
        finally:
            self.pass_s += time.monotonic() - began

    def _right(self, model: nn.Module) -> int:
        import torch

        from edgecompress.evaluate import logits

        model = model.to(self._device, memory_format=torch.channels_last)
        right = 0
        with torch.no_grad():
            for images, labels in self._batches:
                scores = logits(model, images).cpu()
                if not bool(torch.isfinite(scores).all()):
                    return 0
                first = scores.argsort(dim=1, descending=True, stable=True)[:, 0]
                right += int((first == labels).sum())
        return right


def training_images(data: Dataset, count: int, seed: int) -> list[Tensor]:
    """Batches of normalised training images, not augmented, for `reconstruction`."""
    return [images for images, _ in _fed(data, data.train, some(data.train, count, seed))]


def _fed(data: Dataset, part: Part, chosen: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    from edgecompress.data import batches

    stream = batches(
        data, part.subset(chosen), batch_size=BATCH, shuffle=False, augment=False, seed=0, epoch=0
    )  # fmt: skip
    return list(stream)
