"""Episodes: indexing that never crosses an episode, and one clear line for what is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError


def numbered(lengths: tuple[int, ...], with_state: bool = True) -> Episodes:
    """Two agents; observation t of episode e is 100 e + t, so that a value says where it belongs."""
    steps, rows = sum(lengths), sum(lengths) + len(lengths)
    place = np.concatenate([100 * e + np.arange(length + 1) for e, length in enumerate(lengths)]).astype(np.float32)
    step = np.concatenate([100 * e + np.arange(length) for e, length in enumerate(lengths)]).astype(np.float32)
    ended = np.zeros((steps, 2), dtype=bool)
    ended[np.cumsum(lengths) - 1] = True
    terminated = ended & (np.arange(steps) % 2 == 0)[:, None]
    return Episodes(
        obs=np.broadcast_to(place[:, None, None], (rows, 2, 3)).copy(),
        actions=np.broadcast_to(step[:, None, None], (steps, 2, 1)).copy(),
        rewards=np.stack([step, step + 2], axis=1),
        terminated=terminated,
        truncated=ended & ~terminated,
        state=place[:, None].copy() if with_state else None,
        lengths=np.array(lengths, dtype=np.int64),
        policy=np.arange(len(lengths), dtype=np.int32),
        seed=np.arange(len(lengths), dtype=np.int64),
    )


def one_leaves_early() -> Episodes:
    """Five steps; agent 1 terminates at step 1 and is gone from then on, agent 0 runs into the time limit."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((6, 2, 3), dtype=np.float32)
    actions = rng.standard_normal((5, 2, 1), dtype=np.float32)
    rewards = rng.standard_normal((5, 2), dtype=np.float32)
    obs[3:, 1], actions[2:, 1], rewards[2:, 1] = 0, 0, 0
    terminated, truncated = np.zeros((2, 5, 2), dtype=bool)
    terminated[1, 1] = truncated[4, 0] = True
    return Episodes(
        obs, actions, rewards, terminated, truncated, None,
        np.array([5]), np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int64),
    )  # fmt: skip


def test_the_next_observation_is_the_episodes_own() -> None:
    episodes = numbered((3, 1, 4))
    place = episodes.obs[:, 0, 0]
    assert place[episodes.episode_start].tolist() == [0, 100, 200]
    assert place[episodes.obs_index].tolist() == [0, 1, 2, 100, 200, 201, 202, 203]
    assert place[episodes.obs_index + 1].tolist() == [1, 2, 3, 101, 201, 202, 203, 204]


def test_team_figures() -> None:
    episodes = numbered((3, 1, 4))
    assert episodes.team_rewards.tolist() == [1, 2, 3, 101, 201, 202, 203, 204]
    assert episodes.team_returns.tolist() == [6, 101, 810]
    assert episodes.team_returns.dtype == np.float64
    shared = np.float32(0.1)
    same = dataclasses.replace(episodes, rewards=np.full((8, 2), shared))
    assert (same.team_rewards == shared).all()


def test_select_and_concatenate() -> None:
    episodes = numbered((3, 1, 4))
    chosen = episodes.select([2, 0])
    assert chosen.obs[:, 0, 0].tolist() == [200, 201, 202, 203, 204, 0, 1, 2, 3]
    assert chosen.actions[:, 1, 0].tolist() == [200, 201, 202, 203, 0, 1, 2]
    assert chosen.state is not None
    assert chosen.state[:, 0].tolist() == chosen.obs[:, 0, 0].tolist()
    assert (chosen.policy.tolist(), chosen.seed.tolist()) == ([2, 0], [2, 0])
    chosen.check()

    again = Episodes.concatenate([episodes.select([0]), episodes.select([1, 2])])
    assert again.content_hash() == episodes.content_hash()
    chained = Episodes.concatenate([episodes, chosen], policy_offsets=[0, 3])
    assert chained.policy.tolist() == [0, 1, 2, 5, 3]
    chained.check()


def test_content_hash_sees_every_field() -> None:
    def changed(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        copy.flat[-1] = ~copy.flat[-1] if copy.dtype == bool else copy.flat[-1] + 1
        return copy

    episodes = numbered((3, 1, 4))
    assert numbered((3, 1, 4)).content_hash() == episodes.content_hash()
    hashes = {
        Episodes.from_arrays({**episodes.arrays(), name: changed(array)}, scan=False).content_hash()
        for name, array in episodes.arrays().items()
        if name != "lengths"  # the others' shapes follow from it
    }
    hashes |= {episodes.content_hash(), numbered((3, 1, 4), with_state=False).content_hash()}
    assert len(hashes) == 10


def test_an_agent_may_leave_early() -> None:
    episodes = one_leaves_early()
    assert not episodes.agents_end_together
    assert episodes.absent.tolist() == [[False, False]] * 2 + [[False, True]] * 3
    assert episodes.team_terminated.tolist() == [False] * 5
    assert episodes.team_truncated.tolist() == [False] * 4 + [True]
    assert numbered((2, 2)).agents_end_together


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("obs", lambda a: a.astype(np.float64), "obs must be a float32 array with 3 dimensions, not float64"),
        ("actions", lambda a: a[:, :, 0], "actions must be a float32 array with 3 dimensions"),
        ("rewards", lambda a: a.tolist(), "rewards must be a float32 array with 2 dimensions, not list"),
        ("rewards", lambda a: a[:-1], r"rewards has shape \(7, 2\); 3 episodes of 8 steps in all with 2 agents need"),
        ("obs", lambda a: a[:-1], r"obs has shape \(10, 2, 3\)"),
        ("state", lambda a: a[:-1], r"state has shape \(10, 1\)"),
        ("seed", lambda a: a[:-1], r"seed has shape \(2,\)"),
        ("lengths", lambda a: a[:0], "lengths is empty"),
        ("lengths", lambda a: a - 1, r"lengths must be 1 or more \(episode 1\)"),
        ("obs", lambda a: np.where(a == 101, np.nan, a), r"obs holds NaN or infinity \(first in row 5\)"),
        ("state", lambda a: np.where(a == 2, np.inf, a), r"state holds NaN or infinity \(first in row 2\)"),
        ("policy", lambda a: a - 1, r"policy holds a negative index \(episode 0\)"),
        ("truncated", np.zeros_like, "both unset on the last step of episode 1"),
        ("truncated", np.ones_like, r"set before the last step of an episode \(row 0\)"),
    ],
)
def test_what_is_wrong_is_named(field: str, change, message: str) -> None:
    arrays = numbered((3, 1, 4)).arrays()
    with pytest.raises(UserError, match=message) as caught:
        Episodes.from_arrays({**arrays, field: change(arrays[field])})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["obs", "actions", "rewards"])
def test_absent_agents_are_zero(field: str) -> None:
    arrays = {name: array.copy() for name, array in one_leaves_early().arrays().items()}
    arrays[field][-1, 1] = 1
    with pytest.raises(UserError, match=f"{field} must be zero for an agent that has ended"):
        Episodes.from_arrays(arrays)


def test_only_alike_parts_are_joined() -> None:
    with pytest.raises(UserError, match="state"):
        Episodes.concatenate([numbered((2,)), numbered((2,), with_state=False)])
    with pytest.raises(UserError, match="no episodes"):
        Episodes.concatenate([])
