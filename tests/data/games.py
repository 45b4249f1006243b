"""Environments and policies as somebody else would write them: sound ones, and every kind of unsound one."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Harvest(ParallelEnv):
    """A scout (discrete from -1 on, with a mask, leaves after two steps), a tractor (continuous) and agent number 7.

    Args:
        broken: which rule is broken.
        endless: no end.
        slow: seconds a step.
    """

    def __init__(self, broken: str | None = None, endless: bool = False, slow: float = 0.0):
        self.metadata = {"name": "harvest"}
        self.possible_agents = ["scout", "big/tractor", 7]
        self.broken, self.endless, self.slow = broken, endless, slow

    def observation_space(self, agent: Any) -> spaces.Space:
        if agent == "scout":
            return spaces.Dict({"observation": spaces.Box(-9, 9, (2,)), "action_mask": spaces.Box(0, 1, (4,), np.int8)})
        return spaces.Box(-np.inf, np.inf, (3, 1) if agent == 7 else (5,))

    def action_space(self, agent: Any) -> spaces.Space:
        if agent == "scout":
            return spaces.Discrete(4, start=-1)
        return spaces.Box(-2.0, 1.0, (1,) if agent == 7 else (2,), np.float64)

    def _see(self, agents: list) -> dict:
        every = {
            "scout": {"observation": self.rng.random(2), "action_mask": np.array([0, 1, 1, 0], np.int8)},
            "big/tractor": np.full(5, self.t),
            7: self.rng.random((3, 1)),
        }
        return {agent: every[agent] for agent in agents}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.rng = np.random.default_rng(seed)
        self.t, self.length = 0, 4 + int(self.rng.integers(3))
        self.agents = list(self.possible_agents)
        return self._see(self.agents), {agent: {} for agent in self.agents}

    def state(self) -> np.ndarray:
        return np.array([self.t, self.length, 0.5])

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        time.sleep(self.slow)
        assert set(actions) == set(self.agents)
        here = list(self.agents)
        self.t += 1
        if self.broken == "raise" and self.t == 2:
            raise RuntimeError("out of\nfuel")
        over = not self.endless and self.t == self.length
        terminations = {agent: over or (agent == "scout" and self.t == 2) for agent in here}
        rewards = {agent: float(self.t) for agent in here}
        seen = self._see(here)
        self.agents = [agent for agent in here if not terminations[agent]]
        self._break(seen, rewards)
        if self.broken == "four":
            return seen, rewards, terminations, {}  # pyright: ignore[reportReturnType]
        return seen, rewards, terminations, dict.fromkeys(here, False), {agent: {} for agent in here}

    def _break(self, seen: dict, rewards: dict) -> None:
        match self.broken:
            case "nan":
                rewards[7] = float("nan")
            case "reward":
                rewards[7] = 1e39  # more than float32 holds
            case "missing":
                del seen["big/tractor"]
            case "shape":
                seen["big/tractor"] = np.zeros(4)
            case "infinite":
                seen["big/tractor"] = np.full(5, np.inf)
            case "type":
                seen["scout"]["action_mask"] = np.array([0, 0.5, 1, 0])
            case "mask":
                del seen["scout"]["action_mask"]
            case "words":
                seen[7] = np.array([["a"], ["b"], ["c"]])
            case "vanish":
                self.agents.remove(7)
            case "stays" if self.t == 2:
                self.agents.append("scout")
            case "joins":
                self.agents.append("newcomer")


class Late(Harvest):
    """Breaks in the fiftieth episode that is begun."""

    episodes = 0

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        Late.episodes += 1
        self.broken = "nan" if Late.episodes == 50 else None
        return super().reset(seed, options)


class Eye(Harvest):
    def observation_space(self, agent: Any) -> spaces.Space:
        return spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Steps(Harvest):
    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.Box(-1, 1, (2,), np.int8)


class Unbounded(Harvest):
    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.Box(-np.inf, np.inf, (1,))


class Many(Harvest):
    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.MultiDiscrete([2, 3])


class Chooser:
    """A policy with a memory: the tractor's action counts the steps."""

    def reset(self) -> None:
        self.calls = 0

    def __call__(self, observations: dict, rng: np.random.Generator) -> dict:
        self.calls += 1
        actions = {"scout": 1, "big/tractor": np.array([self.calls / 10, -1.5]), 7: rng.uniform(-2, 1, 1)}
        return {agent: actions[agent] for agent in observations}


def too_far(observations: dict, rng: np.random.Generator) -> dict:
    return {agent: 2 if agent == "scout" else np.full(1 if agent == 7 else 2, 3.0) for agent in observations}


def silent(observations: dict, rng: np.random.Generator) -> dict:
    return {}


def crash(observations: dict, rng: np.random.Generator) -> dict:
    return {"scout": 1 // 0}


slow = functools.partial(Harvest, slow=0.003)
endless = functools.partial(Harvest, endless=True)
nothing = object
not_a_policy = 3
raises, four, nan, reward, missing, shape, infinite, typed, mask, words, vanish, stays, joins = (
    functools.partial(Harvest, broken=rule)
    for rule in (
        *("raise", "four", "nan", "reward", "missing", "shape", "infinite"),
        *("type", "mask", "words", "vanish", "stays", "joins"),
    )
)
