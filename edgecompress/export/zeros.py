"""Whether an exported file holds the zeros of its model, and denormal numbers kept out of it.

A zero weight must be a zero in the file, whatever was folded into it or rounded: batch norm multiplies it, a symmetric
quantiser keeps it. The other way round a weight that is no zero may become one, where batch norm's factor is zero or int8
rounds it to 0; that is counted, and is no mistake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecompress.errors import StepFailed
from edgecompress.export.census import Census

if TYPE_CHECKING:
    from torch import nn


def of_layers(model: nn.Module) -> tuple[int, int]:
    """(weights, zeros) of the convolution and fully connected layers; a shared weight counts once."""
    import torch
    from torch import nn

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    weights = {id(m.weight): m.weight.detach() for m in model.modules() if isinstance(m, kinds)}
    sizes = [weight.numel() for weight in weights.values()]
    return sum(sizes), sum(sizes) - sum(int(torch.count_nonzero(weight)) for weight in weights.values())


def compare(counted: Census, weights: int, zeros: int, name: str) -> tuple[str, ...]:
    """Warnings about a file that holds the zeros of its model; StepFailed when zeros of the model have become something else.

    weights, zeros: of the model's layers, from `of_layers`. Where the file's layers are others (one layer twice with two batch
    norms, a product with a constant that is no layer in PyTorch), its zeros cannot be held against the model's: a warning.
    """
    warnings = []
    if counted.weights == weights:
        if counted.zeros < zeros:
            raise StepFailed(
                f"{zeros - counted.zeros} of {zeros} zero weights of the model are not zero in the {name} file: the pruning is lost"
            )
    elif zeros:
        warnings.append(
            f"the layers of this file hold {counted.weights} weights, the model's {weights}: whether the model's {zeros} zeros "
            f"are among the file's {counted.zeros} could not be counted"
        )
    if counted.denormals:
        warnings.append(
            f"{counted.denormals} weights of this file are denormal numbers (below 1.2e-38): some processors are slow with them"
        )
    return tuple(warnings)


def flush_denormals(model: nn.Module) -> int:
    """Make every denormal parameter and buffer of the model zero, in place; how many there were.

    They come from pruning itself: the running mean and variance of a channel without input shrink by a tenth with each batch
    and are denormal after some 800. Arithmetic with them is slow on some processors (not on all: docs/export.md), and to a
    result they give nothing: what is flushed is below 1.2e-38.
    """
    import torch

    flushed = 0
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                found = (tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)
                flushed += int(found.sum())
                tensor.masked_fill_(found, 0.0)
    return flushed
