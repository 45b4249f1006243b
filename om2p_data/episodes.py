"""Collected data in memory: flat arrays over all transitions, ragged over episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, fields
from functools import cached_property

import numpy as np

from om2p_data.errors import UserError

_FORMS = {
    "obs": (np.float32, 3),
    "actions": (np.float32, 3),
    "rewards": (np.float32, 2),
    "terminated": (np.bool_, 2),
    "truncated": (np.bool_, 2),
    "state": (np.float32, 2),
    "lengths": (np.int64, 1),
    "policy": (np.int32, 1),
    "seed": (np.int64, 1),
}


@dataclass(frozen=True, eq=False)
class Episodes:
    """E whole episodes of N agents; episode e has T_e transitions and T_e + 1 observations.

    An agent that ends before the others (terminated or truncated alone) is absent from then on: its later
    observations, actions, rewards and flags are zero. Every episode lasts until its last agent has ended.

    Attributes:
        obs: float32 [sum(T_e + 1), N, O], the final observation of every episode included.
        actions: float32 [sum T_e, N, A].
        rewards: float32 [sum T_e, N], one per agent.
        terminated, truncated: bool [sum T_e, N].
        state: float32 [sum(T_e + 1), S], the global state, or None where it follows from the observations.
        lengths: int64 [E], the T_e.
        policy: int32 [E], index into the list of behaviour policies.
        seed: int64 [E], what the episode's world was seeded with.

    `scan=False` leaves out the look at the values; it is for arrays that were checked before, such as columns
    mapped from disk, which a scan would page in.

    Raises:
        UserError: a field has the wrong type, shape or values; the message names the field.
    """

    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    state: np.ndarray | None
    lengths: np.ndarray
    policy: np.ndarray
    seed: np.ndarray
    scan: InitVar[bool] = True

    def __post_init__(self, scan: bool) -> None:
        self._check_shapes()
        if scan:
            self.check()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], *, scan: bool = True) -> Episodes:
        """The inverse of `arrays`: fields by name, the state left out where there is none."""
        return cls(**{name: arrays[name] for name in _FORMS if name != "state"}, state=arrays.get("state"), scan=scan)

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, in their fixed order, without a missing state."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def num_transitions(self) -> int:
        return len(self.actions)

    @cached_property
    def transition_start(self) -> np.ndarray:
        """Row of every episode's first transition, int64 [E]."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def episode_start(self) -> np.ndarray:
        """Row of every episode's first observation in `obs`, int64 [E]."""
        return self.transition_start + np.arange(self.num_episodes)

    @cached_property
    def obs_index(self) -> np.ndarray:
        """Row in `obs` (and `state`) of every transition, int64 [sum T]; its next observation is one row further."""
        return np.arange(self.num_transitions) + np.repeat(np.arange(self.num_episodes), self.lengths)

    @cached_property
    def team_rewards(self) -> np.ndarray:
        """Mean over agents, float32 [sum T]; summed in float64, so that a shared reward comes out unchanged."""
        return self.rewards.mean(axis=1, dtype=np.float64).astype(np.float32)

    @cached_property
    def team_returns(self) -> np.ndarray:
        """Undiscounted sum of the team rewards of every episode, float64 [E]."""
        return np.add.reduceat(self.team_rewards, self.transition_start, dtype=np.float64)

    @cached_property
    def agents_end_together(self) -> bool:
        """Whether all agents share one terminated and one truncated flag at every step."""
        flags = (self.terminated, self.truncated)
        return all(bool((flag == flag[:, :1]).all()) for flag in flags)

    @cached_property
    def absent(self) -> np.ndarray:
        """Agents that had ended at an earlier step of the episode, bool [sum T, N]."""
        ended = self.terminated | self.truncated
        count = np.cumsum(ended, axis=0)
        earlier = (count - ended)[self.transition_start]  # [E, N]
        return count - ended > np.repeat(earlier, self.lengths, axis=0)

    @cached_property
    def team_terminated(self) -> np.ndarray:
        """True on the last step of an episode in which every agent terminated, bool [sum T]."""
        ever = np.logical_or.reduceat(self.terminated, self.transition_start, axis=0)  # [E, N]
        return self._on_last_step(np.all(ever, axis=1))

    @cached_property
    def team_truncated(self) -> np.ndarray:
        """True on the last step of an episode in which an agent was cut off, bool [sum T]."""
        ever = np.logical_or.reduceat(self.truncated, self.transition_start, axis=0)  # [E, N]
        return self._on_last_step(np.any(ever, axis=1))

    def select(self, episode_indices: np.ndarray | Sequence[int]) -> Episodes:
        """The given episodes, in the given order, copied."""
        chosen = np.asarray(episode_indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        steps = _ranges(self.transition_start[chosen], lengths)
        rows = _ranges(self.episode_start[chosen], lengths + 1)
        index = {"obs": rows, "state": rows, "lengths": chosen, "policy": chosen, "seed": chosen}
        picked = {name: array[index.get(name, steps)] for name, array in self.arrays().items()}
        return Episodes.from_arrays(picked, scan=False)

    @classmethod
    def concatenate(cls, parts: Sequence[Episodes], policy_offsets: Sequence[int] | None = None) -> Episodes:
        """All episodes of all parts, in order.

        Args:
            parts: data of one task, each with a state or each without.
            policy_offsets: added to the policy indices of each part, for parts whose lists of policies are
                chained; without it the indices are kept, for parts that share one list.

        Raises:
            UserError: the parts differ in their sizes, or only some have a state.
        """
        if not parts:
            raise UserError("no episodes to concatenate")
        names = list(parts[0].arrays())
        shapes = {name: array.shape[1:] for name, array in parts[0].arrays().items()}
        for part in parts[1:]:
            other = {name: array.shape[1:] for name, array in part.arrays().items()}
            if other != shapes:
                name = next(name for name in _FORMS if other.get(name) != shapes.get(name))
                raise UserError(
                    f"episodes cannot be concatenated: {name} is {other.get(name)} beside {shapes.get(name)}"
                )
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        if policy_offsets is not None:
            sizes = [part.num_episodes for part in parts]
            joined["policy"] += np.repeat(np.asarray(policy_offsets, dtype=np.int32), sizes)
        return cls.from_arrays(joined, scan=False)

    def content_hash(self) -> str:
        """SHA-256 of all fields (name, type, shape, little-endian bytes, in their fixed order), hexadecimal."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{name} {plain.dtype.str} {plain.shape}\n".encode())
            digest.update(plain.data)
        return digest.hexdigest()

    def check(self) -> None:
        """Look at the values: everything finite, every episode whole, absent agents zero.

        Raises:
            UserError: the message names the field and says what is wrong.
        """
        for name, array in self.arrays().items():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise UserError(f"{name} holds NaN or infinity (first in row {_first_row(~np.isfinite(array))})")
        if self.policy.min() < 0:
            raise UserError(f"policy holds a negative index (episode {_first_row(self.policy < 0)})")
        self._check_ends()

    def _check_shapes(self) -> None:
        for name, array in self.arrays().items():
            dtype, ndim = _FORMS[name]
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
                found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise UserError(f"{name} must be a {np.dtype(dtype)} array with {ndim} dimensions, not {found}")
        if not len(self.lengths):
            raise UserError("lengths is empty: there must be at least one episode")
        if self.lengths.min() < 1:
            raise UserError(f"lengths must be 1 or more (episode {_first_row(self.lengths < 1)})")
        episodes, steps, agents = len(self.lengths), int(self.lengths.sum()), self.obs.shape[1]
        expected = {
            "obs": (steps + episodes, *self.obs.shape[1:]),
            "actions": (steps, agents, self.actions.shape[2]),
            "rewards": (steps, agents),
            "terminated": (steps, agents),
            "truncated": (steps, agents),
            "policy": (episodes,),
            "seed": (episodes,),
        }
        if self.state is not None:
            expected["state"] = (steps + episodes, self.state.shape[1])
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise UserError(
                    f"{name} has shape {getattr(self, name).shape}; {episodes} episodes of {steps} steps "
                    f"in all with {agents} agents need {shape}"
                )

    def _check_ends(self) -> None:
        ended = self.terminated | self.truncated
        absent = self.absent
        team_ended = np.all(ended | absent, axis=1)  # [sum T]
        last = self.transition_start + self.lengths - 1  # [E]
        if not team_ended[last].all():
            raise UserError(
                f"terminated and truncated are both unset on the last step of episode {_first_row(~team_ended[last])}"
            )
        if np.count_nonzero(team_ended) != len(last):
            early = np.setdiff1d(np.flatnonzero(team_ended), last)[0]
            raise UserError(f"terminated or truncated is set before the last step of an episode (row {early})")
        if absent.any():
            later = {
                "obs": self.obs[self.obs_index + 1],
                "actions": self.actions,
                "rewards": self.rewards[..., None],
                "terminated or truncated": ended[..., None],
            }
            for name, array in later.items():
                wrong = absent & array.any(axis=2)
                if wrong.any():
                    raise UserError(f"{name} must be zero for an agent that has ended (row {_first_row(wrong)})")

    def _on_last_step(self, flag: np.ndarray) -> np.ndarray:
        rows = np.zeros(self.num_transitions, dtype=np.bool_)
        rows[self.transition_start + self.lengths - 1] = flag
        return rows


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers start .. start + length - 1 of every pair, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _first_row(wrong: np.ndarray) -> int:
    return int(np.argwhere(wrong)[0, 0])
