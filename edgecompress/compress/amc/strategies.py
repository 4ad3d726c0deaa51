"""Ways to look for a policy: the learning agent, and what it has to beat under the same budget with as many evaluations.

Each is asked for a policy and told what came of it. All that it decides follows from its state, which can be kept and put
back between two evaluations.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from edgecompress.compress.amc.agent import Ddpg, rng_state, set_rng_state
from edgecompress.compress.amc.environment import Environment, Episode, Units


class Strategy(Protocol):
    name: str

    def ask(self) -> Units | None:
        """The next policy to evaluate; None: there is nothing left to try."""
        ...

    def tell(self, units: Units, top1: float, reward: float, fits: bool) -> None:
        """What came of the policy that was asked for last. fits: whether it keeps to the budget."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Learning:
    """AMC: the agent walks, its reward is learnt from."""

    name = "amc"

    def __init__(self, env: Environment, *, warmup: int, seed: int) -> None:
        self._env = env
        self.agent = Ddpg(len(env.choices), warmup, seed)
        self._episode: Episode | None = None
        self._worst = 0.0

    def ask(self) -> Units:
        self._episode = self._env.run(self.agent.act)
        return self._episode.units

    def tell(self, units: Units, top1: float, reward: float, fits: bool) -> None:
        assert self._episode is not None
        # A walk breaks its budget only where the lowest does, as measured on a device by now: the worst that was seen.
        value = reward if fits else min(self._worst, reward)
        self._worst = min(self._worst, value)
        self.agent.learn(self._episode, value)

    def state(self) -> dict[str, Any]:
        return {"agent": self.agent.state(), "worst": self._worst}

    def restore(self, state: dict[str, Any]) -> None:
        self.agent.restore(state["agent"])
        self._worst = state["worst"]


class Uniform:
    """The same fraction everywhere: the largest that the budget allows; without a budget as many as there are evaluations for."""

    name = "uniform"

    def __init__(self, env: Environment, evaluations: int) -> None:
        if env.budget == float("inf"):
            levels = (env.evenly(1 - k / evaluations) for k in range(evaluations))
            self._policies = list(dict.fromkeys(levels))
        else:
            self._policies = []  # what a budget on a device allows may be known better when it is asked for
        self._env, self._done = env, 0
        self._last: Units = ()

    def ask(self) -> Units | None:
        if self._policies:
            return self._policies[self._done] if self._done < len(self._policies) else None
        units = self._env.uniform()
        return None if units == self._last else units

    def tell(self, units: Units, top1: float, reward: float, fits: bool) -> None:
        self._done += 1
        self._last = units

    def state(self) -> dict[str, Any]:
        return {"done": self._done, "last": list(self._last)}

    def restore(self, state: dict[str, Any]) -> None:
        self._done, self._last = state["done"], tuple(state["last"])


class Random:
    """Even random actions, held to the budget by the same walk: the agent's warm-up without an end."""

    name = "random"

    def __init__(self, env: Environment, seed: int) -> None:
        self._env, self._rng = env, np.random.default_rng([seed, 2])

    def ask(self) -> Units:
        return self._env.walk(self._rng.random(len(self._env.choices)).tolist())

    def tell(self, units: Units, top1: float, reward: float, fits: bool) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"rng": rng_state(self._rng)}

    def restore(self, state: dict[str, Any]) -> None:
        set_rng_state(self._rng, state["rng"])


POPULATION = 16
TOURNAMENT = 3
MUTATION = 0.15
"""Standard deviation of what is added to a mutated keep ratio."""


class Evolutionary:
    """Policies from two parents each, mutated and held to the budget by the walk; the best POPULATION stay.

    The first are the uniform policy and random ones. A parent is the best of TOURNAMENT drawn; each ratio comes from either,
    and two of them on average are changed.
    """

    name = "evolutionary"

    def __init__(self, env: Environment, seed: int) -> None:
        self._env, self._rng = env, np.random.default_rng([seed, 3])
        self._alive: list[tuple[float, Units]] = []
        self._asked = 0

    def ask(self) -> Units:
        self._asked += 1
        count = len(self._env.choices)
        if self._asked == 1:
            return self._env.uniform()
        if self._asked <= POPULATION or not self._alive:
            return self._env.walk(self._rng.random(count).tolist())
        mother, father = self._env.ratios(self._parent()), self._env.ratios(self._parent())
        child = np.where(self._rng.random(count) < 0.5, mother, father)
        changed = self._rng.random(count) < 2 / count
        changed[self._rng.integers(count)] = True
        child = np.clip(child + changed * self._rng.normal(0, MUTATION, count), 0, 1)
        return self._env.walk(child.tolist())

    def _parent(self) -> Units:
        drawn = self._rng.integers(0, len(self._alive), TOURNAMENT)
        return self._alive[int(drawn.min())][1]  # they stand in order, the best first

    def tell(self, units: Units, top1: float, reward: float, fits: bool) -> None:
        if not fits or any(units == other for _, other in self._alive):
            return
        self._alive.append((reward, units))
        self._alive.sort(key=lambda one: -one[0])
        del self._alive[POPULATION:]

    def state(self) -> dict[str, Any]:
        alive = [[value, list(units)] for value, units in self._alive]
        return {"rng": rng_state(self._rng), "asked": self._asked, "alive": alive}

    def restore(self, state: dict[str, Any]) -> None:
        set_rng_state(self._rng, state["rng"])
        self._asked = state["asked"]
        self._alive = [(value, tuple(units)) for value, units in state["alive"]]
