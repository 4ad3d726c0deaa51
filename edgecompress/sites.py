"""Where the engines quantise activations: the tensors of a network that carry their own scale, by name.

A site is the output of a node of the torch.fx trace, after what an engine fuses into it: a convolution or linear layer with
its batch norm and ReLU, an addition with its ReLU, any other ReLU, a product, a concatenation; and the network's input. What
only moves values (max-pooling, flatten, slices, padding) has no site, and an average pooling has the scale of its input, as
TFLite asks. Names are those of the trace: the same network gives the same names.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgecompress.errors import UserError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_RELUS = (nn.ReLU, nn.ReLU6, functional.relu, functional.relu6, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_OTHERS = (operator.mul, operator.imul, torch.mul, torch.cat, "mul", "mul_")
_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.mean, "mean")
_MOVES = (
    nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Identity, functional.max_pool2d, functional.dropout, functional.pad,
    torch.flatten, operator.getitem, "flatten", "view", "reshape", "contiguous", "size",
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """node: the name in the trace. like: the node whose scale it has (itself, but for an average pooling)."""

    node: str
    like: str


def trace(model: nn.Module) -> fx.GraphModule:
    """The trace of a model; its leaf modules are the model's own. UserError when forward cannot be traced."""
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # noqa: BLE001 - tracing runs the model's own forward, which raises whatever it likes
        text = str(error).strip().splitlines()
        raise UserError(
            f"the model's forward cannot be traced: {text[0] if text else type(error).__name__}",
            fix="Write it without branches on tensor values.",
        ) from None


def find(traced: fx.GraphModule) -> tuple[Site, ...]:
    """The sites of a trace, in the order in which they compute. UserError at an operation that is not known here."""
    return _follow(traced)[0]


def scales(traced: fx.GraphModule) -> dict[str, str]:
    """Node → the site whose scale its values have. Nodes inside what an engine fuses have none."""
    return _follow(traced)[1]


def in_integers(traced: fx.GraphModule, float_layers: Collection[str]) -> tuple[str, ...]:
    """The sites that an int8 file holds as integers when these layers (by name) stay in float: all but those that nothing but
    such layers, and what only moves values, writes and reads.
    """
    found, _, absorbed = _follow(traced)
    modules = dict(traced.named_modules())
    nodes = {node.name: node for node in traced.graph.nodes}

    def writes_integers(node: fx.Node) -> bool:
        while node.name in absorbed:  # back to the operation that the batch norm and the ReLU are fused into
            node = node.all_input_nodes[0]
        return node.op != "placeholder" and not (node.op == "call_module" and node.target in float_layers)

    def reads_integers(node: fx.Node) -> bool:
        kind = _kind(node, modules)
        if node.op == "output" or kind is getattr:
            return False
        if kind in _MOVES:
            return any(reads_integers(reader) for reader in node.users)
        return not (node.op == "call_module" and node.target in float_layers)

    return tuple(
        site.node
        for site in found
        if writes_integers(nodes[site.node]) or any(reads_integers(reader) for reader in nodes[site.node].users)
    )


def additions(traced: fx.GraphModule) -> list[fx.Node]:
    """The additions of two computed values."""
    modules = dict(traced.named_modules())
    found = [node for node in traced.graph.nodes if _kind(node, modules) in _SUMS]
    return [
        node
        for node in found
        if not node.kwargs and len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    ]


def averages(traced: fx.GraphModule) -> list[fx.Node]:
    """The average poolings and means."""
    modules = dict(traced.named_modules())
    return [node for node in traced.graph.nodes if _kind(node, modules) in _POOLS]


def batch_norm(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The batch norm that is folded into a layer's node."""
    after = _after(node, dict(traced.named_modules()), NORMS, set())
    return None if after is node else after


def activation(traced: fx.GraphModule, node: fx.Node) -> Literal["relu", "relu6"] | None:
    """The ReLU that is fused into a node, which is a layer's or that of its batch norm."""
    modules = dict(traced.named_modules())
    after = _after(node, modules, _RELUS, set())
    if after is node:
        return None
    return "relu6" if _kind(after, modules) in (nn.ReLU6, functional.relu6) else "relu"


def _follow(traced: fx.GraphModule) -> tuple[tuple[Site, ...], dict[str, str], set[str]]:
    """The sites, node → the site whose scale it has, and the nodes that an engine fuses into the one before them."""
    modules = dict(traced.named_modules())
    absorbed: set[str] = set()
    like: dict[str, str] = {}
    sites: list[Site] = []
    for node in traced.graph.nodes:
        kind = _kind(node, modules)
        if node.op == "placeholder":
            end = node
        elif node.name in absorbed or node.op in ("output", "get_attr"):
            _hand_on(node, like)
            continue
        elif isinstance(kind, type) and issubclass(kind, LAYERS):
            end = _after(_after(node, modules, NORMS, absorbed), modules, _RELUS, absorbed)
        elif kind in _SUMS:
            end = _after(node, modules, _RELUS, absorbed)
        elif kind in _RELUS or kind in _OTHERS or kind in NORMS:
            end = node
        elif kind in _POOLS:
            source = next(iter(node.all_input_nodes))
            like[node.name] = like.get(source.name, source.name)
            sites.append(Site(node.name, like[node.name]))
            continue
        elif kind in _MOVES or kind is getattr:
            _hand_on(node, like)
            continue
        else:
            raise UserError(
                f"{getattr(kind, '__name__', kind)} ({node.name}) is no operation whose int8 form can be simulated here",
                fix="Use method quantize without max_drop, or a network of ReLU, convolutions, linear layers, poolings, additions.",
            )
        like[end.name] = end.name
        sites.append(Site(end.name, end.name))
    return tuple(sites), like, absorbed


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return type(modules[str(node.target)]) if node.op == "call_module" else node.target


def _after(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[Any, ...], absorbed: set[str]) -> fx.Node:
    """The only reader of a node when it is of these kinds (the engine fuses it), else the node."""
    readers = list(node.users)
    if len(readers) == 1 and _kind(readers[0], modules) in kinds:
        absorbed.add(readers[0].name)
        return readers[0]
    return node


def _hand_on(node: fx.Node, like: dict[str, str]) -> None:
    for source in node.all_input_nodes:
        if source.name in like:
            like.setdefault(node.name, like[source.name])
            return


def values(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Site → its values for these images in float, of a model in eval mode."""
    traced = trace(model)
    wanted = {site.node for site in find(traced)}
    found: dict[str, Tensor] = {}

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in wanted:
                found[n.name] = result.detach().clone()
            return result

    with torch.no_grad():
        Keeping(traced).run(images)
    return found
