"""Scores of a team in fresh episodes, with seeds of their own: training's random streams are never touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from om2p_data.spec import EnvironmentCard
from om2p_train.actors import Actor
from om2p_train.arena import most_copies, open_arena
from om2p_train.streams import EVALUATION, SeedStreams


class Evaluator:
    """Plays episodes of S teams side by side.

    Args:
        actor: who plays; its leading dimension is S x N.
        environment: where; one of our tasks, or somebody's environment that can be made anew.
        seeds: the S training seeds; each team's action noise comes from its own seed.
        episodes: per seed.
        device: where the networks live.

    Raises:
        UserError: nobody can make the environment here; the message says why.
    """

    def __init__(
        self,
        actor: Actor,
        environment: EnvironmentCard,
        seeds: Sequence[int],
        episodes: int,
        device: torch.device | str = "cpu",
    ):
        self._actor = actor
        self._agents = environment.spec.num_agents
        self._seeds = list(seeds)
        self._episodes = episodes
        self._device = device
        self._each = min(episodes, max(1, most_copies(environment) // len(self._seeds)))  # at a time, of every seed
        self._arena = open_arena(environment, len(self._seeds) * self._each)

    @torch.no_grad()
    def returns(self, world_seed: int, progress: Callable[[int], object] | None = None) -> np.ndarray:
        """Undiscounted team returns, float64 [S, episodes]; the same seed gives the same starts and noise.

        Args:
            world_seed: of the episodes.
            progress: called with the number of episodes that have ended.
        """
        self._streams = SeedStreams(self._seeds, EVALUATION, self._device)
        self._threads = torch.get_num_threads()
        rounds = []
        for number in range(-(-self._episodes // self._each)):
            words = np.random.SeedSequence((world_seed, number)).generate_state(1)
            played = self._arena.returns(self, int(words[0]) if number else world_seed, progress)
            rounds.append(played.reshape(len(self._seeds), self._each))
        return np.concatenate(rounds, 1)[:, : self._episodes]

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The `Policy` interface over stacked teams: obs [S * E, N, O] -> actions [S * E, N, A]."""
        del rng  # the action noise is drawn on the device, from the seeds' own streams
        torch.set_num_threads(self._threads)  # OpenMP took over the worlds' number with their last step
        seeds, each, agents = len(self._seeds), self._each, self._agents
        inputs = torch.from_numpy(np.ascontiguousarray(obs)).to(self._device)
        inputs = inputs.view(seeds, each, agents, -1).transpose(1, 2).flatten(0, 1)  # [S * N, E, O]
        eps = self._streams.normal(agents, each, self._actor.noise_dim)
        actions = self._actor.act(inputs, eps)
        return actions.view(seeds, agents, each, -1).transpose(1, 2).flatten(0, 1).contiguous().cpu().numpy()

    def close(self) -> None:
        """Release what the environment holds."""
        self._arena.close()
