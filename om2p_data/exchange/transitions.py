"""Flat transitions, as other collections store them, cut into whole episodes.

What such files leave open is decided here, once for all formats: where episodes end, which ends are time limits, and
what follows the last step of an episode whose final observation nobody stored.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError, unknown


class Dones(enum.Enum):
    """What a done flag means where a file does not tell termination from a time limit.

    LIMIT_AT_HORIZON: a done on the horizon's step is a time limit, every other one a termination. The default.
    TERMINATION: every done is a termination, after which nothing is worth anything.
    LIMIT: every done is a time limit, beyond which the task would go on.
    """

    LIMIT_AT_HORIZON = "limit-at-horizon"
    TERMINATION = "termination"
    LIMIT = "limit"

    @classmethod
    def parse(cls, name: str) -> Dones:
        """The meaning of that name.

        Raises:
            UserError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            raise unknown("meaning of dones", name, [meaning.value for meaning in cls]) from None


@dataclass(frozen=True, eq=False)
class Transitions:
    """T transitions of N agents in the order of their collection, one episode after the other; values are finite.

    Attributes:
        obs: float32 [T, O_i] of every agent.
        actions: float32 [T, A_i] of every agent, one-hot where `discrete`.
        discrete: whether an agent chooses one of A_i actions.
        rewards: float32 [T, N].
        dones: bool [T, N], the done flags; time limits among them as `Dones` says.
        truncated: bool [T, N], ends that are time limits, beside which `dones` are terminations; None if nothing tells.
        next_obs: float32 [T, O_i] of every agent; None where the format has none.
        state, next_state: float32 [T, S]; None where there is none.
    """

    obs: tuple[np.ndarray, ...]
    actions: tuple[np.ndarray, ...]
    discrete: tuple[bool, ...]
    rewards: np.ndarray
    dones: np.ndarray
    truncated: np.ndarray | None = None
    next_obs: tuple[np.ndarray, ...] | None = None
    state: np.ndarray | None = None
    next_state: np.ndarray | None = None


@dataclass(frozen=True)
class Cut:
    """Whole episodes, and in words what was found and what was decided."""

    episodes: Episodes
    notes: tuple[str, ...]


def cut(flat: Transitions, *, horizon: int | None, every: int | None, dones: Dones) -> Cut:
    """Cut transitions into episodes.

    An episode ends where every agent is done, where the next observation is not the one of the following transition,
    after `every` steps, and with the data. What ended without a done flag was cut off (truncated). Where no next
    observations are stored, a terminated episode repeats its last observation, from which nothing is learned, and one
    that was cut off loses its last transition, whose observation becomes the final one.

    Args:
        flat: the transitions.
        horizon: time limit of the task in steps, where it is known; no episode may be longer.
        every: cut after this many steps, where the data do not show all ends.
        dones: what done flags mean.

    Raises:
        UserError: no end can be found, `every` cuts where observations go on, an episode is longer than the horizon, or
            an agent that ended before the others has rewards afterwards.
    """
    flags = flat.dones if flat.truncated is None else flat.dones | flat.truncated
    broken = _broken(flat, flags)
    marked = _all_done(flags, broken, every)
    ends, counted = _ends(len(flags), np.union1d(marked, broken), every)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    _check_ends(flat, lengths, np.union1d(marked, broken), counted, horizon, every)
    terminated, truncated = _flags(flat, flags, starts, ends, horizon, dones)
    notes = [_found(len(ends), len(marked), len(broken), len(counted))]
    if flat.next_obs is None:
        whole = ~truncated[ends].any(axis=1)
        _end_earlier(terminated, truncated, ends[~whole & (lengths > 1)])
        lengths = lengths - ~whole
        notes.append(
            f"no final observations: {np.count_nonzero(whole):,} terminated episodes repeat their last, "
            f"{np.count_nonzero(~whole):,} others lose their last transition"
        )
    episodes = _build(flat, starts, ends, lengths, terminated, truncated)
    limits = np.count_nonzero(episodes.team_truncated)
    notes.append(f"{episodes.num_episodes - limits:,} episodes terminated, {limits:,} were cut off")
    return Cut(episodes, tuple(notes))


def _broken(flat: Transitions, flags: np.ndarray) -> np.ndarray:
    """Rows whose next observation (or state) is not the following row's, though somebody is not done."""
    if flat.next_obs is None:
        return np.zeros(0, dtype=np.int64)
    broken = np.zeros(len(flags) - 1, dtype=bool)
    for agent, (now, following) in enumerate(zip(flat.obs, flat.next_obs, strict=True)):
        broken |= (now[1:] != following[:-1]).any(axis=1) & ~flags[:-1, agent]  # nobody knows what the done one sees
    if flat.state is not None and flat.next_state is not None:
        broken |= (flat.state[1:] != flat.next_state[:-1]).any(axis=1) & ~flags[:-1].all(axis=1)
    return np.flatnonzero(broken)


def _all_done(flags: np.ndarray, broken: np.ndarray, every: int | None) -> np.ndarray:
    """Rows on which the last agent of the team became done; agents may leave one after the other."""
    if (flags == flags[:, :1]).all():
        return np.flatnonzero(flags[:, 0])
    breaks = set(broken.tolist())
    ends, start, gone = [], 0, np.zeros(flags.shape[1], dtype=bool)
    for row in np.union1d(np.flatnonzero(flags.any(axis=1)), broken).tolist():
        if every is not None and row - start >= every:
            start += (row - start) // every * every
            gone[:] = False
        gone |= flags[row]
        if gone.all() and row not in breaks:
            ends.append(row)
        if gone.all() or row in breaks:
            start, gone[:] = row + 1, False
    return np.array(ends, dtype=np.int64)


def _ends(rows: int, shown: np.ndarray, every: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Last rows of all episodes, and those of them that only counting steps finds."""
    ends = np.union1d(shown, [rows - 1])
    starts = np.concatenate([[0], ends[:-1] + 1])
    counted = [np.arange(start + every - 1, end, every) for start, end in zip(starts, ends, strict=True) if every]
    return np.union1d(ends, np.concatenate([*counted, []])).astype(np.int64), np.concatenate([*counted, []])


def _check_ends(
    flat: Transitions,
    lengths: np.ndarray,
    shown: np.ndarray,
    counted: np.ndarray,
    horizon: int | None,
    every: int | None,
) -> None:
    if len(lengths) == 1 and not len(shown) and lengths[0] > 1 and horizon != lengths[0]:
        raise UserError(
            f"no end of an episode in {lengths[0]} transitions: no done flag is set and nothing breaks off; "
            "give the steps of an episode (--horizon)"
        )
    # Next observations show every end that is no done flag, so where they are stored, they contradict the count.
    if flat.next_obs is not None and len(shown) and len(counted):
        raise UserError(
            f"--horizon {every} cuts where observations go on (first after transition {int(counted[0])}), while the "
            f"data show their ends themselves (first after transition {shown[0]}): leave --horizon out"
        )
    if horizon is not None and lengths.max() > horizon:
        raise UserError(
            f"episode {int(lengths.argmax())} has {lengths.max()} steps, but the task ends after {horizon}: "
            "the data are another task's, or give the steps of an episode (--horizon)"
        )


def _flags(
    flat: Transitions, flags: np.ndarray, starts: np.ndarray, ends: np.ndarray, horizon: int | None, dones: Dones
) -> tuple[np.ndarray, np.ndarray]:
    """Terminated and truncated, bool [T, N]: one flag an agent and episode, at its first done flag or at the end."""
    rows, agents = flags.shape
    first = np.minimum.reduceat(np.where(flags, np.arange(rows)[:, None], rows), starts, axis=0)  # [E, N]
    flagged = first <= ends[:, None]
    last = np.minimum(first, ends[:, None])
    agent = np.arange(agents)
    is_limit = np.zeros_like(flagged)
    if dones is Dones.LIMIT:
        is_limit[:] = True
    elif dones is Dones.LIMIT_AT_HORIZON and horizon is not None and flat.truncated is None:
        is_limit = last - starts[:, None] + 1 == horizon
    if flat.truncated is not None:
        is_limit |= flat.truncated[last, agent] & ~flat.dones[last, agent]
    terminated, truncated = np.zeros((2, rows, agents), dtype=np.bool_)
    terminated[last, agent] = flagged & ~is_limit
    truncated[last, agent] = ~flagged | is_limit
    return terminated, truncated


def _end_earlier(terminated: np.ndarray, truncated: np.ndarray, ends: np.ndarray) -> None:
    """Where the last transition is dropped, whoever was there until then was cut off one step earlier."""
    truncated[ends - 1] |= terminated[ends] | truncated[ends]


def _build(
    flat: Transitions,
    starts: np.ndarray,
    ends: np.ndarray,
    lengths: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> Episodes:
    starts, ends, lengths = (array[lengths > 0] for array in (starts, ends, lengths))
    if not len(lengths):
        raise UserError("no episode is left: every one has a single transition, and none of them a final observation")
    steps = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    rows = np.arange(len(steps)) + np.repeat(np.arange(len(lengths)), lengths)  # of `steps` among the observations
    final = np.cumsum(lengths + 1) - 1
    # A dropped last transition leaves its observation as the final one; a kept one without a next is repeated.
    final_obs = flat.obs if flat.next_obs is None else flat.next_obs

    def observed(values: np.ndarray, following: np.ndarray) -> np.ndarray:
        joined = np.empty((len(steps) + len(lengths), values.shape[1]), dtype=np.float32)
        joined[rows], joined[final] = values[steps], following[ends]
        return joined

    obs = _padded([observed(values, after) for values, after in zip(flat.obs, final_obs, strict=True)])
    actions = _padded([values[steps] for values in flat.actions])
    state = None
    if flat.state is not None:
        state = observed(flat.state, flat.state if flat.next_state is None else flat.next_state)
    episodes = Episodes(
        obs=obs,
        actions=actions,
        rewards=flat.rewards[steps],
        terminated=terminated[steps],
        truncated=truncated[steps],
        state=state,
        lengths=lengths,
        policy=np.zeros(len(lengths), dtype=np.int32),
        seed=np.full(len(lengths), -1, dtype=np.int64),  # unknown
        scan=False,
    )
    if episodes.absent.any():
        later = episodes.absent & (episodes.rewards != 0)
        if later.any():
            row = int(steps[np.argwhere(later)[0, 0]])
            raise UserError(f"an agent that was done before its team has a reward in transition {row}")
        obs[rows + 1] = np.where(episodes.absent[..., None], 0, obs[rows + 1])
        actions[episodes.absent] = 0
    episodes.check()
    return episodes


def _padded(values: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [T, D_i] of every agent -> float32 [T, N, max D_i], smaller ones filled with zeros."""
    padded = np.zeros((len(values[0]), len(values), max(array.shape[1] for array in values)), dtype=np.float32)
    for agent, array in enumerate(values):
        padded[:, agent, : array.shape[1]] = array
    return padded


def _found(episodes: int, by_dones: int, by_breaks: int, by_count: int) -> str:
    ways = {
        "marked by a flag": by_dones,
        "where the observations break off": by_breaks,
        "after the given steps": by_count,
        "where the data end": episodes - by_dones - by_breaks - by_count,
    }
    return f"{episodes:,} episodes found: " + ", ".join(f"{count:,} {way}" for way, count in ways.items() if count)
