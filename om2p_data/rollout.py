"""(policy, worlds, seed) -> episodes. Knows no tier and no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from om2p_data.envs.vector import VectorEnv
from om2p_data.episodes import Episodes
from om2p_data.recording import EpisodeBuffer, Recorder

if TYPE_CHECKING:  # policies bring PyTorch, which takes seconds to import and which collecting need not pay
    from om2p_data.behavior.policy import Policy


def rollout(
    policy: Policy,
    env: VectorEnv,
    transitions: int,
    seed: int,
    *,
    into: EpisodeBuffer | None = None,
    policy_index: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Episodes:
    """Play whole episodes until at least `transitions` are there; surplus episodes are left out.

    Args:
        policy: acts for the team.
        env: worlds to play in.
        transitions: how many are wanted; the last episode is completed.
        seed: of worlds and policy; the same seed gives the same episodes on any number of threads.
        into: what other policies have collected for the same data set; the episodes are appended.
        policy_index: written beside every episode.
        progress: called with the number of new transitions after every batch of episodes.

    Returns:
        All episodes in the buffer.
    """
    world_seed, policy_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    rng = np.random.default_rng(policy_seed)
    buffer = into or EpisodeBuffer(transitions)
    obs = env.reset(world_seed)
    recorder = Recorder(env)
    missing = transitions
    while missing > 0:
        for _ in range(env.task.horizon):
            obs = recorder.step(obs, policy.act(obs, rng))
        part = recorder.take(seed)
        assert part is not None  # within a horizon every world ends an episode
        if part.num_transitions > missing:
            part = part.select(np.arange(enough(part.lengths, missing)))
        buffer.add(part, policy_index)
        missing -= part.num_transitions
        if progress is not None:
            progress(part.num_transitions)
    return buffer.episodes()


def enough(lengths: Sequence[int] | np.ndarray, transitions: int) -> int:
    """How many of the first episodes hold at least `transitions` (all, if they hold fewer)."""
    return int(min(np.searchsorted(np.cumsum(lengths), transitions) + 1, len(lengths)))


def team_returns(policy: Policy, env: VectorEnv, seed: int) -> np.ndarray:
    """Undiscounted team returns, float64 [E], of one episode in every world.

    Args:
        policy: acts for the team.
        env: worlds to play in; one episode each.
        seed: of worlds and policy.
    """
    world_seed, policy_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    rng = np.random.default_rng(policy_seed)
    obs = env.reset(world_seed)
    returns = np.zeros(env.num_envs)
    running = np.ones(env.num_envs, bool)
    for _ in range(env.task.horizon):
        obs, rewards, terminated, truncated = env.step(policy.act(obs, rng))
        returns += np.where(running, rewards.mean(1, dtype=np.float64), 0.0)
        running &= ~(terminated | truncated).any(1)
    return returns
