"""How many weights each layer keeps of a sparsity for all of them: the allocations that pruning methods are compared with.

Which weights a layer keeps is the method's own business; by magnitude the four differ in these counts alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from edgecompress import masks

if TYPE_CHECKING:
    from torch import Tensor

Allocation = Literal["uniform", "erk", "lamp", "global"]


def uniform(alive: Mapping[str, int], removed: Mapping[str, float]) -> dict[str, int]:
    """round((1 − removed) · alive) weights in each layer, halves to even. removed: a fraction for each layer."""
    return {name: round((1 - removed[name]) * count) for name, count in alive.items()}


def erk(shapes: Mapping[str, tuple[int, ...]], alive: Mapping[str, int], total: int) -> dict[str, int]:
    """Erdős-Rényi-Kernel: counts in proportion to the sum of a weight's dimensions, exactly `total` together.

    The density of a layer is ε · (n_in + n_out + height + width) / (n_in · n_out · height · width), a linear layer's without
    the kernel (Evci et al. 2020, section 3, after Mocanu et al. 2018); n_in is per group, as the weight has it. A layer that
    would keep more than it has alive keeps them all, and ε grows for the others. Fractions of a weight: the largest
    remainders are rounded up.
    """
    shares: dict[str, float] = {}
    rest = dict.fromkeys(shapes)
    while rest:
        size = sum(sum(shapes[name]) for name in rest)
        left = total - sum(alive[name] for name in shapes if name not in rest)
        shares = {name: left * sum(shapes[name]) / size for name in rest}
        full = [name for name in rest if shares[name] >= alive[name]]
        if not full:
            break
        for name in full:
            del rest[name]
    counts = {name: math.floor(shares[name]) if name in rest else alive[name] for name in shapes}
    by_remainder = sorted(rest, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def lamp(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """Layer-adaptive magnitude: one cut-off for w² / Σ v², the sum over the layer's alive weights not smaller than w.

    Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (arXiv:2010.07611), section 2. Within a layer
    the order is that of |w|, so the counts say all. The largest weight of every layer scores 1: none is emptied while there
    are as many weights as layers to keep. A sort of each layer.
    """
    import torch

    scores = []
    for name, weight in weights.items():
        squares = weight[kept[name]].abs().sort(descending=True).values.double().square()
        sums = squares.cumsum(0)
        scores.append(torch.where(sums > 0, squares / sums, 0.0))
    chosen = masks.keep_highest(torch.cat(scores), total)
    parts = torch.split(chosen, [len(score) for score in scores])
    return {name: int(part.sum()) for name, part in zip(weights, parts, strict=True)}


def one_cut(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """Global: one cut-off for |w| over all layers together. Linear time."""
    import torch

    scores = torch.cat([weight[kept[name]].abs() for name, weight in weights.items()])
    parts = torch.split(masks.keep_highest(scores, total), [int(kept[name].sum()) for name in weights])
    return {name: int(part.sum()) for name, part in zip(weights, parts, strict=True)}
