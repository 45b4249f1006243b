"""Scores of a team in batched worlds, with seeds of their own: training's random streams are never touched."""

from __future__ import annotations

import numpy as np
import torch

from om2p_data.envs import make
from om2p_data.envs.registry import Task
from om2p_data.rollout import team_returns
from om2p_train.actors import Actor
from om2p_train.streams import EVALUATION, SeedStreams


class Evaluator:
    """Plays one episode in each of S x episodes worlds, S teams side by side.

    Args:
        actor: who plays; its leading dimension is S x N.
        task: row of the task table.
        seeds: the S training seeds; each team's action noise comes from its own seed.
        episodes: per seed.
        device: where the networks live.
    """

    def __init__(self, actor: Actor, task: Task, seeds: list[int], episodes: int, device: torch.device | str):
        self._actor = actor
        self._task = task
        self._seeds = seeds
        self._episodes = episodes
        self._device = device
        self._env = make(task.name, len(seeds) * episodes)

    @torch.no_grad()
    def returns(self, world_seed: int) -> np.ndarray:
        """Undiscounted team returns, float64 [S, episodes]; the same seed gives the same starts and noise."""
        self._streams = SeedStreams([*self._seeds], EVALUATION, self._device)
        return team_returns(self, self._env, world_seed).reshape(len(self._seeds), self._episodes)

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The `Policy` interface over stacked teams: obs [S * episodes, N, O] -> actions [S * episodes, N, A]."""
        del rng  # the action noise is drawn on the device, from the seeds' own streams
        seeds, episodes, agents = len(self._seeds), self._episodes, self._task.num_agents
        inputs = torch.from_numpy(np.ascontiguousarray(obs)).to(self._device)
        inputs = inputs.view(seeds, episodes, agents, -1).transpose(1, 2).flatten(0, 1)  # [S * N, episodes, O]
        eps = self._streams.normal(agents, episodes, self._actor.noise_dim)
        actions = self._actor.act(inputs, eps)
        return actions.view(seeds, agents, episodes, -1).transpose(1, 2).flatten(0, 1).contiguous().cpu().numpy()
