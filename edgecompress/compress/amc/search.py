"""The search: the agent's episodes, then each baseline's as many, kept on disk every few evaluations so that a kill costs no more.

What a checkpoint holds is all that decides what comes next; a search that goes on from one ends in the very policies of one that
was never stopped (on a CPU; and where nothing is measured on a device meanwhile, which never answers twice the same).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from edgecompress import resume
from edgecompress.compress.amc.environment import Environment, Units
from edgecompress.compress.amc.strategies import Strategy
from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import Progress, Task

T = TypeVar("T")

SAVE_EVERY = 5
"""Evaluations between two checkpoints."""
LINES = 4
"""Parts of a search, each of which but the last ends with a line about the best policy so far."""


@dataclass(frozen=True)
class Result:
    """Best policy of a strategy among those that keep to the budget. evaluation: from 1, which one it was."""

    units: Units
    top1: float
    reward: float
    evaluation: int


@dataclass
class Trail:
    """All that one strategy has tried, in order, and the seconds that it took."""

    units: list[Units] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False


class Watcher(Protocol):
    """Measures on a device while the agent searches."""

    def look(self, trail: Trail, best: Result | None) -> bool:
        """After each of the agent's evaluations. Whether what networks cost is known better now."""
        ...

    def settle(self, best: Callable[[], Result | None]) -> None:
        """After the last one: until what is best has been measured."""
        ...

    def knows(self, units: Units) -> bool:
        """Whether a policy's network was measured."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Search:
    """Evaluations under one budget. score: units → top-1 (called once for each policy; the rest is remembered)."""

    def __init__(
        self,
        env: Environment,
        score: Callable[[Units], float],
        reward: Callable[[Units, float], float],
        *,
        folder: Path,
        key: str,
        progress: Progress,
        watcher: Watcher | None = None,
    ) -> None:
        self._env, self._score, self._reward = env, score, reward
        self._folder, self._key, self._progress, self._watcher = folder, key, progress, watcher
        self.trails: dict[str, Trail] = {}
        self._known: dict[Units, float] = {}
        self.scored, self.scoring_s = 0, 0.0
        self.scoring_s_before = 0.0  # of processes before this one
        self.resumed_at: int | None = None
        self._strategies: dict[str, Strategy] = {}
        self._saved = resume.read(folder, key, progress.say)
        if self._saved is not None:
            self._restore(self._saved)

    def best(self, name: str, among: Callable[[Units], bool] = lambda units: True) -> Result | None:
        """The best of a strategy so far, by what the budget's cost is known to be now; None: nothing that keeps to it.

        among: only policies for which it holds.
        """
        trail, found = self.trails[name], None
        for number, (units, top1) in enumerate(zip(trail.units, trail.top1, strict=True), 1):
            value = self._reward(units, top1)
            if (found is None or value > found.reward) and among(units) and self._env.fits(units):
                found = Result(units, top1, value, number)
        return found

    def rewards(self, name: str) -> list[float | None]:
        """Of every evaluation; None where the policy does not keep to the budget."""
        trail = self.trails[name]
        return [
            self._reward(units, top1) if self._env.fits(units) else None
            for units, top1 in zip(trail.units, trail.top1, strict=True)
        ]

    def run(self, strategy: Strategy, evaluations: int, *, patience: int | None = None, least: int = 0) -> None:
        """Evaluate so many policies of a strategy, or until it has no more, or until none of the last `patience` was better than
        all before (after `least` evaluations). What a checkpoint has of it is not done again."""
        trail = self.trails.setdefault(strategy.name, Trail())
        self._strategies[strategy.name] = strategy
        if self._saved is not None and strategy.name in self._saved["strategies"]:
            strategy.restore(self._saved["strategies"][strategy.name])
        if trail.finished:
            return
        watched = self._watcher if strategy.name == "amc" else None
        if watched is not None and trail.units:  # what a device failed to answer before
            self._asked(lambda: watched.look(trail, self.best(strategy.name)))
        best = self.best(strategy.name)
        began = time.monotonic() - trail.seconds
        with self._progress.task(f"amc: {strategy.name}", total=evaluations) as task:
            task.advance(len(trail.units))
            while True:
                tried = len(trail.units)
                while len(trail.units) < evaluations:
                    if (
                        patience
                        and len(trail.units) >= least
                        and best
                        and len(trail.units) - best.evaluation >= patience
                    ):
                        break
                    units = strategy.ask()
                    if units is None:
                        break
                    top1 = self._top1(units)
                    fits = self._env.fits(units)
                    value = self._reward(units, top1)
                    trail.units.append(units)
                    trail.top1.append(top1)
                    strategy.tell(units, top1, value, fits)
                    if fits and (best is None or value > best.reward):
                        best = Result(units, top1, value, len(trail.units))
                    if watched is not None and self._asked(lambda trail=trail, best=best: watched.look(trail, best)):  # type: ignore[misc]
                        best = self.best(strategy.name)
                    trail.seconds = time.monotonic() - began
                    task.advance()
                    self._tell(task, best)
                    number = len(trail.units)
                    if number < evaluations and number * LINES // evaluations > (number - 1) * LINES // evaluations:
                        self._say(strategy.name, number, evaluations, best)
                    if len(trail.units) % SAVE_EVERY == 0:
                        self.save()
                self.settle(strategy.name)
                best = self.best(strategy.name)
                if self._watcher is None or best is not None or len(trail.units) == tried:
                    break  # otherwise what is known better by now may make another policy of it
        trail.finished = True
        self.save()

    def settle(self, name: str) -> None:
        """Where a device is measured on: until a strategy's best policy is one that was. Where none of its policies keeps to the
        budget by what is known, those that cost least are measured, which may say that others do."""
        if self._watcher is not None:
            watcher = self._watcher
            self._asked(lambda: watcher.settle(lambda: self.best(name) or self._cheapest(name, watcher)))

    def _cheapest(self, name: str, watcher: Watcher) -> Result | None:
        """What would cost least of a strategy's policies that were not measured; of those that cost the same the least."""
        trail, found = self.trails[name], None
        least = (float("inf"), float("inf"))
        for number, (units, top1) in enumerate(zip(trail.units, trail.top1, strict=True), 1):
            keep = self._env.ratios(units)
            costs = self._env.used(keep), sum(keep)
            if costs < least and not watcher.knows(units):
                least, found = costs, Result(units, top1, self._reward(units, top1), number)
        return found

    def _asked(self, ask: Callable[[], T]) -> T:
        """What a device answers; where it fails, the search is kept as it is and stops."""
        try:
            return ask()
        except (StepFailed, UserError):
            self.save()
            raise

    def _tell(self, task: Task, best: Result | None) -> None:
        speed = f"{self.scored / self.scoring_s:.2g} policies/s" if self.scoring_s else ""
        task.describe(f"best top-1 {100 * best.top1:.2f} %, {speed}" if best else f"none in the budget yet, {speed}")

    def _say(self, name: str, number: int, evaluations: int, best: Result | None) -> None:
        """A line that stays: how far a search is, and its best policy so far."""
        if best is None:
            self._progress.say(f"amc: {name} {number}/{evaluations}: nothing keeps to the budget yet")
            return
        kept = " ".join(f"{n}/{c.size}" for n, c in zip(best.units, self._env.choices, strict=True))
        self._progress.say(
            f"amc: {name} {number}/{evaluations}: best reward {best.reward:.4g}, top-1 {100 * best.top1:.2f} %, keeps {kept}"
        )

    def _top1(self, units: Units) -> float:
        if units not in self._known:
            began = time.monotonic()
            self._known[units] = self._score(units)
            self.scored += 1
            self.scoring_s += time.monotonic() - began
        return self._known[units]

    def save(self) -> None:
        """Keep everything, whole or not at all."""
        trails = {
            name: {
                "units": torch.tensor(trail.units, dtype=torch.int64).reshape(len(trail.units), len(self._env.choices)),
                "top1": torch.tensor(trail.top1, dtype=torch.float64),
                "seconds": trail.seconds,
                "finished": trail.finished,
            }
            for name, trail in self.trails.items()
        }
        kept = {} if self._saved is None else self._saved["strategies"]
        content = {
            "key": self._key,
            "trails": trails,
            # Those that another step asked for, and this one does not, stay as they were.
            "strategies": {**kept, **{name: strategy.state() for name, strategy in self._strategies.items()}},
            "scored": self.scored,
            "scoring_s": self.scoring_s,
            "watcher": {} if self._watcher is None else self._watcher.state(),
        }
        resume.write(self._folder, content)

    def _restore(self, saved: dict[str, Any]) -> None:
        for name, kept in saved["trails"].items():
            units = [tuple(row) for row in kept["units"].tolist()]
            self.trails[name] = Trail(units, kept["top1"].tolist(), kept["seconds"], kept["finished"])
            self._known.update(zip(units, self.trails[name].top1, strict=True))
        self.scored, self.scoring_s = saved["scored"], saved["scoring_s"]
        self.scoring_s_before = self.scoring_s
        self.resumed_at = sum(len(trail.units) for trail in self.trails.values())
        if self._watcher is not None:
            self._watcher.restore(saved["watcher"])
