"""Replay memory of vectorised worlds on plain arrays: n-step batches for learning, whole episodes for data sets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from om2p_data.envs.registry import Task
from om2p_data.episodes import Episodes
from om2p_data.recording import cut


class Batch(NamedTuple):
    """Transitions over n steps.

    `discount` is gamma^n, or 0 where the episode terminated (not where it ran out of time).
    """

    obs: Tensor  # [N, B, O]
    state: Tensor  # [B, S]
    actions: Tensor  # [N, B, A]
    reward: Tensor  # [B], discounted sum of the team reward
    next_obs: Tensor  # [N, B, O]
    next_state: Tensor  # [B, S]
    discount: Tensor  # [B]


class Replay:
    """Everything that was collected, in time order: arrays [capacity, E, ...].

    Args:
        task: row of the task table.
        num_envs: E worlds, written together.
        capacity: steps kept; the oldest are overwritten.
        seed: of the sampling.
    """

    def __init__(self, task: Task, num_envs: int, capacity: int, seed: int):
        lead = (capacity, num_envs)
        self._task = task
        self._capacity = capacity
        self._num_envs = num_envs
        self._rng = np.random.default_rng(seed)
        self._obs = np.zeros((*lead, task.num_agents, task.obs_dim), np.float32)
        self._next_obs = np.zeros_like(self._obs)
        self._state = np.zeros((*lead, task.state_dim), np.float32)
        self._next_state = np.zeros_like(self._state)
        self._actions = np.zeros((*lead, task.num_agents, task.act_dim), np.float32)
        self._rewards = np.zeros((*lead, task.num_agents), np.float32)
        self._terminated = np.zeros(lead, bool)
        self._truncated = np.zeros(lead, bool)
        self.steps = 0  # ever written

    def __len__(self) -> int:
        """Steps held (times E transitions)."""
        return min(self.steps, self._capacity)

    def add(
        self,
        obs: np.ndarray,
        state: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_obs: np.ndarray,
        next_state: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """One step of all worlds; arrays lead with [E] as the vector interface hands them out."""
        row = self.steps % self._capacity
        self._obs[row], self._state[row], self._actions[row], self._rewards[row] = obs, state, actions, rewards
        self._next_obs[row], self._next_state[row] = next_obs, next_state
        # A team's episode ends as a whole.
        self._terminated[row], self._truncated[row] = terminated.any(1), truncated.any(1)
        self.steps += 1

    def sample(self, batch: int, n_step: int, gamma: float) -> Batch:
        """B transitions over up to n steps, cut at the end of their episode. Needs n steps in memory."""
        age = self._rng.integers(n_step - 1, len(self), batch)  # 0 is the newest step; n - 1 more must follow
        world = self._rng.integers(0, self._num_envs, batch)
        row = (self.steps - 1 - age) % self._capacity
        last = row
        reward = self._rewards[row, world].mean(1)
        alive = ~(self._terminated[row, world] | self._truncated[row, world])
        discount = np.full(batch, gamma, np.float32)
        for _ in range(n_step - 1):
            follow = (last + 1) % self._capacity
            last = np.where(alive, follow, last)
            reward = reward + np.where(alive, discount * self._rewards[last, world].mean(1), 0.0)
            discount = np.where(alive, discount * gamma, discount)
            alive &= ~(self._terminated[last, world] | self._truncated[last, world])
        discount = discount * ~self._terminated[last, world]
        return Batch(
            obs=_stacked(self._obs[row, world]),
            state=torch.from_numpy(self._state[row, world]),
            actions=_stacked(self._actions[row, world]),
            reward=torch.from_numpy(reward.astype(np.float32)),
            next_obs=_stacked(self._next_obs[last, world]),
            next_state=torch.from_numpy(self._next_state[last, world]),
            discount=torch.from_numpy(discount.astype(np.float32)),
        )

    def episodes(self, seed: int) -> Episodes:
        """The whole episodes in memory, in the order in which they ended.

        Args:
            seed: written beside every episode.
        """
        order = (np.arange(self.steps - len(self), self.steps)) % self._capacity
        flags = (self._terminated[order], self._truncated[order])
        terminated, truncated = (np.repeat(flag[:, :, None], self._task.num_agents, 2) for flag in flags)
        return cut(
            self._obs[order],
            self._state[order],
            self._actions[order],
            self._rewards[order],
            self._next_obs[order],
            self._next_state[order],
            terminated,
            truncated,
            seed=seed,
            keep_state=self._task.store_state,
            from_reset=self.steps <= self._capacity,  # later, the oldest episodes are partly overwritten
        )


def _stacked(values: np.ndarray) -> Tensor:
    """[B, N, X] -> [N, B, X], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1)))
