"""Training of an MLP on one core, dense or under masks; what is pruned costs no time, so that 50,000 iterations take a minute.

The arithmetic is that of the dense network with its weights held at zero by masks: the same gradients for what is kept, Adam
without decay, the same batches. Only the order of the sums differs (a test holds the two against each other).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

WINDOW = 1000
"""Iterations at the end whose mean loss is given."""


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], *, lr: float, batch: int, order: tuple[int, int], iterations: int
) -> float:
    """Train in place with a fresh Adam and hold masked weights at zero; the mean loss of the last 1000 iterations.

    model: linear layers with ReLU between them, in the order of `named_modules`; all of their weights masked, or none.
    data: images (n, inputs), labels (n,). order: seeds the batches.
    """
    import torch
    from torch import nn

    from edgecompress import masks

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    present = list(masks.get(model).values())
    biases = [layer.bias.detach().clone() for layer in layers]
    if present:
        sparse = [_Sparse(layer.weight.detach(), mask) for layer, mask in zip(layers, present, strict=True)]
        weights, gradients = [layer.values for layer in sparse], _sparse_gradients(sparse, biases)
    else:
        weights = [layer.weight.detach().clone() for layer in layers]
        gradients = _dense_gradients(weights, biases)
    parameters = [*weights, *biases]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    images, labels = data
    recent = torch.zeros(())
    for step, chosen in enumerate(_batches(len(labels), batch, order, iterations)):
        loss, slopes = gradients(images[chosen], labels[chosen])
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        optimizer.step()
        if step >= iterations - WINDOW:
            recent += loss
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.bias.copy_(biases[number])
            layer.weight.copy_(sparse[number].matrix().to_dense() if present else weights[number])
    for name, mask in masks.get(model).items():
        if bool((model.get_parameter(name)[~mask] != 0).any()):
            raise RuntimeError(f"a pruned weight of {name} came back")
    return float(recent) / min(WINDOW, iterations)


class _Sparse:
    """The kept weights (n,) of a layer (outputs, inputs), in rows, with the two matrices that they fill."""

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        import torch

        self.shape = tuple(weight.shape)
        rows, self.columns = torch.nonzero(mask, as_tuple=True)
        self.values = weight[mask].clone()
        self.starts = _starts(rows, self.shape[0])
        self.by_column = torch.argsort(self.columns, stable=True)
        self.rows_by_column = rows[self.by_column]
        self.starts_by_column = _starts(self.columns[self.by_column], self.shape[1])
        self.pattern = self.matrix()

    def matrix(self) -> Tensor:
        import torch

        return torch.sparse_csr_tensor(self.starts, self.columns, self.values, self.shape, check_invariants=False)

    def transposed(self) -> Tensor:
        import torch

        return torch.sparse_csr_tensor(
            self.starts_by_column,
            self.rows_by_column,
            self.values[self.by_column],
            self.shape[::-1],
            check_invariants=False,
        )

    def slopes(self, above: Tensor, below: Tensor) -> Tensor:
        """Gradient of the kept weights (n,), from that of the outputs (outputs, batch) and the inputs (inputs, batch)."""
        import torch

        return torch.sparse.sampled_addmm(self.pattern, above, below.t(), beta=0.0).values()


def _starts(ascending: Tensor, count: int) -> Tensor:
    import torch

    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(ascending, minlength=count).cumsum(0)])


Gradients = Callable[["Tensor", "Tensor"], "tuple[Tensor, list[Tensor]]"]
"""(images, labels) → mean cross-entropy, gradients of all weights and then all biases."""


def _sparse_gradients(layers: list[_Sparse], biases: list[Tensor]) -> Gradients:
    import torch

    def gradients(images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        activations = [images.t().contiguous()]
        for layer, bias in zip(layers, biases, strict=True):
            output = torch.addmm(bias[:, None].expand(-1, len(labels)), layer.matrix(), activations[-1])
            activations.append(output.relu_() if layer is not layers[-1] else output)
        logs = activations.pop().log_softmax(0)
        above = logs.exp()
        above[labels, torch.arange(len(labels))] -= 1
        above /= len(labels)
        weight_slopes, bias_slopes = [], []
        for number in reversed(range(len(layers))):
            below = activations[number]
            weight_slopes.append(layers[number].slopes(above, below))
            bias_slopes.append(above.sum(1))
            if number:
                above = torch.ops.aten.threshold_backward(layers[number].transposed() @ above, below, 0.0)
        return -logs.gather(0, labels[None]).mean(), [*reversed(weight_slopes), *reversed(bias_slopes)]

    return gradients


def _dense_gradients(weights: list[Tensor], biases: list[Tensor]) -> Gradients:
    import torch
    from torch.nn import functional

    parameters = [*weights, *biases]

    def gradients(images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        for parameter in parameters:
            parameter.requires_grad_()
        x = images
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = functional.linear(x if number == 0 else functional.relu(x), weight, bias)
        loss = functional.cross_entropy(x, labels)
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    return gradients


def _batches(count: int, batch: int, order: tuple[int, int], iterations: int) -> Iterator[Tensor]:
    """Indices of `iterations` batches: passes over all images, each in a new order, what is left of a pass is not used."""
    import torch

    def endless() -> Iterator[Tensor]:
        for epoch in itertools.count():
            shuffled = torch.from_numpy(np.random.default_rng([*order, epoch]).permutation(count))
            for start in range(0, count - batch + 1, batch):
                yield shuffled[start : start + batch]

    return itertools.islice(endless(), iterations)
