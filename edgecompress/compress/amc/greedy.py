"""The hand-made way: measure how sensitive each group is alone, cut where it costs least, then improve by exchanges."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.compress.amc.agent import rng_state, set_rng_state
from edgecompress.compress.amc.environment import Environment, Units

SHARE = 0.5
"""Of the evaluations that go into the sensitivities."""
MOST_POINTS = 4
"""Sensitivities of one group that are measured."""
STEPS = 16
"""Cuts from whole to least that a group with many units is taken down in."""


class Greedy:
    """First each group is cut alone, at a few ratios (these networks are over the budget and no candidates); then the group that
    loses least accuracy for what it saves is cut a step, again and again, until the budget is kept; then exchanges are tried:
    one group gets a step back and others give one, and what is better stays. Without a budget the cuts go on to the least of
    everything, each a candidate, and then single groups are changed up or down.
    """

    name = "greedy"

    def __init__(self, env: Environment, evaluations: int, seed: int) -> None:
        self._env, self._rng = env, np.random.default_rng([seed, 4])
        scanned = max(1, int(SHARE * evaluations))
        self._scan = self._points(scanned)
        cuts = sum(min(c.levels - 1, STEPS) for c in env.choices)
        # Without a budget: cuts between two candidates, so that half of what is left reaches the least.
        self._stride = max(1, round(2 * cuts / max(1, evaluations - scanned)))
        self._lost: list[float] = []  # accuracies of the scan: the whole network's first
        self._best: tuple[float, Units] | None = None
        self._first: Units | None = None

    def _points(self, most: int) -> list[tuple[int, int]]:
        """(choice, units) that are measured: of every choice as many as there are evaluations for, the dearest ones first."""
        choices = self._env.choices
        per_choice = min(MOST_POINTS, max(1, (most - 1) // len(choices)))
        rows = []
        for number, choice in enumerate(choices):
            lowest, span = choice.lowest, choice.size - choice.lowest
            wanted = [choice.size - span * k / per_choice for k in range(1, per_choice + 1)]
            units = {max(lowest, choice.units(w / choice.size)) for w in wanted} - {choice.size}
            rows += [(number, n) for n in sorted(units, reverse=True)]
        # Where there are too few evaluations for all, those that save most are measured.
        rows.sort(key=lambda row: -choices[row[0]].macs)
        return sorted(rows[: max(0, most - 1)])

    def ask(self) -> Units | None:
        whole = self._env.whole()
        if not self._lost:
            return whole
        if len(self._lost) <= len(self._scan):
            number, units = self._scan[len(self._lost) - 1]
            return (*whole[:number], units, *whole[number + 1 :])
        if self._env.budget == float("inf"):
            return self._unbounded(self._first or whole)
        if self._first is None:
            self._first = self._assemble()
            return self._first
        return self._exchange(self._best[1] if self._best else self._first)

    def tell(self, units: Units, top1: float, reward: float, fits: bool) -> None:
        if len(self._lost) <= len(self._scan):
            self._lost.append(top1)
        elif fits and (self._best is None or reward > self._best[0]):
            self._best = (reward, units)

    def _loss(self, number: int, units: int) -> float:
        """Accuracy that a group loses alone: between the measured points on straight lines, never less for a deeper cut."""
        size, whole = self._env.choices[number].size, self._lost[0]
        points = [(size, 0.0)]
        for (choice, kept), top1 in zip(self._scan, self._lost[1:], strict=True):
            if choice == number:
                points.append((kept, max(points[-1][1], whole - top1)))
        if len(points) == 1:  # not measured: as the others on average, by the fraction that is cut
            losses = [
                (whole - t) / (1 - n / self._env.choices[c].size)
                for (c, n), t in zip(self._scan, self._lost[1:], strict=True)
            ]
            return float(np.mean(losses)) * (1 - units / size) if losses else 1 - units / size
        points.reverse()
        return float(np.interp(units, [p[0] for p in points], [p[1] for p in points]))

    def _down(self, number: int, units: int) -> int | None:
        """A step down: a level where there are few, else a STEPS-th of the way from whole to least."""
        choice = self._env.choices[number]
        if choice.levels <= STEPS:
            return choice.below(units)
        lower = max(choice.lowest, choice.units(units / choice.size - (1 - choice.lowest / choice.size) / STEPS))
        return lower if lower < units else choice.below(units)

    def _assemble(self) -> Units:
        units = list(self._env.whole())
        while not self._env.fits(tuple(units)):
            number = self._cheapest(units)
            if number is None:
                return self._env.lowest()
            units[number] = self._down(number, units[number]) or units[number]
        return tuple(units)

    def _unbounded(self, at: Units) -> Units:
        """The next candidate where no budget says when to stop. at: the last of the cuts."""
        units = list(at)
        for _ in range(self._stride):
            number = self._cheapest(units)
            if number is not None:
                units[number] = self._down(number, units[number]) or units[number]
        if tuple(units) != at:
            self._first = tuple(units)
            return self._first
        units = list(self._best[1] if self._best else at)
        number = int(self._rng.integers(len(units)))
        lower = self._down(number, units[number])
        upwards = lower is None or bool(self._rng.random() < 0.5)
        units[number] = self._up(number, units[number]) if upwards else int(lower or units[number])
        return tuple(units)

    def _cheapest(self, units: list[int], but: int | None = None) -> int | None:
        """The choice whose next step down loses least accuracy for what it saves; None: all are at their least."""
        now = self._env.used(self._env.ratios(tuple(units)))
        best, least = None, float("inf")
        for number in range(len(units)):
            lower = None if number == but else self._down(number, units[number])
            if lower is None:
                continue
            changed = tuple(lower if i == number else n for i, n in enumerate(units))
            saved = now - self._env.used(self._env.ratios(changed))
            price = (self._loss(number, lower) - self._loss(number, units[number]) + 1e-6) / max(saved, 1e-12)
            if price < least:
                best, least = number, price
        return best

    def _exchange(self, units: Units) -> Units:
        """One random group a step up, then random others down until the budget is kept, then up what still fits."""
        changed = list(units)
        open_ = [i for i, c in enumerate(self._env.choices) if c.above(units[i]) is not None]
        if not open_:
            return units
        up = int(self._rng.choice(open_))
        changed[up] = self._up(up, units[up])
        while not self._env.fits(tuple(changed)):
            down = [i for i in range(len(changed)) if i != up and self._down(i, changed[i]) is not None]
            if not down:
                return units
            number = int(self._rng.choice(down))
            changed[number] = self._down(number, changed[number]) or changed[number]
        return tuple(changed)

    def _up(self, number: int, units: int) -> int:
        choice = self._env.choices[number]
        next_up = choice.above(units) or choice.size
        if choice.levels <= STEPS:
            return next_up
        return max(next_up, choice.units(units / choice.size + (1 - choice.lowest / choice.size) / STEPS))

    def state(self) -> dict[str, Any]:
        best = None if self._best is None else [self._best[0], list(self._best[1])]
        first = None if self._first is None else list(self._first)
        return {"rng": rng_state(self._rng), "lost": list(self._lost), "best": best, "first": first}

    def restore(self, state: dict[str, Any]) -> None:
        set_rng_state(self._rng, state["rng"])
        self._lost = list(state["lost"])
        self._best = None if state["best"] is None else (state["best"][0], tuple(state["best"][1]))
        self._first = None if state["first"] is None else tuple(state["first"])
