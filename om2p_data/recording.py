"""From time-ordered records of many worlds to whole episodes."""

from __future__ import annotations

import numpy as np

from om2p_data.envs.vector import VectorEnv
from om2p_data.episodes import Episodes


class Recorder:
    """What vectorised worlds go through, step by step, in time order.

    Args:
        env: the worlds, which have just been reset.
    """

    def __init__(self, env: VectorEnv):
        self._env = env
        self._rows: list[tuple[np.ndarray, ...]] = []
        self._begun = np.zeros(env.num_envs, np.int64)  # row at which each world's current episode began

    def step(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Step the worlds with `actions`, record the transition from `obs`, and return the next observations."""
        state = self._env.state()
        next_obs, rewards, terminated, truncated = self._env.step(actions)
        self._rows.append(
            (obs, state, actions, rewards, self._env.final_obs, self._env.final_state, terminated, truncated)
        )
        return next_obs

    def take(self, seed: int) -> Episodes | None:
        """The episodes completed since the last call, in the order in which they ended; None if there are none."""
        columns = [np.stack(column) for column in zip(*self._rows, strict=True)]
        taken = np.arange(len(self._rows))[:, None] < self._begun  # [T, E], rows of episodes that were handed out
        for flag in columns[-2:]:
            flag[taken] = False
        over = np.any(columns[-2] | columns[-1], axis=2)  # [T, E]
        ends = over.any(0)
        episodes = None
        if ends.any():
            episodes = cut(*columns, seed=seed, keep_state=self._env.task.store_state, begun=self._begun)
        last = len(over) - np.argmax(over[::-1], axis=0)  # row after each world's last end
        self._begun = np.where(ends, last, self._begun)
        drop = int(self._begun.min())  # rows that no current episode needs
        self._rows = self._rows[drop:]
        self._begun -= drop
        return episodes


class EpisodeBuffer:
    """Parts of one data set in arrays that are filled in place: joining the parts at the end would hold all twice.

    Args:
        transitions: how many are expected; more fit too.
    """

    def __init__(self, transitions: int):
        self._expected = transitions
        self._columns: dict[str, np.ndarray] = {}
        self._filled: dict[str, int] = {}

    def add(self, part: Episodes, policy: int) -> None:
        """Append episodes, all collected by the policy of that index."""
        arrays = part.arrays() | {"policy": np.full(part.num_episodes, policy, np.int32)}
        if not self._columns:
            ratio = self._expected / part.num_transitions
            for name, array in arrays.items():
                rows = len(array) + int(len(array) * ratio)  # address space; pages come with the first write
                self._columns[name] = np.empty((rows, *array.shape[1:]), array.dtype)
                self._filled[name] = 0
        for name, array in arrays.items():
            begin, end = self._filled[name], self._filled[name] + len(array)
            if end > len(self._columns[name]):  # episodes turned out shorter than those of the first part
                grown = np.empty((2 * end, *array.shape[1:]), array.dtype)
                grown[:begin] = self._columns[name][:begin]
                self._columns[name] = grown
            self._columns[name][begin:end] = array
            self._filled[name] = end

    def episodes(self) -> Episodes:
        """All that was added, without a copy."""
        filled = {name: column[: self._filled[name]] for name, column in self._columns.items()}
        return Episodes.from_arrays(filled, scan=False)


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
    begun: np.ndarray | None = None,
) -> Episodes:
    """Cut time-ordered records [T, E, ...] of E worlds into completed episodes.

    Args:
        obs, next_obs: [T, E, N, O]; next_obs is what a step led to, before any restart.
        state, next_state: [T, E, S].
        actions: [T, E, N, A].
        rewards, terminated, truncated: [T, E, N].
        seed: written beside every episode.
        keep_state: whether the states go into the episodes.
        begun: [E], the row at which each world's first episode begins; by default all begin with the records.

    Returns:
        Whole episodes in the order in which they ended (then by world); what had not ended is left out.
    """
    steps, worlds = rewards.shape[:2]
    over = (terminated | truncated).any(2)  # [T, E]
    end, world = np.nonzero(over)  # in time order
    previous = np.full((steps, worlds), -1) if begun is None else np.tile(begun - 1, (steps, 1))
    previous[1:] = np.maximum(previous[1:], np.maximum.accumulate(np.where(over, np.arange(steps)[:, None], -1))[:-1])
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
