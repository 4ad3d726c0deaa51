"""Which channels the forward binds together: Torch-Pruning's dependency graph, followed channel by channel.

What the graph gets wrong or leaves out is put right here: zero padding of channels, grouped convolutions, layers that are used
twice or share parameters, and every operation through which channels cannot be followed, whose channels are locked.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from edgecompress.compress.channels import checking
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Element = tuple[str, str, int]
"""(module, side, channel)."""


def couple(model: nn.Module, in_shape: tuple[int, ...]) -> Links:
    """All channels of a network, joined where they can only go together. UserError when it cannot be traced, or has no layer."""
    import copy

    import torch

    checking.layers_of(model)
    traced = copy.deepcopy(model).eval().requires_grad_(True)
    names = {module: name for name, module in traced.named_modules()}
    example = torch.zeros(1, *in_shape, device=next(traced.parameters()).device)
    graph, uses = _trace(traced, example)
    links = Links()
    for root in list(graph.module2node):
        if root in names and writes(root) and (names[root], "out", 0) not in links.parent:
            _follow(graph, root, names, links)
    for module, name in names.items():
        _couple_grouped(module, name, links)
        if writes(module) and uses.get(module, 0) > 1:
            links.lock_module(name, f"{name} is used more than once")
    _lock_shared(traced, links)
    links.folds = _folds(graph, names)
    return links


def _folds(graph: Any, names: dict[Any, str]) -> dict[str, str]:
    """Batch norm → the layer right before it, into which an exporter folds it."""
    from torch import nn

    from edgecompress.models.kept import WEIGHTED

    found = {}
    for module, node in graph.module2node.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module in names and len(node.inputs) == 1:
            source = node.inputs[0]
            if isinstance(source.module, WEIGHTED) and source.module in names and len(source.outputs) == 1:
                found[names[module]] = names[source.module]
    return found


def _trace(model: nn.Module, example: Any) -> tuple[Any, dict[nn.Module, int]]:
    """Torch-Pruning's graph, and how often each layer with weights is called in one forward."""
    import torch
    import torch_pruning

    from edgecompress.models.resnet import Shortcut

    uses: dict[nn.Module, int] = defaultdict(int)

    def called(module: nn.Module, inputs: Any, output: Any) -> None:
        uses[module] += 1

    class Both(torch_pruning.pruner.function.BasePruningFunc):
        """A shortcut's two sides are cut independently: the graph ends at it."""

        def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
            return layer

        def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.out_channels)

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.in_channels)

    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hooks = [module.register_forward_hook(called) for module in model.modules()]
            model(example)
            for hook in hooks:
                hook.remove()
            graph.build_dependency(
                model,
                example,
                # Without an operation after it, the graph does not know the last layer for the output.
                output_transform=lambda output: output * 1,
                customized_pruners={Shortcut: Both()},
                verbose=False,
            )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise UserError(
            f"the network cannot be traced for its channels: {type(error).__name__}: {first}",
            fix="channels needs a network whose forward is made of differentiable torch operations, one tensor in, one out.",
        ) from error
    for node in graph.module2node.values():
        _mend_padding(graph, node)
    return graph, uses


class Links:
    """Union-find over channels, with the reasons why some of them must stay."""

    def __init__(self) -> None:
        self.parent: dict[Element, Element] = {}
        self.locks: dict[Element, str] = {}
        self.added: set[Element] = set()
        self.folds: dict[str, str] = {}

    def root(self, element: Element) -> Element:
        self.parent.setdefault(element, element)
        path = []
        while self.parent[element] != element:
            path.append(element)
            element = self.parent[element]
        for passed in path:
            self.parent[passed] = element
        return element

    def join(self, one: Element, other: Element) -> None:
        left, right = self.root(one), self.root(other)
        if left != right:
            self.parent[max(left, right)] = min(left, right)

    def lock_module(self, name: str, reason: str) -> None:
        for element in list(self.parent):
            if element[0] == name:
                self.locks.setdefault(element, reason)


def writes(module: Any) -> bool:
    """Whether a module makes channels of its own. A depth-wise convolution passes them on."""
    from edgecompress.models.kept import WEIGHTED

    return isinstance(module, WEIGHTED) and not passes_on(module)


def passes_on(module: Any) -> bool:
    """Whether a module has one out channel for each in channel, coupled (depth-wise convolution, batch norm, …)."""
    from torch import nn

    from edgecompress.models.kept import PER_CHANNEL

    if isinstance(module, nn.modules.conv._ConvNd):
        return 1 < module.groups == module.in_channels == module.out_channels
    return isinstance(module, PER_CHANNEL)


def _follow(graph: Any, root: Any, names: dict[Any, str], links: Links) -> None:
    """Join the output channels of `root` with all that the graph couples to them."""
    from edgecompress.models import kept

    prune_out = graph.get_pruner_of_module(root).prune_out_channels
    count = kept.width(root, "out") or 0
    own = [(names[root], "out", k) for k in range(count)]
    for element in own:
        links.root(element)
    whole: str | None = None
    for item in graph.get_pruning_group(root, prune_out, list(range(count))):
        target, handler = item.dep.target, item.dep.handler
        module = target.module
        pairs = [(own[r], int(i)) for i, r in zip(item.idxs, item.root_idxs, strict=True)]
        if module in names and _cuttable(module):
            coupled = passes_on(module)
            sides: tuple[str, ...] = ("out",) if coupled or graph.is_out_channel_pruning_fn(handler) else ("in",)
            if coupled and kept.width(module, "in") is not None:
                sides = ("in", "out")
            for side in sides:
                if any(i >= (kept.width(module, side) or 0) for _, i in pairs):
                    whole = f"{names[module]} is joined to it by an operation that broadcasts over channels"
                    break
                for element, i in pairs:
                    links.join(element, (names[module], side, i))
            continue
        reason = _foreign(target, names)
        if reason is None:
            if _adds(target):
                links.added.update(element for element, _ in pairs)
            for element, i in pairs:
                if i in _padded(target):
                    links.locks.setdefault(element, "its channels are made by a zero padding of fixed size")
        else:
            for element, _ in pairs:
                links.locks.setdefault(element, reason)
    if whole is not None:
        for element in own:
            links.locks.setdefault(element, whole)


def _cuttable(module: Any) -> bool:
    from edgecompress.models import kept

    return kept.width(module, "out") is not None


def _foreign(node: Any, names: dict[Any, str]) -> str | None:
    """Why the channels at a node of the graph must stay; None for element-wise operations, concatenation and flattening."""
    from torch_pruning.ops import OPTYPE

    if node.type == OPTYPE.OUTPUT:
        return "it is the network's output"
    if node.type in (OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.CONCAT):
        return None
    if node.type == OPTYPE.SLICE:
        # Pixels may be sliced; a slice of channels counts them by number.
        return None if node.module.dim > 1 else "a slice takes its channels by number"
    if node.type in (OPTYPE.SPLIT, OPTYPE.UNBIND, OPTYPE.EXPAND):
        return "an operation splits its channels by number"
    if node.type == OPTYPE.PARAMETER:
        return "a bare parameter of the network is as wide as it"
    return f"{names.get(node.module, 'an operation')} ({type(node.module).__name__}) cannot be cut"


def _adds(node: Any) -> bool:
    return "AddBackward" in str(getattr(node.module, "_grad_fn", ""))


def _mend_padding(graph: Any, node: Any) -> None:
    """Zero channels that a functional padding puts before and after: the graph takes it for an element-wise operation.

    (The shortcut of the CIFAR ResNets, in the many forms that are not our own module.) Channel i becomes i + before.
    """
    from torch_pruning.dependency import index_mapping, shape_infer

    grad = node.grad_fn
    if node.module in graph._module2name or not hasattr(grad, "_saved_pad") or "ConstantPad" not in grad.name():
        return
    pad = list(grad._saved_pad)
    before, after = (pad[4], pad[5]) if len(pad) >= 6 else (0, 0)
    if (before, after) == (0, 0):
        return
    count = None
    for source in node.inputs:
        count = shape_infer.infer_out_channels_recursively(graph, source, [0])
    if count is None:
        return
    node.module.padded = frozenset([*range(before), *range(before + count, before + count + after)])
    for source in node.inputs:
        for dependency in node.dependencies:
            if dependency.target is source:
                dependency.index_mapping[1] = index_mapping._ConcatIndexMapping([before, before + count], reverse=True)
        for dependency in source.dependencies:
            if dependency.target is node:
                dependency.index_mapping[1] = index_mapping._ConcatIndexMapping([before, before + count], reverse=False)


def _padded(node: Any) -> frozenset[int]:
    found: frozenset[int] = getattr(node.module, "padded", frozenset())
    return found


def _couple_grouped(module: Any, name: str, links: Links) -> None:
    """The channels of one group of a grouped convolution, on both sides, go together."""
    from torch import nn

    if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1 or passes_on(module):
        return
    into, out = module.in_channels // module.groups, module.out_channels // module.groups
    for number in range(module.groups):
        first = (name, "out", number * out)
        for k in range(number * out, (number + 1) * out):
            links.join(first, (name, "out", k))
        for k in range(number * into, (number + 1) * into):
            links.join(first, (name, "in", k))


def _lock_shared(model: nn.Module, links: Links) -> None:
    """Layers that hold the same parameter, or none of their own (weight norm, parametrisations): they stay as they are."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].append(name)
        if writes(module) and "weight" not in module._parameters:
            links.lock_module(name, f"the weight of {name} is computed from others")
    for names in owners.values():
        if len(names) > 1:
            for name in names:
                links.lock_module(name, f"{' and '.join(names)} share a parameter")
