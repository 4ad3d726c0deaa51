"""What the agent walks through: one group of channels (or one layer's weights) after the other, each with a state and an action.

The state is that of the authors' code, 10 numbers: index, type (0 convolution, 1 fully connected), input channels c, output
channels n, stride, kernel k, number of weights, each scaled to [0, 1] over the groups; MACs removed so far and still to come, as
fractions of the network's; the action before (at the beginning 1). Of a group that several layers read, the first of them
gives type, stride and kernel, and n and the weights are the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.compress.amc.walk import Used, constrained

STATE = 10
"""Numbers of a state."""

SLACK = 1e-9
"""A cost that is above the budget by this fraction is rounding of floats."""

_HALVINGS = 30


@dataclass(frozen=True)
class Choice:
    """One action's object: `size` units that are kept or not. step: units are kept in multiples of it (or all of them).

    least: fraction that is kept at least. features: (index, type, c, n, stride, k, weights), unscaled. macs: of the layers that
    read the group, whole.
    """

    name: str
    size: int
    step: int
    least: float
    features: tuple[float, ...]
    macs: float

    def units(self, keep: float) -> int:
        """Units of a ratio: round(size · keep), 1 at least, rounded up to the step (down where that is more than there are)."""
        wanted = max(1, round(self.size * keep))
        if wanted >= self.size:
            return self.size
        up = math.ceil(wanted / self.step) * self.step
        return up if up <= self.size else (self.size // self.step * self.step or self.size)

    @property
    def lowest(self) -> int:
        """The least units that may be kept."""
        return self.units(self.least)

    def below(self, units: int) -> int | None:
        """The next number of units down from one that is allowed; None: that is the lowest."""
        fewer = units - (units % self.step or self.step)
        return fewer if fewer >= self.lowest else None

    def above(self, units: int) -> int | None:
        """The next number of units up; None: all are kept."""
        if units >= self.size:
            return None
        return min(units - units % self.step + self.step, self.size)

    @property
    def levels(self) -> int:
        """How many numbers of units are allowed, whole included."""
        count, units = 1, self.lowest
        if units < self.size:
            count += (self.size - units) // self.step + (self.size % self.step > 0)
        return count


Units = tuple[int, ...]
"""A policy: units kept of every choice, in order."""


@dataclass(frozen=True)
class Episode:
    """One walk. states: (steps, 10) float32; actions: what was asked for at each step, before the walk; units: the policy."""

    states: np.ndarray
    actions: tuple[float, ...]
    units: Units


class Environment:
    """The choices under one budget."""

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        macs: Used,
        used: Used,
        budget: float,
        linear: bool = True,
        spread: bool = False,
    ) -> None:
        """macs, used: what a network with these keep ratios costs, in MACs and in what the budget is of; linear: as in
        `walk.constrained`. budget: inf: none. spread: what a walk leaves of it is given to all choices in proportion."""
        self.choices = tuple(choices)
        self.used, self.budget, self.linear, self.spread = used, budget, linear, spread
        self._macs = macs
        whole = [1.0] * len(choices)
        self._whole_macs = max(macs(whole), 1e-12)
        features = np.array([c.features for c in choices], dtype=np.float64)
        low, span = features.min(axis=0), np.ptp(features, axis=0)
        self._fixed = np.where(span > 0, (features - low) / np.where(span > 0, span, 1.0), 0.0)

    def state(self, t: int, keep: Sequence[float], last: float) -> np.ndarray:
        """float32 (10,) before the action t. keep: ratios that are decided (before t). last: of them the one before, or 1."""
        decided = [*keep[:t], *[1.0] * (len(self.choices) - t)]
        reduced = 1.0 - self._macs(decided) / self._whole_macs
        rest = sum(c.macs for c in self.choices[t + 1 :]) / self._whole_macs
        return np.array([*self._fixed[t], reduced, rest, last], dtype=np.float32)

    def lowest(self) -> Units:
        """The policy that keeps the least of everything."""
        return tuple(c.lowest for c in self.choices)

    def whole(self) -> Units:
        return tuple(c.size for c in self.choices)

    def ratios(self, units: Units) -> list[float]:
        return [n / c.size for n, c in zip(units, self.choices, strict=True)]

    def fits(self, units: Units) -> bool:
        """Whether the policy keeps to the budget."""
        return self.used(self.ratios(units)) <= self.budget * (1 + SLACK)

    def run(self, choose: Callable[[np.ndarray], float]) -> Episode:
        """Walk through all choices; `choose` gives the action for a state.

        Each action is held to the budget (`walk.constrained`), then rounded up to the choice's step; where the rounding
        alone breaks the budget, down. (The paper lets it overshoot a little.) The policy fits whenever the lowest does.
        """
        keep = self.ratios(self.lowest())
        states, actions, units = [], [], []
        last = 1.0
        for t, choice in enumerate(self.choices):
            states.append(self.state(t, keep, last))
            actions.append(float(choose(states[-1])))
            allowed = constrained(actions[-1], t, keep, self.used, self.budget, linear=self.linear)
            kept = max(choice.units(allowed), choice.lowest)
            keep[t] = kept / choice.size
            while self.used(keep) > self.budget * (1 + SLACK):
                fewer = choice.below(kept)
                if fewer is None:
                    break
                kept = fewer
                keep[t] = kept / choice.size
            units.append(kept)
            last = keep[t]
        policy = self._spread(tuple(units)) if self.spread and self.budget != float("inf") else tuple(units)
        return Episode(np.stack(states), tuple(actions), policy)

    def _spread(self, units: Units) -> Units:
        """The policy with all its ratios multiplied by the one factor that spends the budget, as far as whole units can."""
        keep = self.ratios(units)
        return self._largest(units, 1.0, 1.0 / min(keep), lambda f: [f * k for k in keep])

    def walk(self, actions: Sequence[float]) -> Units:
        """The policy that these actions, one for each choice, come to."""
        given = iter(actions)
        return self.run(lambda state: next(given)).units

    def evenly(self, ratio: float) -> Units:
        """The policy that keeps this fraction everywhere, rounded as actions are; the least of a choice where that is more."""
        return tuple(max(c.units(ratio), c.lowest) for c in self.choices)

    def uniform(self) -> Units:
        """The policy that keeps the same fraction everywhere, as large as the budget allows (the least of a choice where that
        is more, and rounded as actions are)."""
        return self._largest(self.lowest(), 0.0, 1.0, lambda ratio: [ratio] * len(self.choices))

    def _largest(self, best: Units, low: float, high: float, ratios: Callable[[float], list[float]]) -> Units:
        """The policy of the largest factor between low and high whose network keeps to the budget; `best` where none does."""
        for _ in range(_HALVINGS):
            factor = (low + high) / 2
            wanted = zip(self.choices, ratios(factor), strict=True)
            units = tuple(max(c.units(min(ratio, 1.0)), c.lowest) for c, ratio in wanted)
            if self.fits(units):
                low, best = factor, units
            else:
                high = factor
        return best
