"""Cross-layer equalisation (Nagel et al. 2019, section 4.1): even the weight ranges of consecutive layers, channel by channel.

For layers W1 → (batch norm) → ReLU → W2, where nothing else reads what lies between, channel c of the first may be divided by
s_c and the weights of the second that read it multiplied by s_c: ReLU(x/s) = ReLU(x)/s for s > 0. With
s_c = √(r1_c / r2_c), r the largest |weight| of the channel (the first one's times its batch norm's factor), both ranges
become √(r1_c · r2_c). A batch norm takes the division, so the network keeps its structure. Pairs are done in turn until none
changes. ReLU6 is not homogeneous: such pairs are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from edgecompress import sites

_ROUNDS = 40
_SETTLED = 1e-3
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

Pair = tuple[nn.Module, nn.Module | None, nn.Module]
"""First layer, the batch norm after it, second layer."""


def equalise(model: nn.Module) -> int:
    """Equalise every pair of `model` in place; how many pairs there were. UserError when the model cannot be traced."""
    pairs = list(_pairs(model))
    with torch.no_grad():
        for _ in range(_ROUNDS):
            if max((_even(*pair) for pair in pairs), default=0.0) < _SETTLED:
                break
    return len(pairs)


def _pairs(model: nn.Module) -> Iterator[Pair]:
    graph = sites.trace(model).graph
    modules = dict(model.named_modules())
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in graph.nodes:
        first = _module(node, modules, (nn.Conv2d, nn.Linear))
        if first is None or calls[str(node.target)] > 1:
            continue
        after = _only_user(node)
        norm = _module(after, modules, _NORMS) if after is not None else None
        if norm is not None and after is not None:
            after = _only_user(after) if norm.affine and calls[str(after.target)] == 1 else None
        while after is not None and _is_relu(after, modules):
            after = _only_user(after)
        second = _module(after, modules, (nn.Conv2d, nn.Linear)) if after is not None else None
        if second is not None and after is not None and calls[str(after.target)] == 1 and _fits(first, second):
            yield first, norm, second


def _module(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[type, ...]) -> nn.Module | None:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, kinds) else None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules.get(str(node.target))) in (nn.ReLU, nn.Identity)
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in (torch.relu, torch.relu_, nn.functional.relu)


def _fits(first: nn.Module, second: nn.Module) -> bool:
    """Both of one kind (no flatten between), the second dense or depth-wise."""
    if isinstance(first, nn.Linear) or isinstance(second, nn.Linear):
        return isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    return second.groups == 1 or second.groups == second.in_channels == second.out_channels


def _even(first: nn.Module, norm: nn.Module | None, second: nn.Module) -> float:
    """Equalise one pair; the largest |s − 1|."""
    outgoing = _largest(first.weight, keep=0)
    if norm is not None:
        outgoing = outgoing * (norm.weight / torch.sqrt(norm.running_var + norm.eps)).abs()
    depthwise = isinstance(second, nn.Conv2d) and second.groups > 1
    incoming = _largest(second.weight, keep=0 if depthwise else 1)
    factor = torch.sqrt(outgoing / incoming)
    factor = torch.where((outgoing > 0) & (incoming > 0), factor, torch.ones_like(factor))
    if norm is not None:
        norm.weight.div_(factor)
        norm.bias.div_(factor)
    else:
        first.weight.div_(factor.reshape(-1, *[1] * (first.weight.dim() - 1)))
        if first.bias is not None:
            first.bias.div_(factor)
    shape = [1] * second.weight.dim()
    shape[0 if depthwise else 1] = -1
    second.weight.mul_(factor.reshape(shape))
    return float((factor - 1).abs().max())


def _largest(weight: Tensor, keep: int) -> Tensor:
    return weight.abs().amax([k for k in range(weight.dim()) if k != keep])
