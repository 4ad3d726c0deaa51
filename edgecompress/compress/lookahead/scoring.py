"""The lookahead score, on the graph of channels.

For weight w of layer i from input channel j to output channel k, with the layers on both sides (Park et al. 2020):

    S(w) = w² · P[j] · N[k],    P[j] = Σ W_{i−1}[j, …]²,    N[k] = Σ W_{i+1}[…, k, …]²

Sums run over all kernel positions and the other channel axis; P of the first layer and N of the last are 1. For three linear
layers in a row S is the squared Frobenius norm of what the product of their matrices loses with w. What the paper leaves open:

- Several makers of a channel (a residual addition: every block before it on the stream): their P add up; several readers:
  their N add up. The network's input and output count 1 each as makers and readers. With that S is still the exact loss for
  linear layers, of the block of a layer and all its neighbours, each input and output of the block a coordinate of its own.
- Batch norm between two layers: its factor γ / sqrt(running variance + 1e-10), squared, is part of P and of N. Norms by the
  activations' own statistics (layer, group): γ. A constant factor: itself.
- Flatten with several positions: the columns of a channel are summed for N; each of its features has its P.
- Grouped and depth-wise convolutions: sums within the group, as the weight has it.
- A weight that is used several times: the scores of its uses add up.
- Elementwise functions count with slope 1; one of several activations (a gate, a maximum) counts as their sum. Pooling counts 1.
- At an operation whose channels are not followed (attention) the network ends, on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgecompress.errors import UserError
from edgecompress.graph import Graph, Scaling, Use

_CHUNK = 1 << 18
"""Elements that are squared at a time: what a core's cache holds."""


class Scorer:
    """Scores of the weights of a traced network under masks that may grow while one looks on.

    weights: the parameters to score, by name; parameters: all of the network. activity: per use the factor (out,) of each
    output channel's row, for the activation-weighted variant, or None. `dropped`: parameter name → bool, True where a weight
    counts as zero; set by `drop`, so that the model itself is never touched. names: what can be scored, in the order of
    execution.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        *,
        activity: Sequence[Tensor | None] | None = None,
        batch_norm: bool = True,
        bn_eps: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.graph = graph
        self.parameters = parameters
        self.activity = activity
        self.batch_norm = batch_norm
        self.bn_eps = bn_eps
        self.dtype = dtype
        used = dict.fromkeys(use.weight for use in graph.uses if isinstance(use.weight, str))
        self.names = [name for name in used if name in weights]
        self.dropped: dict[str, Tensor] = {}
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}
        self._factors: tuple[Tensor, Tensor] | None = None

    def drop(self, name: str, mask: Tensor) -> None:
        """From now on the weights of a parameter where `mask` is False count as zero."""
        self.dropped[name] = ~mask
        for number, use in enumerate(self.graph.uses):
            if use.weight == name:
                self._sums.pop(number, None)
        self._factors = None

    def score(self, name: str) -> Tensor:
        """S of a parameter: its shape and device, the requested dtype."""
        weight = self._weight(name)
        dtype = self.dtype or (torch.float32 if weight.element_size() == 2 else weight.dtype)
        score = weight.to(dtype, copy=True)
        score.mul_(score)
        uses = [(number, use) for number, use in enumerate(self.graph.uses) if use.weight == name]
        if len(uses) == 1:
            for factor in self._sides(*uses[0], weight):
                score.mul_(factor.to(dtype))
        else:
            sides = [self._sides(number, use, weight) for number, use in uses]
            score.mul_(sum(first * second for first, second in sides).to(dtype))
        if name in self.dropped:
            score.masked_fill_(self.dropped[name], 0.0)
        if score.numel() and not bool(torch.isfinite(score.max())):
            raise UserError(
                f"the scores of {name} exceed what {score.dtype} can hold", fix="Ask for them in torch.float64."
            )
        return score

    def _weight(self, which: str | Tensor) -> Tensor:
        return (self.parameters[which] if isinstance(which, str) else which).detach()

    def _sides(self, number: int, use: Use, weight: Tensor) -> tuple[Tensor, Tensor]:
        """N and P of one use, float64, in shapes that broadcast against the weight."""
        downstream, upstream = self._around()
        previous = downstream[use.inputs]
        following = upstream[use.start : use.start + use.outputs]
        active = None if self.activity is None else self.activity[number]
        if active is not None:
            following = following * active.square()
        groups, kernel = use.groups, [1] * (weight.dim() - 2)
        first, second = (previous, following) if use.transposed else (following, previous)
        first = first.reshape(-1, 1, *kernel)
        # The second axis of a weight holds one group's channels: which, depends on the row.
        second = second.reshape(groups, 1, -1)
        if groups > 1:
            second = second.expand(groups, weight.shape[0] // groups, -1)
        second = second.reshape(-1, weight.shape[1], *kernel)
        return first.to(weight.device), second.to(weight.device)

    def _around(self) -> tuple[Tensor, Tensor]:
        if self._factors is None:
            sums = [self._sums_of(number, use) for number, use in enumerate(self.graph.uses)]
            self._factors = (
                self.graph.downstream([made for made, _ in sums], self._scaling),
                self.graph.upstream([read for _, read in sums], self._scaling),
            )
            if not all(bool(torch.isfinite(factor).all()) for factor in self._factors):
                raise UserError(
                    "a batch norm, a scale or a weight that is not pruned holds values that are not finite",
                    fix="Use weights from a training that went well.",
                )
        return self._factors

    def _scaling(self, scaling: Scaling) -> Tensor:
        """The squared factor of a scaling: (n,)."""
        if scaling.normalises and not self.batch_norm:
            return torch.ones_like(scaling.gain)
        squared = scaling.gain.square()
        if scaling.variance is None:
            return squared
        return squared / (scaling.variance + (scaling.eps if self.bn_eps is None else self.bn_eps))

    def _sums_of(self, number: int, use: Use) -> tuple[Tensor, Tensor]:
        """Σ w² of every output channel (out,) and of every input channel (in,) of a use, on the CPU."""
        if number not in self._sums:
            weight = self._weight(use.weight)
            scale = self.activity[number] if self.activity is not None else None
            self._sums[number] = squared_sums(
                weight, use.groups, use.transposed, self.dropped.get(str(use.weight)) if isinstance(use.weight, str) else None,
                scale, wide=self.dtype == torch.float64,
            )  # fmt: skip
        return self._sums[number]


def squared_sums(
    weight: Tensor, groups: int, transposed: bool, dropped: Tensor | None, row: Tensor | None, *, wide: bool
) -> tuple[Tensor, Tensor]:
    """(Σ w² of every output channel, of every input channel), float64 on the CPU; each output channel's weights times `row`.

    One pass over the weight, in pieces: nothing of its size is allocated. wide: square in float64 whatever the weight's type.
    """
    per_group = weight.shape[0] // groups
    first = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    second = torch.zeros(groups, weight.shape[1], dtype=torch.float64, device=weight.device)
    narrow = torch.float64 if wide or weight.dtype == torch.float64 else torch.float32
    rows_at_once = max(1, _CHUNK // max(1, weight[0].numel()))
    squared_row = None if row is None else row.double().square().to(weight.device)
    for start in range(0, weight.shape[0], rows_at_once):
        part = weight[start : start + rows_at_once].to(narrow)
        squares = part * part
        if dropped is not None:
            squares.masked_fill_(dropped[start : start + rows_at_once], 0.0)
        squares = squares.reshape(len(squares), weight.shape[1], -1).sum(2) if weight.dim() > 2 else squares
        if squared_row is not None and not transposed:
            squares = squares * squared_row[start : start + rows_at_once, None]
        if squared_row is not None and transposed:
            group = torch.arange(start, start + len(squares), device=weight.device) // per_group
            squares = squares * squared_row.reshape(groups, -1)[group]
        first[start : start + rows_at_once] = squares.sum(1)
        if groups == 1:
            second[0] += squares.sum(0)
        else:
            group = torch.arange(start, start + len(squares), device=weight.device) // per_group
            second.index_add_(0, group, squares.double())
    outs, ins = (second.reshape(-1), first) if transposed else (first, second.reshape(-1))
    return outs.cpu(), ins.cpu()
