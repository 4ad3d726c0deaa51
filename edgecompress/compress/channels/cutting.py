"""One pruning from beginning to end: groups, what may be cut of them, importance, budget, the cut itself, and its proof."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.compress.channels import budget, checking, importance, measuring, proof
from edgecompress.compress.channels.grouping import Group, find_groups, keep_of
from edgecompress.errors import StepFailed, UserError
from edgecompress.models import kept

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.channels import Params
    from edgecompress.compress.contract import Context


class Cutter:
    """The prunings of one step of a recipe on one model. The budget is a fraction of the model as it came in."""

    def __init__(self, model: nn.Module, params: Params, context: Context) -> None:
        self.model, self.params, self.context = model, params, context
        checking.check_finite(model)
        self.in_shape = context.input_shape(model, "channels")
        self._excluded, self._ratios = checking.named(model, params)
        self.multiple = measuring.multiple_for(model, self.in_shape, params, context)
        self.latency = (
            None if params.latency is None else measuring.LatencyBudget(model, self.in_shape, params, context)
        )
        self.whole: tuple[float, float] | None = None  # MACs and parameters of the model as it came in

    def look(self) -> None:
        """UserError where there is nothing to cut."""
        _, open_groups = cuttable(self.model, self.in_shape, self.params.which, self._excluded)
        self._order(open_groups, [np.zeros(g.size) for g in open_groups])

    def cut(self, number: int) -> None:
        """The pruning `number` (from 1) of params.steps: what is removed of the budget goes in equal parts."""
        params = self.params
        groups, open_groups = cuttable(self.model, self.in_shape, params.which, self._excluded)
        values = importance.score(
            self.model, open_groups, params.importance,
            reduce=params.reduce, fold=params.fold, in_shape=self.in_shape,
            data=self.context.data, images=params.images, seed=self.context.seed,
        )  # fmt: skip
        prices = budget.Prices(self.model, open_groups, self.in_shape)
        if self.whole is None:
            self.whole = prices.after([0] * len(open_groups))
        if params.ratios is not None:
            removed = self._by_ratios(open_groups)
        elif self.latency is not None:
            removed = self._to_latency(self.latency, open_groups, values, prices, number / params.steps)
        else:
            removed = self._to_budget(open_groups, values, prices, 1 - number / params.steps)
        keep = keep_of(self.model, open_groups, values, removed)
        reason = proof.differs(self.model, keep, self.in_shape)
        if reason is not None:
            raise StepFailed(f"the channels are not cut: {reason}; exclude the layers in question")
        kept.cut(self.model, keep)
        self._note(groups, open_groups, removed)

    def _by_ratios(self, groups: Sequence[Group]) -> list[int]:
        removed = []
        for group in groups:
            named = {layer: self._ratios[layer] for layer in group.writers if layer in self._ratios}
            if len(set(named.values())) > 1:
                raise UserError(
                    f"ratios: {', '.join(f'{layer} {ratio:g}' for layer, ratio in named.items())}: "
                    "these layers share their channels",
                    fix="Give them one ratio.",
                )
            ratio = next(iter(named.values()), 1.0)
            removed.append(group.size - budget.rounded(group, ratio, self.multiple))
        return removed

    def _to_budget(
        self, groups: Sequence[Group], values: Sequence[np.ndarray], prices: budget.Prices, left: float
    ) -> list[int]:
        params = self.params
        order = self._order(groups, values)
        share: float = getattr(params, params.budget)
        which = 0 if params.budget == "macs" else 1
        assert self.whole is not None
        whole = self.whole[which]
        target = whole * (share + (1 - share) * left)
        try:
            return budget.meet(order, len(groups), target, lambda removed: prices.after(removed)[which])
        except ValueError:
            lowest = prices.after(budget.removed_by(order, len(groups))[-1])[which] / whole
            raise UserError(
                f"{params.budget}: {share:g} is out of reach: the lowest is {lowest:.3f}, "
                f"with widths in multiples of {self.multiple}, at least {params.min_keep:g} of each group, "
                f"and {_whose(params)}",
                fix=f"Ask for {params.budget}: {lowest:.3f} or more, which: all, a smaller multiple or min_keep.",
            ) from None

    def _to_latency(
        self,
        wanted: measuring.LatencyBudget,
        groups: Sequence[Group],
        values: Sequence[np.ndarray],
        prices: budget.Prices,
        part: float,
    ) -> list[int]:
        order = self._order(groups, values)
        assert self.whole is not None
        prefixes = budget.removed_by(order, len(groups))
        shares = [prices.after(removed)[0] / self.whole[0] for removed in prefixes]

        def candidate(index: int) -> nn.Module:
            cut = copy.deepcopy(self.model)
            kept.cut(cut, keep_of(self.model, groups, values, prefixes[index]))
            return cut

        found = wanted.meet(candidate, shares, part)
        if found.out_of_reach:
            raise UserError(
                f"latency: {self.params.latency} is out of reach: {found.reason}, with widths in multiples of "
                f"{self.multiple}, at least {self.params.min_keep:g} of each group, and {_whose(self.params)}",
                fix="Ask for more, for which: all, or for a smaller multiple or min_keep.",
            )
        return prefixes[found.index]

    def _order(self, groups: Sequence[Group], values: Sequence[np.ndarray]) -> list[budget.Block]:
        params = self.params
        order = budget.blocks(groups, values, multiple=self.multiple, min_keep=params.min_keep, scope=params.scope)
        if not order:
            raise UserError(
                f"no group of channels has more than {self.multiple} channels, the multiple that widths are rounded to",
                fix="Ask for a smaller multiple.",
            )
        return order

    def _note(self, groups: Sequence[Group], cut: Sequence[Group], removed: Sequence[int]) -> None:
        """What was asked for, what came of it, and which channels stayed for what reason: overwritten by the next pruning."""
        from edgecompress.cost import count

        note, params = self.context.note, self.params
        cost = count(self.model, self.in_shape)
        assert self.whole is not None
        reached = {"macs": cost.macs / self.whole[0], "params": cost.params / self.whole[1]}
        note("multiple", self.multiple)
        note("macs_left", reached["macs"])
        note("params_left", reached["params"])
        note(
            "widths",
            {g.name: [(g.size - n) * g.per_unit, g.size * g.per_unit] for g, n in zip(cut, removed, strict=True)},
        )
        note("locked", {g.name: g.locked for g in groups if g.locked is not None})
        if params.budget in reached:
            asked, got = getattr(params, params.budget), reached[params.budget]
            met = abs(got / asked - 1) <= budget.TOLERANCE
            note("budget_met", met)
            if not met:
                reason = (
                    f"{params.budget}: {asked:g} was asked for and {got:.3f} is the nearest that widths in multiples of "
                    f"{self.multiple} come to"
                )
                note("budget_reason", reason)
                self.context.progress.say(f"channels: {reason}")


def cuttable(
    model: nn.Module, in_shape: tuple[int, ...], which: str, excluded: frozenset[str]
) -> tuple[list[Group], list[Group]]:
    """(all groups of a network, those of them that are chosen and can be cut). which, excluded: as in `Params`.

    UserError when there is none to cut, with the reasons.
    """

    def chosen(group: Group) -> bool:
        wanted = which == "all" or group.stream == (which == "stream")
        return wanted and group.locked is None and not excluded.intersection(group.writers)

    groups = find_groups(model, in_shape)
    unsafe = proof.unsafe(model, [g for g in groups if chosen(g)], in_shape)
    groups = [dataclasses.replace(g, locked=unsafe.get(g.name, g.locked)) for g in groups]
    found = [g for g in groups if chosen(g)]
    if not found:
        ways = [*(["exclude fewer layers"] if excluded else []), *(["choose which: all"] if which != "all" else [])]
        raise UserError(_nothing(groups), fix=f"{(' or '.join(ways) or 'use another model').capitalize()}.")
    return groups, found


def _whose(params: Params) -> str:
    channels = {"all": "all channels", "inner": "inner channels only", "stream": "residual-stream channels only"}
    return channels[params.which] + (f" but those of {', '.join(params.exclude)}" if params.exclude else "")


def _nothing(groups: Sequence[Group]) -> str:
    reasons = "; ".join(f"{g.name}: {g.locked}" for g in groups if g.locked is not None)
    return f"no channels can be cut{f' ({reasons})' if reasons else ''}"
