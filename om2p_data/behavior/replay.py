"""Replay memory of vectorised worlds on plain arrays: n-step batches for learning, whole episodes for data sets."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from om2p_data.envs.registry import Task
from om2p_data.episodes import Episodes
from om2p_data.recording import cut
from om2p_data.storage import sync


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
    """Everything that was collected, in time order: arrays [capacity, E, ...] that double when they are full.

    Args:
        task: row of the task table.
        num_envs: E worlds, written together.
        capacity: steps to make room for at first.
    """

    def __init__(self, task: Task, num_envs: int, capacity: int):
        lead = (capacity, num_envs)
        agents = task.num_agents
        self._task = task
        self._num_envs = num_envs
        self._columns = {
            "obs": np.empty((*lead, agents, task.obs_dim), np.float32),
            "state": np.empty((*lead, task.state_dim), np.float32),
            "actions": np.empty((*lead, agents, task.act_dim), np.float32),
            "rewards": np.empty((*lead, agents), np.float32),
            "next_obs": np.empty((*lead, agents, task.obs_dim), np.float32),
            "next_state": np.empty((*lead, task.state_dim), np.float32),
            "terminated": np.empty(lead, bool),
            "truncated": np.empty(lead, bool),
        }
        self._saved = 0
        self.steps = 0

    def __len__(self) -> int:
        """Steps held (times E transitions)."""
        return self.steps

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
        # A team's episode ends as a whole.
        rows = (obs, state, actions, rewards, next_obs, next_state, terminated.any(1), truncated.any(1))
        if self.steps == len(self._columns["rewards"]):
            self._grow()
        for column, row in zip(self._columns.values(), rows, strict=True):
            column[self.steps] = row
        self.steps += 1

    def _grow(self) -> None:
        for name, column in self._columns.items():
            self._columns[name] = np.empty((2 * len(column), *column.shape[1:]), column.dtype)
            self._columns[name][: len(column)] = column

    def sample(self, rng: np.random.Generator, batch: int, n_step: int, gamma: float) -> Batch:
        """B transitions over up to n steps, cut at the end of their episode. Needs n steps in memory."""
        held = self._columns
        first = rng.integers(0, self.steps - n_step + 1, batch)
        world = rng.integers(0, self._num_envs, batch)
        last = first
        reward = held["rewards"][first, world].mean(1)
        alive = ~(held["terminated"][first, world] | held["truncated"][first, world])
        discount = np.full(batch, gamma, np.float32)
        for _ in range(n_step - 1):
            last = np.where(alive, last + 1, last)
            reward = reward + np.where(alive, discount * held["rewards"][last, world].mean(1), 0.0)
            discount = np.where(alive, discount * gamma, discount)
            alive &= ~(held["terminated"][last, world] | held["truncated"][last, world])
        discount = discount * ~held["terminated"][last, world]
        return Batch(
            obs=_stacked(held["obs"][first, world]),
            state=torch.from_numpy(held["state"][first, world]),
            actions=_stacked(held["actions"][first, world]),
            reward=torch.from_numpy(reward.astype(np.float32)),
            next_obs=_stacked(held["next_obs"][last, world]),
            next_state=torch.from_numpy(held["next_state"][last, world]),
            discount=torch.from_numpy(discount.astype(np.float32)),
        )

    def episodes(self, seed: int) -> Episodes:
        """The whole episodes in memory, in the order in which they ended.

        Args:
            seed: written beside every episode.
        """
        held = {name: column[: self.steps] for name, column in self._columns.items()}
        for name in ("terminated", "truncated"):
            held[name] = np.repeat(held[name][:, :, None], self._task.num_agents, 2)
        return cut(**held, seed=seed, keep_state=self._task.store_state)

    def save(self, folder: Path) -> None:
        """Append what is new since the last call to one file a column in `folder`, down to the disk.

        Raises:
            OSError: the files cannot be written.
        """
        folder.mkdir(exist_ok=True)
        for name, column in self._columns.items():
            path = folder / f"{name}.bin"
            with path.open("r+b" if self._saved else "wb") as file:
                file.seek(self._saved * column[:1].nbytes)  # after a kill the file may be longer than what counts
                file.write(column[self._saved : self.steps].data)
                sync(file)
        self._saved = self.steps

    def restore(self, folder: Path, steps: int) -> None:
        """Read the first `steps` steps that `save` wrote.

        Raises:
            OSError, ValueError: the files are missing or too short.
        """
        while len(self._columns["rewards"]) < steps:
            self._grow()
        for name, column in self._columns.items():
            with (folder / f"{name}.bin").open("rb") as file:
                if file.readinto(column[:steps].data.cast("B")) != column[:steps].nbytes:
                    raise ValueError(f"{name}.bin in {folder} is too short")
        self.steps = self._saved = steps

    def cut_files(self, folder: Path, steps: int) -> None:
        """Shorten the files that `save` wrote to their first `steps` steps."""
        for name, column in self._columns.items():
            with (folder / f"{name}.bin").open("r+b") as file:
                file.truncate(steps * column[:1].nbytes)


def _stacked(values: np.ndarray) -> Tensor:
    """[B, N, X] -> [N, B, X], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1)))
