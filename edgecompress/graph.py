"""Who feeds and who reads each channel of a network: its graph down to single channels.

A *unit* is one channel of one tensor, under a number. Units are made by the outputs of layers with weights (a `Use` of a
weight), by a scaling of other units (batch norm, a constant factor), by joining several (an addition, a channel that several
positions or tensors share), or they come from outside: the network's input, constants, what an operation gives that is not
followed. An activation, a pooling, a view or a concatenation makes no units: it hands its input's on.

`edgecompress.tracing.trace` makes a graph from one run of the network. Two sums over it are all that a neighbourhood needs:
`downstream` (what the makers of every unit contribute to it) and `upstream` (what its readers make of it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Use:
    """One application of a weight, of shape (out, in/groups, …), or (in, out/groups, …) where `transposed`.

    weight: the parameter's name, or the tensor itself where it is not a parameter but computed from some. inputs: (in,) the
    unit that each input channel reads. start: unit of output channel 0; the others follow.
    """

    weight: str | Tensor
    groups: int
    transposed: bool
    inputs: Tensor
    start: int
    outputs: int


@dataclass(frozen=True)
class Scaling:
    """Units start, start + 1, … are the units `of` (n,), each times `gain` / sqrt(`variance` + eps); variance None: times gain.

    eps: the layer's own. normalises: whether the factor is that of a normalisation (else of a constant in the network).
    """

    start: int
    of: Tensor
    gain: Tensor
    variance: Tensor | None
    eps: float
    normalises: bool


@dataclass(frozen=True)
class Join:
    """Unit start + into[e] gets `share`[e] of the unit of[e], for every edge e; a sum of several has shares of 1."""

    start: int
    count: int
    into: Tensor
    of: Tensor
    share: Tensor


Block = Use | Scaling | Join


@dataclass(frozen=True)
class Graph:
    """units: how many there are; unit 0 is nothing (padding). blocks: what makes units, makers before readers.

    sources: units that come from outside. read: units that something outside reads (the network's output, an operation that
    is not followed), as often as it does. rectified: per activation function of the network, in the order of execution, the
    units (C,) that it is applied to, and None where they differ between positions. not_followed: operations whose channels
    could not be followed, by name: on both sides of them the network is taken to end.
    """

    units: int
    blocks: tuple[Block, ...]
    sources: Tensor
    read: Tensor
    rectified: tuple[Tensor | None, ...]
    not_followed: tuple[str, ...]

    @property
    def uses(self) -> tuple[Use, ...]:
        """In the order of execution."""
        return tuple(block for block in self.blocks if isinstance(block, Use))

    def downstream(self, made: Sequence[Tensor], factor: Callable[[Scaling], Tensor]) -> Tensor:
        """(units,) float64: each source counts 1, the outputs of use i count made[i] (out,), a join adds, a scaling multiplies
        by factor (n,)."""
        value = torch.zeros(self.units, dtype=torch.float64)
        value[self.sources] = 1.0
        number = 0
        for block in self.blocks:
            if isinstance(block, Use):
                value[block.start : block.start + block.outputs] = made[number]
                number += 1
            elif isinstance(block, Scaling):
                value[block.start : block.start + len(block.of)] = value[block.of] * factor(block)
            else:
                value.index_add_(0, block.into + block.start, value[block.of] * block.share)
        return value

    def upstream(self, reads: Sequence[Tensor], factor: Callable[[Scaling], Tensor]) -> Tensor:
        """(units,) float64: what its readers make of each unit. A read from outside counts 1, one by use i reads[i] (in,).

        Readers of a join or of a scaled unit read what it is made of.
        """
        value = torch.zeros(self.units, dtype=torch.float64)
        value.index_add_(0, self.read, torch.ones(len(self.read), dtype=torch.float64))
        number = len(self.uses)
        for block in reversed(self.blocks):
            if isinstance(block, Use):
                number -= 1
                value.index_add_(0, block.inputs, reads[number])
            elif isinstance(block, Scaling):
                value.index_add_(0, block.of, value[block.start : block.start + len(block.of)] * factor(block))
            else:
                value.index_add_(0, block.of, value[block.into + block.start])
        return value
