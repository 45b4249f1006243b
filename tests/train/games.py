"""Environments that somebody else could have written, small enough to train on, and their policies."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Ferry(ParallelEnv):
    """Two agents of different sizes; each is paid for acting as it sees: episodes of 5 or 6 steps.

    Args:
        discrete: choices (from 1 on) in place of numbers in [-3, 1].
        render_mode: None or "rgb_array".
        broken: whether it fails in its third step.
    """

    def __init__(self, discrete: bool = False, render_mode: str | None = None, broken: bool = False):
        self.metadata = {"name": "ferry", "render_modes": ["rgb_array"]}
        self.possible_agents = ["bow", "stern"]
        self.render_mode, self.discrete, self.broken = render_mode, discrete, broken
        self.sizes = {"bow": 2, "stern": 3}

    def observation_space(self, agent: Any) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (self.sizes[agent] + 1,))

    def action_space(self, agent: Any) -> spaces.Space:
        size = self.sizes[agent]
        return spaces.Discrete(size, start=1) if self.discrete else spaces.Box(-3.0, 1.0, (size,))

    def _see(self) -> dict:
        self.seen = {a: self.rng.uniform(-1, 1, self.observation_space(a).shape).astype("f") for a in self.sizes}
        return self.seen

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.rng = np.random.default_rng(seed)
        self.t, self.length = 0, 5 + int(self.rng.integers(2))
        self.agents = list(self.possible_agents)
        return self._see(), {agent: {} for agent in self.agents}

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        if self.broken and self.t == 2:
            raise RuntimeError("sunk")
        rewards = {agent: self._paid(agent, actions[agent]) for agent in self.agents}
        self.t += 1
        here, over = list(self.agents), self.t == self.length
        self.agents = [] if over else here
        ended = dict.fromkeys(here, over)
        return self._see(), rewards, ended, dict.fromkeys(here, False), {agent: {} for agent in here}

    def _paid(self, agent: str, action: Any) -> float:
        assert self.action_space(agent).contains(action), action
        if self.discrete:
            return float(action - 1 == self.seen[agent][:-1].argmax())
        return float(-np.abs(action - (2.0 * self.seen[agent][:-1] - 1.0)).mean())

    def render(self) -> np.ndarray | None:
        return np.full((40, 60, 3), 10 * self.t, np.uint8) if self.render_mode else None


def good(observations: dict, rng: np.random.Generator) -> dict:
    """The best that can be done where actions are numbers."""
    return {agent: (2.0 * seen[:-1] - 1.0).astype("f") for agent, seen in observations.items()}


discrete = functools.partial(Ferry, discrete=True)
broken = functools.partial(Ferry, broken=True)


def blind() -> Ferry:
    """A factory without arguments: nothing can be drawn."""
    return Ferry()
