"""A data set as tensors on the device, and minibatches drawn there."""

from __future__ import annotations

import enum
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from om2p_data.dataset import Dataset
from om2p_data.errors import UserError
from om2p_data.recipe import Record
from om2p_train.spaces import to_unit
from om2p_train.streams import SeedStreams


class TimeLimit(enum.Enum):
    """What the last step of an episode that ran out of time means to the critics."""

    CONTINUE = "continue"  # the world would have gone on: bootstrap through it
    TERMINAL = "terminal"  # an end like any other, as the published HalfCheetah data mark their 1,000th step


class DataConfig(Record):
    """How a data set becomes batches (the `[data]` table)."""

    normalize_obs: bool = Field(default=False, description="standardise observations by the data's mean and deviation")
    time_limit: TimeLimit = Field(default=TimeLimit.CONTINUE, description="what a time limit means to the critics")
    behavior_teams: int | Literal["auto"] | None = Field(
        default=None,
        description="teams whose episodes are told apart, to play as the best; `auto`: as many as there seem to be; "
        "left out, or 1: nothing is told apart",
    )

    @field_validator("behavior_teams", mode="before")
    @classmethod
    def _teams(cls, value: object) -> object:
        if value in (None, "auto") or (type(value) is int and value > 0):
            return None if value == 1 else value
        raise ValueError('it has to be a number of teams from 1 up, or "auto"')


class Batch(NamedTuple):
    """B transitions for each of K = seeds x agents learners. The agents of one seed see the same rows."""

    obs: Tensor  # [K, B, O]
    actions: Tensor  # [K, B, A], in [-1, 1] or one-hot
    rewards: Tensor  # [K, B], each agent's own
    next_obs: Tensor  # [K, B, O]
    mask: Tensor  # [K, B], 0 where the agent terminated, 1 elsewhere: a time limit is no end
    rows: Tensor  # int64 [S, B], which transitions of the data these are


class Transitions:
    """All transitions of a data set on one device.

    Observations are held once: row i + 1 follows row i within an episode, so no next observation is stored.

    Args:
        dataset: what `om2p_data.dataset.load` returns.
        device: where the tensors live.
        config: what is done to the data on the way.

    Attributes:
        obs_mean, obs_scale: what the observations were standardised with, [N, 1, O] (0 and 1 if they were not).
        obs: [M + E, N, O]; obs_index: int64 [M], row of each transition's observation; the next is one row further.
        rewards, mask: [M, N].
        last: bool [M], whether a transition is its episode's last.
        starts, lengths: int64 [E], first transition and number of them, of every episode.
        team_returns: float64 [E], undiscounted.
        teams: how many behaviour teams made them, as far as anybody asked.
        labels: int64 [E], which of them played each episode, None where nobody asked.

    Raises:
        UserError: agents that leave before their episode ends.
    """

    def __init__(self, dataset: Dataset, device: torch.device | str = "cpu", config: DataConfig | None = None):
        config = config or DataConfig()
        episodes = dataset.episodes
        if not episodes.agents_end_together and episodes.absent.any():
            raise UserError(
                f"{dataset.id} has agents that leave before their episode ends: training needs teams that stay together"
            )
        obs = _tensor(episodes.obs, device)
        self.obs_mean, self.obs_scale = statistics(obs, config.normalize_obs)
        self.obs = (obs - self.obs_mean.squeeze(1)) / self.obs_scale.squeeze(1) if config.normalize_obs else obs
        self.actions = _tensor(to_unit(episodes.actions, dataset.environment.spec), device)  # [M, N, A]
        self.rewards = _tensor(episodes.rewards, device)
        ended = episodes.terminated
        if config.time_limit is TimeLimit.TERMINAL:
            ended = ended | episodes.truncated
        self.mask = _tensor(~ended, device).float()
        self.obs_index = _tensor(episodes.obs_index, device)
        self.starts, self.lengths = _tensor(episodes.transition_start, device), _tensor(episodes.lengths, device)
        self.last = torch.zeros(len(self), dtype=torch.bool, device=device)
        self.last[self.starts + self.lengths - 1] = True
        self.team_returns = _tensor(episodes.team_returns, device)
        self.teams = 1
        self.labels: Tensor | None = None

    def mark(self, labels: Tensor, teams: int, best: int) -> None:
        """Let observations of batches end with who played their episode, one-hot [C], and see more of one of the teams.

        Args:
            labels: int64 [E].
            teams: C.
            best: whose transitions make up half of every batch: what the policy is to play as must not be a
                tenth of its training because it is a tenth of the data.
        """
        self.teams, self.labels = teams, labels
        if teams == 1:
            return
        self._marks = torch.eye(teams, device=labels.device)
        # An episode has one observation more than transitions.
        self._episode = self.obs_index - torch.arange(len(self), device=labels.device)
        self._own = (labels[self._episode] == best).nonzero().squeeze(1)  # rows of its transitions

    def __len__(self) -> int:
        return len(self.rewards)

    def sample(self, streams: SeedStreams, batch_size: int) -> Batch:
        """B rows for every seed, uniformly with replacement; where there are several teams, half of the best's."""
        rows = streams.integers(len(self), 1, batch_size)  # [S, B]
        if self.teams > 1:
            own = batch_size // 2
            rows[:, :own] = self._own[streams.integers(len(self._own), 1, own)]
        return Batch(
            obs=self.seen(rows),
            actions=by_learner(self.actions[rows]),
            rewards=by_learner(self.rewards[rows]),
            next_obs=self.seen(rows, 1),
            mask=by_learner(self.mask[rows]),
            rows=rows,
        )

    def seen(self, rows: Tensor, later: int = 0) -> Tensor:
        """What learners see at transitions [S, B], or one step later; [K, B, O], with the context if there is one."""
        obs = self.obs[self.obs_index[rows] + later]  # [S, B, N, O]
        if self.labels is not None and self.teams > 1:
            who = self._marks[self.labels[self._episode[rows]]]  # [S, B, C]
            obs = torch.cat([obs, who.unsqueeze(2).expand(-1, -1, obs.shape[2], -1)], -1)
        return by_learner(obs)


def by_learner(values: Tensor) -> Tensor:
    """[S, B, N, ...] -> [S * N, B, ...], contiguous."""
    return values.transpose(1, 2).flatten(0, 1)


def statistics(obs: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every agent's observations, [N, 1, O] each; a component that never moves is left alone."""
    mean, scale = torch.zeros_like(obs[:1]), torch.ones_like(obs[:1])
    if wanted:
        deviation, mean = torch.std_mean(obs, 0, keepdim=True)
        scale = torch.where(deviation > 1e-6, deviation, 1.0)
    return mean.transpose(0, 1), scale.transpose(0, 1)


def _tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    # The columns are read-only maps of a file; a copy detaches the run from it.
    return torch.from_numpy(np.array(array)).to(device)
