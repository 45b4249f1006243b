"""One training run: worlds, memory and learner, advanced segment by segment.

Every segment starts in restarted worlds whose seed is a function of the run's seed and the segment's number. So what a
run knows between two segments (`state`) is all there is to know, and a run that goes on from it does what an
uninterrupted one would have done, number for number.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from om2p_data.behavior.config import BehaviorConfig
from om2p_data.behavior.policy import GaussianNoise, Policy, TeamActor, UniformPolicy
from om2p_data.behavior.ppo import PPO, Steps
from om2p_data.behavior.replay import Replay
from om2p_data.behavior.td3 import TD3
from om2p_data.checkpoints import optimizer_state, restore_optimizer
from om2p_data.envs import make
from om2p_data.envs.registry import Task
from om2p_data.errors import UserError

L = TypeVar("L", TD3, PPO)


class Run(abc.ABC, Generic[L]):
    """What the training loop sees of a learner with its worlds.

    Attributes:
        memory: everything collected so far; whoever does not need it any more may set it to None.
        learns_from_memory: whether the learner itself needs it to the end.
        segments, env_steps: how many so far; environment steps are summed over worlds.
    """

    learner: L
    learns_from_memory: bool

    def __init__(self, task: Task, config: BehaviorConfig, seed: int):
        self.task, self.config = task, config
        words = np.random.SeedSequence(seed).generate_state(4)
        self._world_seed, self._learner_seed, noise_seed, sampling_seed = (int(word) for word in words)
        self._env = make(task.name, config.num_envs)
        self._rng = np.random.default_rng(noise_seed)
        self._sampling = np.random.default_rng(sampling_seed)
        self.memory: Replay | None = Replay(task, config.num_envs, 2 * config.segment_steps)
        self.segments = 0
        self.env_steps = 0

    @property
    def actor(self) -> TeamActor:
        """The current policy, of raw observations, without noise."""
        return self.learner.actor

    def advance(self) -> None:
        """Collect and learn for one segment."""
        seed = np.random.SeedSequence((self._world_seed, self.segments)).generate_state(1)[0]
        self._obs = self._env.reset(int(seed))
        for step in range(self.config.segment_steps):
            self._step(last=step == self.config.segment_steps - 1)
        self.segments += 1

    @abc.abstractmethod
    def _step(self, last: bool) -> None:
        """One step of all worlds; `last` of the segment, after which they restart."""

    def _collect(self, actions: np.ndarray, applied: np.ndarray, last: bool) -> tuple[np.ndarray, ...]:
        """Step the worlds and record it; returns what was recorded, the actions as the learner chose them."""
        obs, state = self._obs, self._env.state()
        self._obs, rewards, terminated, truncated = self._env.step(applied)
        if last:  # the worlds are restarted from outside, which is a truncation like that of the clock
            truncated = truncated | ~terminated
        after = (rewards, self._env.final_obs, self._env.final_state, terminated, truncated)
        if self.memory is not None:
            self.memory.add(obs, state, applied, *after)
        self.env_steps += self.config.num_envs
        return obs, state, actions, *after

    def state(self) -> dict[str, Any]:
        """All that the next segments depend on, but for the memory."""
        return {
            "segments": self.segments,
            "env_steps": self.env_steps,
            "rng": json.dumps([self._rng.bit_generator.state, self._sampling.bit_generator.state]),
            "nets": self.learner.modules().state_dict(),
            "optimizers": [optimizer_state(optimizer) for optimizer in self.learner.optimizers],
            "generator": self.learner.generator.get_state(),
            "updates": self.learner.updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.segments, self.env_steps = state["segments"], state["env_steps"]
        for rng, words in zip((self._rng, self._sampling), json.loads(state["rng"]), strict=True):
            rng.bit_generator.state = words
        learner = self.learner
        learner.modules().load_state_dict(state["nets"])
        for optimizer, slots in zip(learner.optimizers, state["optimizers"], strict=True):
            restore_optimizer(optimizer, slots)
        learner.generator.set_state(state["generator"])
        learner.updates = state["updates"]


class OffPolicyRun(Run[TD3]):
    """TD3: after every step of the worlds, updates from everything collected so far."""

    learns_from_memory = True

    def __init__(self, task: Task, config: BehaviorConfig, seed: int):
        super().__init__(task, config, seed)
        assert config.td3 is not None
        self._td3 = config.td3
        self.learner = TD3(task, hidden=config.hidden, seed=self._learner_seed, **self._td3.learner())
        self._uniform = UniformPolicy(task)
        self._explorer = GaussianNoise(self.learner.actor, self._td3.exploration_noise)
        self._due = 0.0

    def state(self) -> dict[str, Any]:
        return super().state() | {"due": self._due}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._due = state["due"]

    def _step(self, last: bool) -> None:
        td3, memory = self._td3, self.memory
        assert memory is not None
        warming_up = self.env_steps < td3.warmup_steps
        policy: Policy = self._uniform if warming_up else self._explorer
        actions = policy.act(self._obs, self._rng)
        self._collect(actions, actions, last)
        if warming_up or memory.steps < td3.n_step:
            return
        self._due += td3.updates_per_step
        while self._due >= 1.0:
            self._due -= 1.0
            self.learner.update(memory.sample(self._sampling, td3.batch_size, td3.n_step, td3.gamma))


class OnPolicyRun(Run[PPO]):
    """PPO: rounds of `rollout_steps` steps of all worlds, then a few epochs on them."""

    learns_from_memory = False

    def __init__(self, task: Task, config: BehaviorConfig, seed: int):
        super().__init__(task, config, seed)
        assert config.ppo is not None
        self._rollout_steps = config.ppo.rollout_steps
        self.learner = PPO(task, hidden=config.hidden, seed=self._learner_seed, **config.ppo.learner())
        self._rows: list[tuple[np.ndarray, ...]] = []

    def advance(self) -> None:
        self.learner.forget_worlds()
        super().advance()

    def _step(self, last: bool) -> None:
        actions = self.learner.act(self._obs)
        self._rows.append(self._collect(actions, actions.clip(-1.0, 1.0), last))
        if len(self._rows) == self._rollout_steps:
            self.learner.update(_stacked(self._rows))
            self._rows.clear()


def start(task: Task, config: BehaviorConfig, seed: int) -> Run:
    """A run at its beginning, with the learner that the recipe names.

    Raises:
        UserError: the learner cannot learn this task's actions.
    """
    if task.discrete and config.td3 is not None:
        raise UserError(
            f"{task.name} has discrete actions, which TD3 cannot learn: give behavior.ppo, not behavior.td3"
        )
    return (OffPolicyRun if config.td3 is not None else OnPolicyRun)(task, config, seed)


def _stacked(rows: list[tuple[np.ndarray, ...]]) -> Steps:
    obs, state, actions, rewards, _, next_state, terminated, truncated = (
        torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
    )
    return Steps(
        obs=obs.transpose(1, 2),
        state=state,
        raw_actions=actions.transpose(1, 2),
        rewards=rewards.mean(2),
        next_state=next_state,
        # A team's episode ends as a whole.
        terminated=terminated.any(2),
        ended=(terminated | truncated).any(2),
    )
