"""A data set as tensors on the device, and minibatches drawn there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from om2p_data.dataset import Dataset
from om2p_train.streams import SeedStreams


class Batch(NamedTuple):
    """B transitions for each of K = seeds x agents learners. The agents of one seed see the same rows."""

    obs: Tensor  # [K, B, O]
    actions: Tensor  # [K, B, A]
    rewards: Tensor  # [K, B], each agent's own
    next_obs: Tensor  # [K, B, O]
    mask: Tensor  # [K, B], 0 where the agent terminated, 1 elsewhere: a time limit is no end


class Transitions:
    """All transitions of a data set on one device.

    Observations are held once: row i + 1 follows row i within an episode, so no next observation is stored.

    Args:
        dataset: what `om2p_data.dataset.load` returns.
        device: where the tensors live.
    """

    def __init__(self, dataset: Dataset, device: torch.device | str = "cpu"):
        episodes = dataset.episodes
        self._obs = _tensor(episodes.obs, device)  # [M + E, N, O]
        self._actions = _tensor(episodes.actions, device)  # [M, N, A]
        self._rewards = _tensor(episodes.rewards, device)  # [M, N]
        self._mask = _tensor(~episodes.terminated, device).float()  # [M, N]
        self._obs_index = _tensor(episodes.obs_index, device)  # [M]

    def __len__(self) -> int:
        return len(self._actions)

    def sample(self, streams: SeedStreams, batch_size: int) -> Batch:
        """B rows for every seed, uniformly with replacement."""
        rows = streams.integers(len(self), 1, batch_size)  # [S, B]
        obs_rows = self._obs_index[rows]
        return Batch(
            obs=_by_learner(self._obs[obs_rows]),
            actions=_by_learner(self._actions[rows]),
            rewards=_by_learner(self._rewards[rows]),
            next_obs=_by_learner(self._obs[obs_rows + 1]),
            mask=_by_learner(self._mask[rows]),
        )


def _tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    # The columns are read-only maps of a file; a copy detaches the run from it.
    return torch.from_numpy(np.array(array)).to(device)


def _by_learner(values: Tensor) -> Tensor:
    """[S, B, N, ...] -> [S * N, B, ...], contiguous."""
    return values.transpose(1, 2).flatten(0, 1)
