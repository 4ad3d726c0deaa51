"""How often each channel is alive after its activation function: the weights of the activation-weighted variant (LAP-act)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgecompress.data import Dataset, normalise
from edgecompress.graph import Graph, Join, Scaling
from edgecompress.tracing import ACTIVATIONS, run_mode

_BATCH = 100


def draw(dataset: Dataset, count: int, seed: int) -> Tensor:
    """Training images (n, C, H, W), normalised, drawn without repetition; all of them when there are fewer than `count`."""
    whole = len(dataset.train)
    chosen = np.sort(np.random.default_rng(seed).choice(whole, min(count, whole), replace=False))
    return torch.from_numpy(normalise(dataset.train.images(chosen), dataset.mean, dataset.std))


def measure(model: nn.Module, graph: Graph, images: Tensor) -> list[Tensor | None]:
    """Per use of the graph, (out,) float64: the mean over positions of √p, p the share of images whose value is above 0.

    p is taken after the first activation function that an output channel meets on its way; None for a use whose outputs meet
    none (the last layer: its weights count as they are). The paper's code sums √p over positions; the mean differs by a
    constant of the layer, which changes neither the order within a layer nor its scores after division by their norm.
    """
    counting = _Counting()
    first = next(model.parameters())
    with run_mode(model):
        for part in images.split(_BATCH):
            counting.number = 0
            with counting:
                model(part.to(first.device, first.dtype))
    shares: dict[int, float] = {}
    for units, alive in zip(graph.rectified, counting.alive, strict=True):
        if units is not None:
            root = (alive / len(images)).sqrt().reshape(len(units), -1).mean(1)
            for unit, value in zip(units.tolist(), root.tolist(), strict=True):
                shares.setdefault(unit, value)
    _hand_back(graph, shares)
    found: list[Tensor | None] = []
    for use in graph.uses:
        values = [shares.get(unit) for unit in range(use.start, use.start + use.outputs)]
        known = [1.0 if value is None else value for value in values]
        found.append(torch.tensor(known, dtype=torch.float64) if any(v is not None for v in values) else None)
    return found


def _hand_back(graph: Graph, shares: dict[int, float]) -> None:
    """Give the units that a rectified one is made of its share, where they have not met an activation function before."""
    for block in reversed(graph.blocks):
        if isinstance(block, Scaling):
            made = torch.arange(block.start, block.start + len(block.of))
        elif isinstance(block, Join):
            made = block.into + block.start
        else:
            continue
        for unit, of in zip(made.tolist(), block.of.tolist(), strict=True):
            if unit in shares:
                shares.setdefault(of, shares[unit])


class _Counting(TorchDispatchMode):
    """alive[i]: (C, …) how many images were above 0 after activation function i of the network, in the order of execution."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ACTIVATIONS:
            alive = (out > 0).sum(0).double().cpu()
            if self.number == len(self.alive):
                self.alive.append(alive)
            else:
                self.alive[self.number] += alive
            self.number += 1
        return out
