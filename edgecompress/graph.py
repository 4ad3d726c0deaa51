"""Which layer's channels feed which: the true predecessors and successors of every convolution and linear layer.

The model's forward is traced by torch.fx and run once on an example for its shapes. Each tensor is followed by its channels
(dimension 1): which layer made each of them, and with what factor a batch norm has multiplied it since. So a residual
addition has several makers, an identity shortcut reaches past the block, a flatten with r positions gives every channel r
features, a concatenation puts channels beside each other, and a zero-padded shortcut has channels that nobody made.

Followed: convolutions and linear layers as modules or functions, batch norm, element-wise operations, additions and products
of tensors, concatenation, chunk and split, slices, padding, flatten and its reshapes, pooling, reductions over positions. An
operation that keeps the number of channels and has one tensor input is taken to keep their order. What moves the channel
dimension (a transpose, a channel shuffle) is refused with its name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from edgecompress.errors import UserError

INPUT = -1
"""The maker of the network's input channels, in `Link.maker`."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FUNCTIONS = (
    functional.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
)
_SUMS = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub)
_PRODUCTS = (operator.mul, operator.imul, torch.mul, operator.truediv, torch.div)
_MERGING_METHODS = ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")
_MOVING = ("permute", "transpose", "t", "swapaxes", "movedim", "bmm", "matmul", "einsum")


@dataclass(frozen=True)
class Link:
    """Channels that one layer made, as another place reads them.

    maker: index of the call that made them, or INPUT. channels: int64 (C,), the maker's channel of each channel here, -1
    where it made none. gain: float (C,), the product of the batch norms' factors γ/√(variance + eps) on the way.
    """

    maker: int
    channels: Tensor
    gain: Tensor


Links = tuple[Link, ...]


@dataclass(frozen=True)
class Call:
    """One use of a layer. A shared layer has several.

    parameter: the weight's name, (out, in/groups, …), or (in, out/groups, …) when transposed. inputs: who made the channels
    that it reads. outputs: its number of output channels.
    """

    parameter: str
    groups: int
    transposed: bool
    outputs: int
    inputs: Links


@dataclass(frozen=True)
class Graph:
    """calls: in the order in which they compute. results: the links of the network's outputs.

    rectified: name of each ReLU's node in the trace → the links of what it gives, in the order in which they compute.
    """

    calls: tuple[Call, ...]
    results: Links
    rectified: dict[str, Links]


def trace(model: nn.Module, example: Tensor) -> Graph:
    """The graph of a model. example: a batch of inputs, (N, C, …), of which the values do not matter.

    The model is left as it was. UserError when forward cannot be traced or moves channels in a way that is not followed.
    """
    with _quiet(model), torch.no_grad():
        try:
            traced = fx.symbolic_trace(model)
            ShapeProp(traced).propagate(example)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - tracing runs the model's own forward, which raises whatever it likes
            text = str(error).strip().splitlines()
            raise UserError(
                f"the model's forward cannot be traced: {text[0] if text else type(error).__name__}",
                fix="Write it without branches on tensor values; method magnitude needs no trace.",
            ) from None
        return _Walk(model, traced).graph()


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, so that the run changes no running statistics, and every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Walk:
    """Follows the channels node by node. A value is the links of a tensor, a list of them (chunk), or None (no tensor)."""

    def __init__(self, model: nn.Module, traced: fx.GraphModule) -> None:
        self._traced = traced
        self._modules = dict(traced.named_modules())
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._values: dict[fx.Node, Any] = {}
        self._calls: list[Call] = []

    def graph(self) -> Graph:
        results: Links = ()
        rectified: dict[str, Links] = {}
        for node in self._traced.graph.nodes:
            if node.op == "output":
                results = tuple(link for source in node.all_input_nodes for link in self._links(source))
            else:
                self._values[node] = self._value(node)
                if self._is_relu(node):
                    rectified[node.name] = self._links(node)
        return Graph(tuple(self._calls), results, rectified)

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules[str(node.target)], nn.ReLU | nn.ReLU6)
        return node.target in (functional.relu, functional.relu6, torch.relu, torch.relu_, "relu", "relu_")

    def _links(self, node: Any) -> Links:
        found = self._values.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, tuple) else ()

    def _value(self, node: fx.Node) -> Any:
        shape = _shape(node)
        if node.op == "placeholder":
            count = shape[1] if shape is not None and len(shape) > 1 else 0
            return (Link(INPUT, torch.arange(count), torch.ones(count)),) if count else None
        if node.op == "get_attr":
            return None
        if node.op == "call_module":
            return self._module(node, self._modules[str(node.target)])
        if node.target in _FUNCTIONS:
            return self._function_layer(node)
        sources = [source for source in node.all_input_nodes if self._values.get(source) is not None]
        if not sources:
            return None
        return self._operation(node, sources, shape)

    def _module(self, node: fx.Node, module: nn.Module) -> Any:
        source = node.args[0] if node.args else next(iter(node.kwargs.values()))
        links = self._links(source)
        if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            transposed = isinstance(module, _TRANSPOSED)
            outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            groups = getattr(module, "groups", 1)
            return self._call(node, module.weight, links, groups=groups, transposed=transposed, outputs=outputs)
        if isinstance(module, _NORMS):
            if module.running_var is None:
                return links
            factor = 1 / torch.sqrt(module.running_var.float() + module.eps)
            if module.affine:
                factor = factor * module.weight.detach().float()
            return tuple(Link(link.maker, link.channels, link.gain * factor.cpu()) for link in links)
        if isinstance(module, nn.Flatten):
            return self._reshaped(node, source, links)
        return self._kept(node, source, links)

    def _function_layer(self, node: fx.Node) -> Any:
        """`F.conv2d(x, self.weight)` and its like."""
        weight_node = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        groups = 1
        if node.target is not functional.linear:
            groups = int(node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1))
        if not isinstance(weight_node, fx.Node) or weight_node.op != "get_attr":
            raise self._refused(node, "computes its weight")
        weight = self._attribute(str(weight_node.target))
        links = self._links(node.args[0])
        return self._call(node, weight, links, groups=groups, transposed=False, outputs=int(weight.shape[0]))

    def _attribute(self, path: str) -> Any:
        found: Any = self._traced
        for part in path.split("."):
            found = getattr(found, part)
        return found

    def _call(
        self, node: fx.Node, weight: Tensor, links: Links, *, groups: int, transposed: bool, outputs: int
    ) -> Links:
        shape = _shape(node)
        if shape is None or len(shape) < 2 or (weight.dim() == 2 and len(shape) != 2):
            raise self._refused(node, "is a linear layer over more than one dimension")
        name = self._names.get(id(weight))
        if name is None:
            raise self._refused(node, "has a weight that is no parameter of the model")
        self._calls.append(Call(name, groups, transposed, outputs, links))
        return (Link(len(self._calls) - 1, torch.arange(outputs), torch.ones(outputs)),)

    def _operation(self, node: fx.Node, sources: list[fx.Node], shape: tuple[int, ...] | None) -> Any:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        first = sources[0]
        if node.target is getattr or name in ("size", "dim", "numel"):
            return None
        if name in _MOVING:
            raise self._refused(node, "moves the channels")
        if node.target is torch.cat or name in ("cat", "concat", "concatenate"):
            return self._concatenated(node)
        if node.target in (*_SUMS, *_PRODUCTS) or name in _MERGING_METHODS:
            return self._merged(node, sources, shape)
        if name in ("chunk", "split"):
            return self._pieces(node, first)
        if node.target is operator.getitem:
            return self._item(node, first)
        if name == "pad":
            return self._padded(node, first)
        if name == "index_select":
            return self._selected(node, first)
        if name in ("flatten", "view", "reshape"):
            return self._reshaped(node, first, self._links(first))
        return self._kept(node, first, self._links(first))

    def _kept(self, node: fx.Node, source: Any, links: Links) -> Links | None:
        before, after = _shape(source), _shape(node)
        if after is None:
            return None
        if before is None or len(before) < 2 or len(after) < 2 or before[1] != after[1]:
            raise self._refused(node, "changes the channels in a way that is not followed")
        return links

    def _merged(self, node: fx.Node, sources: list[fx.Node], shape: tuple[int, ...] | None) -> Links:
        links: list[Link] = []
        for source in sources:
            before = _shape(source)
            if shape is None or before is None or len(before) < 2 or before[1] not in (1, shape[1]):
                raise self._refused(node, "merges tensors of different dimensions")
            for link in self._links(source):
                count = shape[1]
                links.append(
                    link if len(link.channels) == count
                    else Link(link.maker, link.channels.expand(count), link.gain.expand(count))
                )  # fmt: skip
        return tuple(links)

    def _concatenated(self, node: fx.Node) -> Links:
        tensors = node.args[0] if node.args else node.kwargs["tensors"]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        shape = _shape(node)
        if not isinstance(tensors, list | tuple) or shape is None or dim not in (1, 1 - len(shape)):
            raise self._refused(node, "joins tensors along another dimension than the channels")
        total, start, links = shape[1], 0, []
        for tensor in tensors:
            inner = _shape(tensor)
            count = inner[1] if inner is not None else 0
            for link in self._links(tensor):
                channels, gain = torch.full((total,), -1), torch.ones(total)
                channels[start : start + count], gain[start : start + count] = link.channels, link.gain
                links.append(Link(link.maker, channels, gain))
            start += count
        return tuple(links)

    def _pieces(self, node: fx.Node, source: fx.Node) -> list[Links]:
        metas = node.meta.get("tensor_meta")
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        if not isinstance(metas, list | tuple) or dim not in (1, 1 - len(_shape(source) or ())):
            raise self._refused(node, "cuts along another dimension than the channels")
        pieces, start = [], 0
        for meta in metas:
            count = meta.shape[1]
            pieces.append(_taken(self._links(source), torch.arange(start, start + count)))
            start += count
        return pieces

    def _item(self, node: fx.Node, source: fx.Node) -> Any:
        value, index = self._values[source], node.args[1]
        if isinstance(value, list):
            return value[index] if isinstance(index, int) else None
        shape = _shape(source)
        if _shape(node) is None or shape is None:
            return None
        if isinstance(index, tuple) and len(index) > 1:
            if isinstance(index[1], slice):
                return _taken(value, torch.arange(shape[1])[index[1]])
            raise self._refused(node, "picks channels by something else than a slice")
        return value

    def _selected(self, node: fx.Node, source: fx.Node) -> Links:
        """`x.index_select(1, self.index)`: the shortcut of a CIFAR ResNet whose channels were cut."""
        dim, index = (*node.args[1:], *node.kwargs.values())[:2]
        if dim != 1 or not isinstance(index, fx.Node) or index.op != "get_attr":
            raise self._refused(node, "picks something else than channels, or by an index that it computes")
        return _taken(self._links(source), self._attribute(str(index.target)).cpu())

    def _padded(self, node: fx.Node, source: fx.Node) -> Links:
        widths: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        shape = _shape(source) or ()
        place = 2 * (len(shape) - 2)
        if len(widths) <= place:
            return self._links(source)
        before, after = int(widths[place]), int(widths[place + 1])
        if min(before, after) < 0 or len(widths) > place + 2:
            raise self._refused(node, "pads in a way that is not followed")
        return tuple(
            Link(
                link.maker,
                functional.pad(link.channels, (before, after), value=-1),
                functional.pad(link.gain, (before, after), value=1.0),
            )
            for link in self._links(source)
        )

    def _reshaped(self, node: fx.Node, source: Any, links: Links) -> Links | None:
        before, after = _shape(source), _shape(node)
        if after is None:
            return None
        if before is None or before[0] != after[0] or len(before) < 2 or len(after) < 2:
            raise self._refused(node, "reshapes in a way that is not followed")
        if before[1] == after[1]:
            return links
        positions = int(torch.tensor(before[2:]).prod()) if len(before) > 2 else 1
        if len(after) == 2 and after[1] == before[1] * positions:
            return tuple(
                Link(link.maker, link.channels.repeat_interleave(positions), link.gain.repeat_interleave(positions))
                for link in links
            )
        if len(before) == 2 and after[1] and before[1] == int(torch.tensor(after[1:]).prod()):
            inner = before[1] // after[1]
            if inner == 1:
                return links
        raise self._refused(node, "reshapes in a way that is not followed")

    def _refused(self, node: fx.Node, why: str) -> UserError:
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        stack = node.meta.get("nn_module_stack") or {}
        where = next(reversed(list(stack)), "") if stack else ""
        return UserError(
            f"channels cannot be followed through {what!r}{f' in {where}' if where else ''}: it {why}",
            fix="Method magnitude needs no graph of the model.",
        )


def _taken(links: Links, index: Tensor) -> Links:
    return tuple(Link(link.maker, link.channels[index], link.gain[index]) for link in links)


def _shape(node: Any) -> tuple[int, ...] | None:
    """Shape of the tensor that a node gives; None when it gives no single tensor."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None
