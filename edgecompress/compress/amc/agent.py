"""The learning agent of AMC: deep deterministic policy gradient (Lillicrap et al. 2016) as the authors' code runs it.

Every random number is of one generator and both networks start from the seed, so that an agent that is put back from its state
goes on to the bit (on a CPU).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from edgecompress.compress.amc.environment import STATE, Episode

HIDDEN = 300
LR_ACTOR, LR_CRITIC = 1e-4, 1e-3
SOFT = 0.01
"""Of the networks that is mixed into the targets at each update."""
DISCOUNT = 1.0
BATCH = 64
REPLAY_EPISODES = 100
"""The replay holds so many transitions for each choice."""
NOISE, NOISE_DECAY = 0.5, 0.95
"""Standard deviation of the exploration after the warm-up, and what it is multiplied by at each episode."""
BASELINE_RATE = 0.5


class Actor(nn.Module):
    """State (N, 10) → action in (0, 1), (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(STATE, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
            nn.Sigmoid(),
        )

    def forward(self, state: Tensor) -> Tensor:
        action: Tensor = self.layers(state)
        return action


class Critic(nn.Module):
    """State (N, 10) and action (N, 1) → value (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.of_state, self.of_action = nn.Linear(STATE, HIDDEN), nn.Linear(1, HIDDEN)
        self.middle, self.last = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        hidden = torch.relu(self.of_state(state) + self.of_action(action))
        value: Tensor = self.last(torch.relu(self.middle(hidden)))
        return value


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """One draw from the normal distribution cut to [0, 1], by the inverse of its distribution. mean in [0, 1]."""
    draw = rng.random()
    if deviation < 1e-9:
        return mean
    normal = NormalDist(mean, deviation)
    low, high = normal.cdf(0.0), normal.cdf(1.0)
    place = min(max(low + draw * (high - low), 1e-15), 1 - 1e-15)
    return min(max(normal.inv_cdf(place), 0.0), 1.0)


@dataclass
class Replay:
    """The last transitions, in a ring: state, action, reward, next state, whether the episode ended."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    following: np.ndarray
    ends: np.ndarray
    count: int = 0

    @classmethod
    def of(cls, capacity: int) -> Replay:
        def wide() -> np.ndarray:
            return np.zeros((capacity, STATE), np.float32)

        def thin() -> np.ndarray:
            return np.zeros((capacity, 1), np.float32)

        return cls(wide(), thin(), thin(), wide(), thin())

    def add(self, state: np.ndarray, action: float, reward: float, following: np.ndarray, end: bool) -> None:
        place = self.count % len(self.states)
        self.states[place], self.actions[place], self.rewards[place] = state, action, reward
        self.following[place], self.ends[place] = following, float(end)
        self.count += 1

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """A batch of BATCH transitions with replacement, as tensors of (BATCH, width)."""
        rows = rng.integers(0, min(self.count, len(self.states)), BATCH)
        columns = (self.states, self.actions, self.rewards, self.following, self.ends)
        return tuple(torch.from_numpy(column[rows]) for column in columns)


class Ddpg:
    """Actor and critic, their targets, the replay and the exploration. `act` for each step, `learn` after each episode."""

    def __init__(self, steps: int, warmup: int, seed: int) -> None:
        """steps: of an episode; warmup: episodes of even random actions before it learns (the first, number 0, not counted)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor, self.critic = Actor(), Critic()
            self.actor_target, self.critic_target = Actor(), Critic()
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.actor_steps = torch.optim.Adam(self.actor.parameters(), lr=LR_ACTOR)
        self.critic_steps = torch.optim.Adam(self.critic.parameters(), lr=LR_CRITIC)
        self.replay = Replay.of(REPLAY_EPISODES * steps)
        self.rng = np.random.default_rng([seed, 1])
        self.warmup, self.episode = warmup, 0
        self.baseline: float | None = None

    @property
    def exploring(self) -> bool:
        """Whether the actions are still even random ones."""
        return self.episode <= self.warmup

    def act(self, state: np.ndarray) -> float:
        """The action for a state float32 (10,): a draw around the actor's, ever narrower."""
        if self.exploring:
            return float(self.rng.random())
        with torch.no_grad():
            mean = float(self.actor(torch.from_numpy(state)[None]))
        return truncated_normal(mean, NOISE * NOISE_DECAY ** (self.episode - self.warmup), self.rng)

    def learn(self, episode: Episode, reward: float) -> None:
        """Every step of the episode gets its final reward and, after the warm-up, is followed by one update."""
        last = len(episode.actions) - 1
        for t, action in enumerate(episode.actions):
            # Behind the last step there is none; its own state stands there and does not count.
            self.replay.add(episode.states[t], action, reward, episode.states[min(t + 1, last)], t == last)
            if not self.exploring:
                self._update()
        self.episode += 1

    def _update(self) -> None:
        states, actions, rewards, following, ends = self.replay.draw(self.rng)
        mean = float(rewards.mean())
        self.baseline = mean if self.baseline is None else self.baseline + BASELINE_RATE * (mean - self.baseline)
        with torch.no_grad():
            ahead = self.critic_target(following, self.actor_target(following))
            target = rewards - self.baseline + DISCOUNT * (1 - ends) * ahead
        self.critic_steps.zero_grad()
        mse_loss(self.critic(states, actions), target).backward()
        self.critic_steps.step()
        self.actor_steps.zero_grad()
        (-self.critic(states, self.actor(states)).mean()).backward()
        self.actor_steps.step()
        for target_net, net in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            with torch.no_grad():
                for slow, fast in zip(target_net.parameters(), net.parameters(), strict=True):
                    slow.lerp_(fast, SOFT)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, from which `restore` goes on as if nothing had been between."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        ring = {name: torch.from_numpy(getattr(self.replay, name).copy()) for name in _COLUMNS}
        return {
            "parts": parts, "replay": ring, "count": self.replay.count, "rng": rng_state(self.rng),
            "episode": self.episode, "baseline": self.baseline,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        for name in _PARTS:
            getattr(self, name).load_state_dict(state["parts"][name])
        for name in _COLUMNS:
            getattr(self.replay, name)[:] = state["replay"][name].numpy()
        self.replay.count, self.episode, self.baseline = state["count"], state["episode"], state["baseline"]
        set_rng_state(self.rng, state["rng"])


_PARTS = ("actor", "critic", "actor_target", "critic_target", "actor_steps", "critic_steps")
_COLUMNS = ("states", "actions", "rewards", "following", "ends")


def rng_state(rng: np.random.Generator) -> str:
    """The state of a generator as text (its numbers are longer than what a checkpoint's integers hold)."""
    return json.dumps(rng.bit_generator.state)


def set_rng_state(rng: np.random.Generator, text: str) -> None:
    rng.bit_generator.state = json.loads(text)
