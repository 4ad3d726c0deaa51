"""The lookahead score, on a traced graph.

For weight w of layer i from input channel j to output channel k, with the layers on both sides (Park et al. 2020):

    S(w) = w² · P_i[j] · N_i[k],    P_i[j] = Σ W_{i−1}[j, …]²,    N_i[k] = Σ W_{i+1}[…, k, …]²

Sums run over all kernel positions and the other channel axis. For three linear layers in a row it is the squared Frobenius
norm of what the product of the three matrices loses with w. What the paper leaves open, and what is chosen here:

- Several makers of a channel (a residual addition, all blocks before it on the stream): their P add up, as for the stacked
  matrix of all that flows in. Several readers: their N add up. The network's own input and output count 1 for a channel.
- Batch norm: the factor γ/√(variance + eps) on the way from a maker to its reader multiplies both its P and its N, squared.
- A flatten with r positions: the reader's r columns of a channel belong to that channel.
- Grouped and depth-wise convolutions: sums run over the channels of the group.
- A shared layer: the scores of its uses add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgecompress.graph import INPUT, Call, Graph, Link


@dataclass
class Factors:
    """P and N of the calls of a graph, from the weights as they are now.

    weights: parameter name → tensor. activity: for the activation-weighted variant, call index → (out,) factor of each
    output channel's row; None: plain. batch_norm: whether the links' gains count.
    """

    graph: Graph
    weights: dict[str, Tensor]
    activity: dict[int, Tensor] | None = None
    batch_norm: bool = True
    dtype: torch.dtype = torch.float32

    def score(self, name: str) -> Tensor:
        """S of a parameter: same shape, dtype of the factors."""
        calls = [(index, call) for index, call in enumerate(self.graph.calls) if call.parameter == name]
        if len(calls) == 1:
            return self._score(*calls[0])
        return torch.stack([self._score(index, call) for index, call in calls]).sum(0)

    def _score(self, index: int, call: Call) -> Tensor:
        weight = self.weights[call.parameter]
        previous, following = self._previous(call), self._following(index, call)
        if self.activity is not None and index in self.activity:
            following = following * self.activity[index].to(self.dtype) ** 2
        groups, outer, inner = _axes(weight, call)
        kernel = [1] * (weight.dim() - 2)
        # (groups, out/groups, in/groups, …) or, transposed, (groups, in/groups, out/groups, …): one of the two is each factor
        score = weight.to(self.dtype, copy=True)
        score.mul_(score)
        grouped = score.view(groups, outer, inner, *kernel_shape(weight))
        rows, columns = (previous, following) if call.transposed else (following, previous)
        grouped.mul_(rows.view(groups, outer, 1, *kernel)).mul_(columns.view(groups, 1, inner, *kernel))
        return score

    def _previous(self, call: Call) -> Tensor:
        """P of every input channel of a call: (in,)."""
        inputs = _inputs(self.weights[call.parameter], call)
        total = torch.zeros(inputs, dtype=self.dtype)
        if not call.inputs:
            return torch.ones(inputs, dtype=self.dtype)
        for link in call.inputs:
            made = self._made(link, inputs)
            total += made
        return total.to(self.weights[call.parameter].device)

    def _made(self, link: Link, count: int) -> Tensor:
        present = link.channels >= 0
        if link.maker == INPUT:
            sums = torch.ones(int(link.channels.max()) + 1 if present.any() else 1, dtype=self.dtype)
        else:
            sums = self._rows(link.maker)
        made = torch.where(present, sums[link.channels.clamp(min=0)], torch.zeros((), dtype=self.dtype))
        return made * link.gain.to(self.dtype) ** 2 if self.batch_norm else made

    def _rows(self, index: int) -> Tensor:
        """Σ W[k, …]² of every output channel of a call, on the CPU: (out,)."""
        call = self.graph.calls[index]
        weight = self.weights[call.parameter]
        if call.transposed:
            groups, outer, inner = _axes(weight, call)
            grouped = weight.reshape(groups, outer, inner, -1)
            sums = _norms(grouped, (1, 3), self.dtype).reshape(-1)
        else:
            sums = _norms(weight.reshape(weight.shape[0], -1), (1,), self.dtype)
        if self.activity is not None and index in self.activity:
            sums = sums * self.activity[index].to(self.dtype) ** 2
        return sums.cpu()

    def _following(self, index: int, call: Call) -> Tensor:
        """N of every output channel of a call: (out,)."""
        total = torch.zeros(call.outputs, dtype=self.dtype)
        read = False
        for reader_index, reader in enumerate(self.graph.calls):
            for link in reader.inputs:
                if link.maker == index:
                    self._add(total, link, self._columns(reader_index))
                    read = True
        for link in self.graph.results:
            if link.maker == index:
                self._add(total, link, torch.ones(len(link.channels), dtype=self.dtype))
                read = True
        if not read:
            total += 1
        return total.to(self.weights[call.parameter].device)

    def _add(self, total: Tensor, link: Link, sums: Tensor) -> None:
        values = sums * link.gain.to(self.dtype) ** 2 if self.batch_norm else sums
        present = link.channels >= 0
        total.index_add_(0, link.channels[present], values[present])

    def _columns(self, index: int) -> Tensor:
        """Σ W[…, j, …]² of every input channel of a call, on the CPU: (in,)."""
        call = self.graph.calls[index]
        weight = self.weights[call.parameter]
        groups, outer, inner = _axes(weight, call)
        grouped = weight.reshape(groups, outer, inner, -1)
        if self.activity is not None and index in self.activity:
            scale = self.activity[index].to(weight)
            shape = (groups, 1, inner, 1) if call.transposed else (groups, outer, 1, 1)
            grouped = grouped * scale.reshape(shape)
        return _norms(grouped, (2, 3) if call.transposed else (1, 3), self.dtype).reshape(-1).cpu()


def _norms(weight: Tensor, dims: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Sums of squares over dims: by vector_norm, which makes no copy of a 400 MB weight."""
    return torch.linalg.vector_norm(weight, dim=dims, dtype=dtype) ** 2


def _axes(weight: Tensor, call: Call) -> tuple[int, int, int]:
    """(groups, first axis per group, second axis)."""
    return call.groups, weight.shape[0] // call.groups, weight.shape[1]


def kernel_shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape[2:])


def _inputs(weight: Tensor, call: Call) -> int:
    return int(weight.shape[0]) if call.transposed else int(weight.shape[1]) * call.groups
