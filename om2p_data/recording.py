"""From time-ordered records of many worlds to whole episodes."""

from __future__ import annotations

import numpy as np

from om2p_data.envs.vector import VectorEnv
from om2p_data.episodes import Episodes


class Recorder:
    """What vectorised worlds went through, step by step, in time order.

    Args:
        env: the worlds; recording starts at a reset.
    """

    def __init__(self, env: VectorEnv):
        self._env = env
        self._rows: list[tuple[np.ndarray, ...]] = []

    def step(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Step the worlds with `actions`, record the transition from `obs`, and return the next observations."""
        state = self._env.state()
        next_obs, rewards, terminated, truncated = self._env.step(actions)
        self._rows.append(
            (obs, state, actions, rewards, self._env.final_obs, self._env.final_state, terminated, truncated)
        )
        return next_obs

    def episodes(self, seed: int) -> Episodes:
        """The completed episodes so far, in the order in which they ended."""
        columns = [np.stack(column) for column in zip(*self._rows, strict=True)]
        return cut(*columns, seed=seed, keep_state=self._env.task.store_state)


def cut(
    obs: np.ndarray,
    state: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    next_obs: np.ndarray,
    next_state: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    *,
    seed: int | np.ndarray,
    keep_state: bool,
) -> Episodes:
    """Cut time-ordered records [T, E, ...] of E worlds, which start at a reset, into completed episodes.

    Args:
        obs, next_obs: [T, E, N, O]; next_obs is what a step led to, before any restart.
        state, next_state: [T, E, S].
        actions: [T, E, N, A].
        rewards, terminated, truncated: [T, E, N].
        seed: written beside every episode.
        keep_state: whether the states go into the episodes.

    Returns:
        Whole episodes in the order in which they ended (then by world); what had not ended is left out.
    """
    steps, worlds = rewards.shape[:2]
    over = (terminated | truncated).any(2)  # [T, E]
    end, world = np.nonzero(over)  # in time order
    previous = np.full((steps, worlds), -1)
    previous[1:] = np.maximum.accumulate(np.where(over, np.arange(steps)[:, None], -1))[:-1]
    start = previous[end, world] + 1
    lengths = end - start + 1
    first_row = np.cumsum(lengths) - lengths
    t = np.repeat(start - first_row, lengths) + np.arange(lengths.sum())
    e = np.repeat(world, lengths)

    def with_final(values: np.ndarray, final: np.ndarray) -> np.ndarray:
        out = np.empty((len(t) + len(end), *values.shape[2:]), values.dtype)
        before = np.arange(len(t)) + np.repeat(np.arange(len(end)), lengths)
        out[before] = values[t, e]
        out[first_row + lengths + np.arange(len(end))] = final[end, world]
        return out

    return Episodes(
        obs=with_final(obs, next_obs),
        actions=actions[t, e],
        rewards=rewards[t, e],
        terminated=terminated[t, e],
        truncated=truncated[t, e],
        state=with_final(state, next_state) if keep_state else None,
        lengths=lengths.astype(np.int64),
        policy=np.zeros(len(end), np.int32),
        seed=np.full(len(end), seed, np.int64),
    )
