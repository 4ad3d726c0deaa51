"""How a training moves: the optimiser, the learning rate at each step, the precision, and the average of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgecompress.errors import UserError
from edgecompress.study import TrainSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


def lr_factor(spec: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step (from 0): linear warm-up, then the schedule over what remains.

    A function of the step alone: a resumed training needs no scheduler's state.
    """
    warmup = round(spec.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    total = spec.epochs * steps_per_epoch
    if spec.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    if spec.schedule == "step":
        return float(spec.gamma ** sum(step >= m * total for m in spec.milestones))
    return 1.0


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """The spec's optimiser over every parameter that wants a gradient. UserError when there is none."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UserError(
            "the model has no parameter that can be trained", fix="Set requires_grad on what is to be trained."
        )
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, weight_decay=spec.weight_decay
        )
    kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=spec.lr, betas=(spec.momentum, 0.999), weight_decay=spec.weight_decay)


def fabric_precision(wanted: str, kind: str) -> Any:
    """Fabric's word for the precision. 'auto' takes 16 bits only where the hardware multiplies in them."""
    import torch

    if wanted == "16" and kind == "cpu":
        raise UserError("precision '16' (float16) needs a GPU", where="precision", fix="Use auto, bf16 or 32.")
    if wanted == "auto":
        if kind == "cuda":
            wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
        else:
            able = torch.cpu.get_capabilities()
            wanted = "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[wanted]


class Ema:
    """Exponential moving average of weights and float buffers.

    The decay grows as (1 + t) / (10 + t) up to the given one, so that a short training is not held at its first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {n: t.detach().clone() for n, t in model.state_dict().items() if t.is_floating_point()}

    def update(self, model: nn.Module) -> None:
        """Take the model's present weights into the average; after every optimiser step."""
        import torch

        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = model.state_dict()
        with torch.no_grad():
            for name, average in self.shadow.items():
                average.lerp_(state[name], 1 - decay)

    def store(self, model: nn.Module) -> None:
        """Give the model the averaged weights."""
        model.load_state_dict({**model.state_dict(), **self.shadow})
