"""The network of Hinton's MNIST experiment (2015, section 3): fully connected, hidden layers of equal size, ReLU, dropout."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from edgecompress.errors import UserError
from edgecompress.models.initialise import he, scaled

InShape = tuple[int, int, int]


class MLP(nn.Module):
    """Linear layers inputs-hidden-…-hidden-classes with ReLU between, dropout on the input and after each ReLU. Keys `fc.N`."""

    def __init__(self, sizes: list[int], dropout: float, input_dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.fc = nn.Sequential(*layers[: -2 if dropout else -1])
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


def mlp(
    num_classes: int,
    in_shape: InShape,
    width: float = 1.0,
    depth: float = 1.0,
    *,
    hidden: int = 1200,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
) -> nn.Module:
    """Two hidden layers of 1200: 2,395,210 parameters for 28×28×1 and 10 classes. UserError: a probability outside [0, 1)."""
    if not isinstance(hidden, int) or hidden < 1:
        raise UserError(f"hidden is {hidden!r}, not a number of units", where="model mlp", fix="Give 1 or more.")
    for name, value in (("dropout", dropout), ("input_dropout", input_dropout)):
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise UserError(f"{name} is {value!r}, not a probability below 1", where="model mlp", fix="Give 0 to 0.99.")
    inputs = in_shape[0] * in_shape[1] * in_shape[2]
    sizes = [inputs, *[scaled(hidden, width)] * scaled(2, depth), num_classes]
    return MLP(sizes, dropout, input_dropout)
