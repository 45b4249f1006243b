"""The vector interface that every world offers: many copies of one task, stepped together."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator

import numpy as np
from numba import njit

from om2p_data.envs.registry import Task
from om2p_data.errors import UserError

Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def available_threads(threads: int | None = None) -> int:
    """`threads`, or the number of cores this process may use, or OMP_NUM_THREADS where that is less."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be 1 or more, not {threads}")
        return threads
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(available_cores(), int(wanted) if wanted.isdecimal() and int(wanted) else available_cores())


def available_cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@njit(cache=True, fastmath={"reassoc"})
def _all_finite(values: np.ndarray) -> bool:
    # A number times 0 is 0; NaN and infinities give NaN, which stays in the sum. Any order of summing will do, and the
    # index (not the value) as the loop's variable lets the compiler take many at a time: numpy's ways, or any other
    # form of this loop, cost 4 to 15% of a step of a particle world.
    zero = values.dtype.type(0)
    total = zero
    for i in range(values.size):
        total += values[i] * zero
    return total == zero


def require_finite(actions: np.ndarray) -> None:
    """Refuse actions that are not numbers, before they spoil a world's positions for good.

    Raises:
        UserError: NaN or infinity among the actions; the message says where first.
    """
    if not _all_finite(actions.reshape(-1)):
        index = tuple(np.argwhere(~np.isfinite(actions))[0].tolist())
        raise UserError(f"actions must be finite, but actions{list(index)} is {actions[index]}")


class VectorEnv(abc.ABC):
    """E copies of one task. Arrays lead with [E, N], N the controlled agents in the task's order.

    An episode that ends restarts by itself (unless `auto_restart` is turned off): `step` then returns the first
    observation of the next episode, while `final_obs` and `final_state` hold what the step really led to (for every
    copy, ended or not), so that `(obs, action, reward, final_obs)` is always a transition of one episode.

    Attributes:
        task: row of the task table.
        num_envs: E.
        auto_restart: turn it off and an ended copy stays as it ended, to be looked at, until `reset`.
        prey_identity: name and version of the prey that lives in these worlds, None where there is none.
        final_obs: float32 [E, N, O], the observation after the last step, before any restart.
    """

    task: Task
    num_envs: int
    auto_restart: bool = True
    prey_identity: str | None = None
    final_obs: np.ndarray

    @abc.abstractmethod
    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start E new episodes. With a seed, everything that follows is a function of it alone.

        Returns:
            obs, float32 [E, N, O].
        """

    @abc.abstractmethod
    def step(self, actions: np.ndarray) -> Step:
        """Advance every copy by one step.

        Args:
            actions: [E, N, A], each in [-1, 1]; the worlds do not clip, as the original ones do not. Of discrete tasks
                one-hot.

        Returns:
            obs float32 [E, N, O], rewards float32 [E, N], terminated bool [E, N], truncated bool [E, N].
            All arrays are the caller's to keep: the world does not write to them again.

        Raises:
            UserError: actions of another shape, not all finite or not one-hot; nothing has moved then.
        """

    @property
    @abc.abstractmethod
    def final_state(self) -> np.ndarray:
        """Global state, float32 [E, S], after the last step, before any restart."""

    @abc.abstractmethod
    def state(self) -> np.ndarray:
        """Global state, float32 [E, S], of the current (possibly restarted) episodes."""

    @abc.abstractmethod
    def render(self, index: int = 0) -> np.ndarray:
        """Picture of copy `index`, uint8 [height, width, 3]."""

    @abc.abstractmethod
    def film(self, states: np.ndarray, every: int = 1) -> Iterator[np.ndarray]:
        """Pictures of recorded global states of one episode, [T, S], each drawn when asked for; nothing moves.

        Args:
            states: all of them, in order.
            every: only each so many-th is drawn, from the first on.
        """

    def close(self) -> None:  # noqa: B027 (most worlds hold nothing)
        """Release what the world holds (a renderer)."""
