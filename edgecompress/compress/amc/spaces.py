"""What a policy is about: the channels of a network group by group, or the single weights of its layers; both look the same
to the search: choices with units, costs of any keep ratios, and the network of a policy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edgecompress import cost, masks, patterns
from edgecompress.compress.amc.environment import Choice, Units
from edgecompress.compress.amc.reconstruction import Products
from edgecompress.compress.amc.walk import Used
from edgecompress.compress.channels import budget, checking, cutting, importance, proof
from edgecompress.compress.channels.coupling import passes_on
from edgecompress.compress.channels.grouping import Group, keep_of
from edgecompress.compress.magnitude import prunable
from edgecompress.errors import StepFailed, UserError
from edgecompress.models import kept

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgecompress.compress.amc import Params
    from edgecompress.compress.contract import Context

Ratios = Sequence[float]


class Space(Protocol):
    """choices: in order. costs: "macs", "params", "bytes" → what a network with these keep ratios costs. linear: of which of
    them the cost is linear in each ratio."""

    choices: tuple[Choice, ...]
    costs: dict[str, Used]
    linear: dict[str, bool]

    def candidate(self, units: Units) -> nn.Module:
        """The network of a policy, in eval mode; the one that it is made from stays as it is."""
        ...

    def apply(self, model: nn.Module, units: Units) -> None:
        """Change the network itself into that of a policy. StepFailed: it would not compute what it must."""
        ...

    def aliases(self) -> dict[str, str]:
        """Layer → name of its choice, of all layers that a choice is about."""
        ...


class ChannelSpace:
    """Groups of channels that can only go together (`channels`), those of least importance cut first."""

    def __init__(self, model: nn.Module, params: Params, context: Context, multiple: int) -> None:
        """UserError: a network that cannot be traced or has nothing to cut, a pattern that matches no layer."""
        checking.check_finite(model)
        self.in_shape = context.input_shape(model, "amc")
        layers = [name for name, module in model.named_modules() if isinstance(module, kept.WEIGHTED)]
        excluded = frozenset(patterns.matching(params.exclude, layers, "exclude"))
        self.model = model
        self.all_groups, self.groups = cutting.cuttable(model, self.in_shape, params.which, excluded)
        self.values = importance.score(
            model, self.groups, params.importance, reduce="mean", in_shape=self.in_shape, data=context.data,
            images=params.images, seed=context.seed,
        )  # fmt: skip
        self.prices = budget.Prices(model, self.groups, self.in_shape)
        self.products: Products | None = None
        facts = budget.layers(model, self.in_shape)
        self.choices = tuple(
            _channel_choice(g, model, facts, layers, multiple=multiple, least=params.lower) for g in self.groups
        )
        self.costs: dict[str, Used] = {
            "macs": lambda keep: self.prices.after(self._removed(keep))[0],
            "params": lambda keep: self.prices.after(self._removed(keep))[1],
            "bytes": lambda keep: self.prices.bytes_after(self._removed(keep)),
        }
        self.linear = dict.fromkeys(self.costs, not self.prices.squares)

    def _removed(self, keep: Ratios) -> list[float]:
        return [g.size * (1 - k) for g, k in zip(self.groups, keep, strict=True)]

    def sides(self, keep: Ratios) -> Callable[[str], tuple[float, float]]:
        """Layer → its (in, out) channels in a network with these keep ratios."""
        removed = self._removed(keep)
        return lambda layer: self.prices.sides(layer, removed)

    def readers(self) -> list[str]:
        """The layers that read channels of any group, in the order of the network."""
        read = {slot.module for g in self.groups for slot in g.slots if slot.side == "in"}
        return [
            n for n, m in self.model.named_modules() if n in read and isinstance(m, kept.WEIGHTED) and not passes_on(m)
        ]

    def learn(self, batches: Sequence[Tensor], seed: int) -> None:
        """Look at training images, so that candidates' weights are fitted (`reconstruction`)."""
        self.products = Products(self.model, self.readers(), batches, seed)

    def keep(self, units: Units) -> dict[str, dict[str, list[int]]]:
        """Of a policy, what `kept.cut` is told."""
        removed = [g.size - n for g, n in zip(self.groups, units, strict=True)]
        return keep_of(self.model, self.groups, self.values, removed)

    def candidate(self, units: Units) -> nn.Module:
        keep = self.keep(units)
        return kept.cut(self._fit(copy.deepcopy(self.model), keep), keep).eval()

    def apply(self, model: nn.Module, units: Units) -> None:
        keep = self.keep(units)
        reason = proof.differs(model, keep, self.in_shape)
        if reason is not None:
            raise StepFailed(f"the channels are not cut: {reason}; exclude the layers in question")
        kept.cut(self._fit(model, keep), keep)

    def _fit(self, model: nn.Module, keep: dict[str, dict[str, list[int]]]) -> nn.Module:
        import torch

        for name, sides in keep.items() if self.products is not None else ():
            if "in" in sides and name in self.products:  # type: ignore[operator]
                weight: Any = model.get_submodule(name).weight
                with torch.no_grad():
                    weight.copy_(self.products.fitted(name, weight, sides["in"]))  # type: ignore[union-attr]
        return model

    def aliases(self) -> dict[str, str]:
        return {writer: group.name for group in self.groups for writer in group.writers}


def _channel_choice(
    group: Group, model: nn.Module, facts: dict[str, budget.Layer], order: list[str], *, multiple: int, least: float
) -> Choice:
    read = {slot.module for slot in group.slots if slot.side == "in" and slot.module in facts}
    readers = [n for n in order if n in read and not passes_on(model.get_submodule(n))] or list(group.writers)
    first: Any = model.get_submodule(readers[0])
    weights = sum(facts[n].out * (facts[n].into // facts[n].groups) * facts[n].kernel for n in readers)
    return Choice(
        name=group.name,
        size=group.size,
        step=multiple // math.gcd(multiple, group.per_unit),
        least=least,
        features=(
            float(order.index(readers[0])), *_kind(first), float(group.size * group.per_unit),
            float(sum(facts[n].out for n in readers)), *_window(first), float(weights),
        ),
        macs=float(sum(facts[n].macs for n in readers)),
    )  # fmt: skip


def _kind(module: Any) -> tuple[float]:
    return (0.0 if hasattr(module, "kernel_size") else 1.0,)


def _window(module: Any) -> tuple[float, float]:
    """Stride and kernel; 1 and 1 of a linear layer."""
    return (float(module.stride[0]), float(module.kernel_size[0])) if hasattr(module, "kernel_size") else (1.0, 1.0)


class WeightSpace:
    """The single weights of each convolution and linear layer, those of smallest magnitude masked first. A layer whose mask leaves
    no weight is no choice, and stays as it is."""

    def __init__(self, model: nn.Module, params: Params, context: Context) -> None:
        """UserError: no layer with weights, or with any left, a pattern that matches none, weights that are not finite."""
        self.in_shape = context.input_shape(model, "amc")
        self.model = model
        self.all_weights = prunable(model, params.exclude)
        present = masks.get(model)
        self.alive = {n: present[n] for n in self.all_weights if n in present}
        self.weights = {n: w for n, w in self.all_weights.items() if n not in self.alive or bool(self.alive[n].any())}
        if not self.weights:
            raise UserError(
                "no weight is left in any layer that could be pruned",
                fix="Ask for less sparsity in the steps before, or exclude fewer layers.",
            )
        facts = budget.layers(model, self.in_shape)
        self.choices = tuple(self._choice(i, n, facts, params.lower) for i, n in enumerate(self.weights))
        whole = cost.count(model, self.in_shape)
        live = [float(c.size) for c in self.choices]
        work = [c.macs for c in self.choices]
        self.costs: dict[str, Used] = {
            "macs": _weighted(work, whole.effective_macs),
            "params": _weighted(live, whole.nonzero_params),
            "bytes": self._bytes(cost.weight_bytes(model)),
        }
        self.linear = {"macs": True, "params": True, "bytes": False}

    def _choice(self, index: int, name: str, facts: dict[str, budget.Layer], least: float) -> Choice:
        module_name, weight = name.rpartition(".")[0], self.weights[name]
        module: Any = self.model.get_submodule(module_name)
        alive = int(self.alive[name].sum()) if name in self.alive else weight.numel()
        # A transposed convolution is none of `facts`, and its MACs are left out of the state.
        positions = facts[module_name].positions if module_name in facts else 0
        return Choice(
            name=module_name,
            size=alive,
            step=1,
            least=least,
            features=(
                float(index), *_kind(module), float(weight.shape[1]), float(weight.shape[0]), *_window(module),
                float(weight.numel()),
            ),
            macs=float(alive * positions),
        )  # fmt: skip

    def _bytes(self, dense: int) -> Used:
        sizes = [w.numel() for w in self.weights.values()]
        live = [c.size for c in self.choices]
        # Sparse, a layer without a weight left takes nothing.
        other = dense - 4 * sum(w.numel() for w in self.all_weights.values())

        def used(keep: Ratios) -> float:
            return other + sum(sparse_bytes(n, round(k * a)) for n, a, k in zip(sizes, live, keep, strict=True))

        return used

    def masks(self, units: Units) -> dict[str, Tensor]:
        """Parameter name → the mask of a policy."""
        return {
            name: masks.keep_highest(weight.abs(), n, self.alive.get(name))
            for (name, weight), n in zip(self.weights.items(), units, strict=True)
        }

    def candidate(self, units: Units) -> nn.Module:
        model = copy.deepcopy(self.model)
        masks.put(model, self.masks(units))
        return model.eval()

    def apply(self, model: nn.Module, units: Units) -> None:
        masks.put(model, self.masks(units))

    def aliases(self) -> dict[str, str]:
        # A policy may name layers that have no weight left here: it is for other checkpoints, too.
        layers = [name.rpartition(".")[0] for name in self.all_weights]
        return dict(zip(layers, layers, strict=True))


def _weighted(parts: Sequence[float], whole: float) -> Used:
    other = whole - sum(parts)
    return lambda keep: other + sum(p * k for p, k in zip(parts, keep, strict=True))


def sparse_bytes(weights: int, kept_weights: int) -> float:
    """Bytes of a sparse float32 layer: values and gaps of b bits with their fillers (Han et al. 2016), of the b from 1 to 16
    that takes least, the zeros taken to lie at random; never more than the dense layer's."""
    density = kept_weights / weights
    fillers = [(1 - density) ** (2**b) for b in range(1, 17)]
    bits = [kept_weights / max(1 - q, 1e-12) * (32 + b) for b, q in enumerate(fillers, 1)]
    return min(min(bits) / 8, 4.0 * weights)


def _multiple(space: Space, params: Params) -> str:
    """As it was asked for, "auto" with what that came to."""
    steps = max(c.step for c in space.choices)
    return f"{steps} (auto)" if params.multiple == "auto" else str(params.multiple)


def out_of_reach(space: Space, key: str, share: float, params: Params) -> None:
    """UserError when not even the least of everything keeps to a budget of MACs, parameters or bytes."""
    least = [c.lowest / c.size for c in space.choices]
    lowest = space.costs[key](least) / space.costs[key]([1.0] * len(least))
    if lowest <= share:
        return
    what = (
        "weights"
        if params.granularity == "weights"
        else f"group's channels, in multiples of {_multiple(space, params)}"
    )
    raise UserError(
        f"{key}: {share:g} is out of reach: the lowest is {lowest:.3f}, with at least {params.lower:g} of each {what}",
        fix=f"Ask for {key}: {math.ceil(1000 * lowest) / 1000:g} or more, a smaller lower"
        + (
            ", a smaller multiple, which: all, or fewer layers in exclude." if params.granularity == "channels" else "."
        ),
    )
