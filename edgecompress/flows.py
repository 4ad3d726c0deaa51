"""What the tensors of one run carry: the number of the unit (see `edgecompress.graph`) at each of their elements.

A *flow* is such numbers for one tensor, int64, in a form that broadcasts to it: of size 1 along every dimension along which the
units are equal. `edgecompress.tracing` says which flow follows from which; here flows are kept, made and joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from edgecompress.graph import Block, Graph, Join


@dataclass
class _Overwritten:
    """Memory that was written in place. weak: so that its address is taken by no other. fresh: tensors that know of the write."""

    weak: StorageWeakRef
    fresh: WeakTensorKeyDictionary
    flows: list[Tensor]


class Flows:
    """The flows of all tensors of a run that follow from its input, and the graph that they have come to so far."""

    def __init__(self) -> None:
        self.units = 1  # unit 0 is nothing
        self.blocks: list[Block] = []
        self.not_followed: list[str] = []
        self._sources: list[Tensor] = []
        self._read: list[Tensor] = []
        self._flows = WeakTensorKeyDictionary()
        self._overwritten: dict[int, _Overwritten] = {}

    def graph(self, rectified: list[Tensor | None]) -> Graph:
        empty = torch.zeros(0, dtype=torch.int64)
        return Graph(
            self.units, tuple(self.blocks), torch.cat([empty, *self._sources]), torch.cat([empty, *self._read]),
            tuple(rectified), tuple(dict.fromkeys(self.not_followed)),
        )  # fmt: skip

    def of(self, tensor: Tensor) -> Tensor | None:
        """The flow of a tensor; None for what no activation is part of."""
        flow: Tensor | None = self._flows.get(tensor)
        if self._overwritten:
            record = self._overwritten.get(tensor.untyped_storage()._cdata)
            if record is not None and tensor not in record.fresh:
                # Another view of its memory was written: what its elements are now is not followed.
                self.end("write through a view", [*record.flows, *([] if flow is None else [flow])])
                flow = self.source(tensor)
                self.put(tensor, flow)
        return flow

    def put(self, tensor: Tensor, flow: Tensor, *, overwrites: bool = False) -> None:
        """overwrites: the tensor was written in place."""
        storage = tensor.untyped_storage()
        if overwrites and flow is not self._flows.get(tensor):
            known = self._overwritten.get(storage._cdata)
            earlier = known.flows if known is not None and not known.weak.expired() else []
            self._overwritten[storage._cdata] = _Overwritten(
                StorageWeakRef(storage), WeakTensorKeyDictionary(), [*earlier, flow]
            )
        self._flows[tensor] = flow
        if self._overwritten and storage._cdata in self._overwritten:
            self._overwritten[storage._cdata].fresh[tensor] = True

    def read(self, flow: Tensor) -> None:
        """These units are what comes out of the network."""
        self._read.append(flow.reshape(-1))

    def end(self, name: str, flows: list[Tensor]) -> None:
        """An operator is not followed: the network ends here, on both sides."""
        if flows:
            self.not_followed.append(name)
        for flow in flows:
            self.read(flow)

    def new(self, count: int) -> int:
        """The first of so many new units."""
        start = self.units
        self.units += count
        return start

    def source(self, tensor: Tensor) -> Tensor:
        """New units from outside, one for each channel (axis 1; the last of a matrix or a sequence)."""
        shape = tensor.shape
        axis = min(1, tensor.dim() - 1) if tensor.dim() != 3 else 2
        if tensor.dim() == 0:
            start = self.new(1)
            self._sources.append(torch.tensor([start]))
            return torch.tensor(start)
        start = self.new(shape[axis])
        units = torch.arange(start, start + shape[axis])
        self._sources.append(units)
        return units.reshape([-1 if d == axis else 1 for d in range(tensor.dim())])

    def along(self, flow: Tensor, axis: int, shape: Any) -> Tensor:
        """The units (n,) that a layer reads along an axis; those that differ between positions are joined, in equal shares."""
        units = channels(flow, axis, shape)
        if units is not None:
            return units
        table = flow.movedim(axis, 0).reshape(flow.shape[axis], -1)
        table = table.expand(shape[axis], -1)
        into, of, share = [], [], []
        for channel, row in enumerate(table):
            found, counts = torch.unique(row, return_counts=True)
            into.append(torch.full_like(found, channel))
            of.append(found)
            share.append(counts.double() / len(row))
        return self._join(shape[axis], torch.cat(into), torch.cat(of), torch.cat(share))

    def added(self, flows: list[Tensor], dims: int) -> Tensor:
        """Elementwise of several: one unit for each pair that differs, made by both; a unit with itself stays one."""
        first, *others = (f.reshape([1] * (dims - f.dim()) + list(f.shape)) for f in flows)
        for other in others:
            shape = torch.broadcast_shapes(first.shape, other.shape)
            left, right = torch.minimum(first, other).reshape(-1), torch.maximum(first, other).reshape(-1)
            pairs, back = torch.unique(left * self.units + right, return_inverse=True)
            left, right = pairs // self.units, pairs % self.units
            same = left == right
            into = torch.arange(len(pairs))
            left = torch.where(same, 0, left)
            edges = torch.cat([into[left != 0], into]), torch.cat([left[left != 0], right])
            joined = self._join(len(pairs), *edges, torch.ones(len(edges[0]), dtype=torch.float64))
            first = torch.where(same, right, joined)[back].reshape(shape)
        return first

    def _join(self, count: int, into: Tensor, of: Tensor, share: Tensor) -> Tensor:
        start = self.new(count)
        self.blocks.append(Join(start, count, into, of, share))
        return torch.arange(start, start + count)


def channels(flow: Tensor, axis: int, shape: Any) -> Tensor | None:
    """The units (n,) along an axis, None where they differ between the positions of the others."""
    if flow.dim() <= axis or flow.numel() != flow.shape[axis]:
        return None
    return flow.reshape(-1).expand(shape[axis])


def compact(flow: Tensor) -> Tensor:
    """With size 1 for every dimension along which nothing changes."""
    for dim, size in enumerate(flow.shape):
        if size > 1 and bool((flow == flow.narrow(dim, 0, 1)).all()):
            flow = flow.narrow(dim, 0, 1)
    return flow.clone()
