"""Flat transitions cut into episodes."""

from __future__ import annotations

import numpy as np
import pytest

from om2p_data.errors import UserError
from om2p_data.exchange import Dones, fields
from om2p_data.exchange.transitions import Transitions, cut


def flat(lengths: list[int], dones: list[int] = [], with_next: bool = True, agents: int = 2) -> Transitions:  # noqa: B006
    """Observations count the steps over all episodes, so that every break shows; `dones` are rows."""
    rows = sum(lengths)
    number = np.arange(rows, dtype=np.float32)[:, None]
    following = number + 1
    following[np.cumsum(lengths) - 1] += 0.5
    flags = np.repeat(np.isin(np.arange(rows), dones)[:, None], agents, axis=1)
    return Transitions(
        obs=(number,) * agents,
        actions=(number / rows,) * agents,
        discrete=(False,) * agents,
        rewards=np.repeat(number + 1, agents, axis=1),
        dones=flags,
        next_obs=(following,) * agents if with_next else None,
    )


def test_ends_that_show() -> None:
    found = cut(flat([3, 1, 4], dones=[3]), horizon=None, every=None, dones=Dones.LIMIT_AT_HORIZON)
    episodes = found.episodes
    assert episodes.lengths.tolist() == [3, 1, 4]
    assert episodes.obs[:, 0, 0].tolist() == [0, 1, 2, 3.5, 3, 4.5, 4, 5, 6, 7, 8.5]
    assert episodes.team_terminated.nonzero()[0].tolist() == [3]
    assert episodes.team_truncated.nonzero()[0].tolist() == [2, 7]
    assert found.notes[0] == (
        "3 episodes found: 1 marked by a flag, 1 where the observations break off, 1 where the data end"
    )


def test_ends_by_count_where_no_next_observations_are() -> None:
    found = cut(flat([4, 4, 3], with_next=False), horizon=4, every=4, dones=Dones.LIMIT_AT_HORIZON)
    assert found.episodes.lengths.tolist() == [3, 3, 2]  # the last transition is lost, its observation stays
    assert found.episodes.obs[:, 0, 0].tolist() == [*range(11)]
    assert found.episodes.rewards[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 9, 10]
    assert found.episodes.team_truncated.nonzero()[0].tolist() == [2, 5, 7]
    assert "3 others lose their last transition" in found.notes[1]


def test_terminated_ends_keep_their_last_transition() -> None:
    found = cut(flat([3, 1, 2, 1], dones=[2, 3, 6], with_next=False), horizon=None, every=None, dones=Dones.TERMINATION)
    episodes = found.episodes
    assert episodes.lengths.tolist() == [3, 1, 3]  # nothing shows the end after two steps
    assert episodes.obs[:, 1, 0].tolist() == [0, 1, 2, 2, 3, 3, 4, 5, 6, 6]
    assert episodes.team_terminated.nonzero()[0].tolist() == [2, 3, 6]
    assert "3 terminated episodes repeat their last, 0 others" in found.notes[1]


def test_single_steps_without_a_final_observation_vanish() -> None:
    data = flat([3, 1, 2], dones=[2, 3, 5], with_next=False)
    found = cut(data, horizon=None, every=None, dones=Dones.LIMIT).episodes
    assert found.lengths.tolist() == [2, 1]
    assert found.rewards[:, 0].tolist() == [1, 2, 5]
    assert found.team_truncated.tolist() == [False, True, True]
    kept = cut(flat([3, 1], dones=[2], with_next=False), horizon=None, every=None, dones=Dones.TERMINATION).episodes
    assert kept.terminated[:, 0].tolist() == [False, False, True]
    assert not kept.truncated.any()  # what vanished leaves no mark on the episode before it
    with pytest.raises(UserError, match="no episode is left"):
        cut(flat([1, 1], dones=[0, 1], with_next=False), horizon=None, every=None, dones=Dones.LIMIT)


def test_agents_that_are_done_one_after_the_other() -> None:
    data = flat([4, 3], with_next=False)
    data.dones[[1, 3], [0, 1]] = True  # agent 0 after two steps, agent 1 after four
    data.dones[[4, 5, 6], [1, 1, 0]] = True  # agent 1 after one (its flag stays), agent 0 after three
    data.rewards[[2, 3, 5, 6], [0, 0, 1, 1]] = 0
    found = cut(data, horizon=None, every=None, dones=Dones.TERMINATION).episodes
    assert found.lengths.tolist() == [4, 3]
    assert np.argwhere(found.terminated).tolist() == [[1, 0], [3, 1], [4, 1], [6, 0]]
    assert not found.truncated.any()
    assert found.obs[:5, 0, 0].tolist() == [0, 1, 2, 0, 0]
    assert found.obs[5:, 1, 0].tolist() == [4, 5, 0, 0]
    assert found.actions[[2, 3], 0].tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (flat([50]), {}, "no end of an episode in 50 transitions"),
        (flat([25, 25], with_next=False), {}, "no end of an episode in 50 transitions"),
        (flat([25, 25]), {"horizon": 20}, "episode 0 has 25 steps, but the task ends after 20"),
        (flat([25, 25]), {"horizon": 5, "every": 5}, r"--horizon 5 cuts where observations go on"),
        (flat([25, 25], dones=[24, 49]), {"horizon": 5, "every": 5}, r"--horizon 5 cuts where observations go on"),
    ],
)
def test_ends_that_cannot_be_found(data: Transitions, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cut(data, **({"horizon": None, "every": None, "dones": Dones.LIMIT_AT_HORIZON} | options))  # pyright: ignore
    assert "\n" not in str(caught.value)


def test_choices() -> None:
    taken, discrete = fields.actions(np.array([[0], [2]]), "x", 2, choices=4)
    assert discrete
    assert taken.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    for index in (4, -1):
        with pytest.raises(UserError, match=rf"x holds choice {index} \(row 1\), but there are 4"):
            fields.actions(np.array([0, index]), "x", 2, choices=4)
