"""Records become whole episodes: against a loop that goes step by step, and against physics played once more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from om2p_data.behavior.policy import UniformPolicy
from om2p_data.envs import make
from om2p_data.envs.particle import replay
from om2p_data.envs.registry import find
from om2p_data.envs.vector import Step, VectorEnv
from om2p_data.episodes import Episodes
from om2p_data.recording import Recorder, cut
from om2p_data.rollout import enough, rollout, team_returns

CN, HC = find("cn"), find("hc")
Records = dict[str, np.ndarray]


def random_records(steps: int, worlds: int, seed: int) -> Records:
    """Random values; every world ends its episodes at times of its own, agents by one flag or the other."""
    rng = np.random.default_rng(seed)
    over = rng.random((steps, worlds, 1)) < 0.15
    terminated = over & (rng.random((steps, worlds, 2)) < 0.5)
    return {
        "obs": rng.standard_normal((steps, worlds, 2, 3), dtype=np.float32),
        "state": rng.standard_normal((steps, worlds, 4), dtype=np.float32),
        "actions": rng.standard_normal((steps, worlds, 2, 1), dtype=np.float32),
        "rewards": rng.standard_normal((steps, worlds, 2), dtype=np.float32),
        "next_obs": rng.standard_normal((steps, worlds, 2, 3), dtype=np.float32),
        "next_state": rng.standard_normal((steps, worlds, 4), dtype=np.float32),
        "terminated": terminated,
        "truncated": over & ~terminated,
    }


def cut_step_by_step(records: Records, begun: np.ndarray | None = None) -> list[Records]:
    """What `cut` should do: walk through time, keep an open episode a world, hand it over when it ends."""
    steps, worlds = records["rewards"].shape[:2]
    open_steps: list[list[int]] = [[] for _ in range(worlds)]
    episodes = []
    for t in range(steps):
        for e in range(worlds):
            if begun is not None and t < begun[e]:
                continue
            open_steps[e].append(t)
            if not (records["terminated"][t, e, 0] or records["truncated"][t, e, 0]):
                continue
            episode = {key: np.stack([records[key][s, e] for s in open_steps[e]]) for key in records}
            for key in ("obs", "state"):
                episode[key] = np.concatenate([episode[key], records[f"next_{key}"][t, e][None]])
            episodes.append(episode)
            open_steps[e] = []
    return episodes


def assert_equals_reference(found: Episodes, expected: list[Records], with_state: bool) -> None:
    assert found.lengths.tolist() == [len(episode["rewards"]) for episode in expected]
    names = ["obs", "actions", "rewards", "terminated", "truncated", *(["state"] if with_state else [])]
    for name in names:
        reference = np.concatenate([episode[name] for episode in expected])
        np.testing.assert_array_equal(getattr(found, name), reference, err_msg=name, strict=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("begun", [None, np.array([0, 3, 1, 7])])
def test_cut_equals_a_walk_through_time(seed: int, begun: np.ndarray | None) -> None:
    records = random_records(steps=50, worlds=4, seed=seed)
    records["terminated"][-1] = records["truncated"][-1] = False  # every world leaves an unfinished tail
    if begun is not None:  # what lies before has been handed out, and its ends are unset
        for flag in ("terminated", "truncated"):
            records[flag][np.arange(50)[:, None] < begun] = False
    found = cut(**records, seed=9, keep_state=True, begun=begun)
    expected = cut_step_by_step(records, begun)
    assert len({len(episode["rewards"]) for episode in expected}) > 3
    assert len(expected) > 8
    assert_equals_reference(found, expected, with_state=True)
    assert set(found.seed) == {9}
    assert set(found.policy) == {0}


def test_cut_of_worlds_that_end_together_in_the_last_step() -> None:
    records = random_records(steps=12, worlds=3, seed=0)
    records["terminated"][:] = False
    records["truncated"][:] = (np.arange(12) % 4 == 3)[:, None, None]
    found = cut(**records, seed=0, keep_state=False)
    assert found.state is None
    assert found.lengths.tolist() == [4] * 9
    assert_equals_reference(found, cut_step_by_step(records), with_state=False)


class Clockwork(VectorEnv):
    """Worlds that show their episode's number and clock, and end after as many steps as a list says.

    obs = (world, episode, clock), reward = 1 a step for every agent; the numbers count up over the whole life, so the
    list is walked through once.
    """

    def __init__(self, lengths: list[list[int]]):
        self.task = CN
        self.num_envs = len(lengths)
        self._lengths = lengths
        self.reset()

    def reset(self, seed: int | None = None) -> np.ndarray:
        self._episode = np.zeros(self.num_envs, int)
        self._clock = np.zeros(self.num_envs, int)
        return self._obs()

    def step(self, actions: np.ndarray) -> Step:
        self._clock += 1
        self.final_obs, self._final_state = self._obs(), self.state()
        lengths = np.array([self._lengths[e][self._episode[e]] for e in range(self.num_envs)])
        over = self._clock == lengths
        self._episode += over
        self._clock[over] = 0
        flags = np.repeat(over[:, None], 3, 1)
        return self._obs(), np.ones((self.num_envs, 3), np.float32), flags, np.zeros_like(flags)

    @property
    def final_state(self) -> np.ndarray:
        return self._final_state

    def state(self) -> np.ndarray:
        return self._obs()[:, 0]

    def render(self, index: int = 0) -> np.ndarray:
        raise NotImplementedError

    def film(self, states: np.ndarray, every: int = 1) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def _obs(self) -> np.ndarray:
        place = np.stack([np.arange(self.num_envs), self._episode, self._clock], -1).astype(np.float32)
        return np.repeat(place[:, None], 3, 1)


def test_recorder_keeps_final_observations_and_what_has_not_ended() -> None:
    env = Clockwork([[2, 3, 9], [4, 4, 9]])
    recorder = Recorder(env)
    obs = env.reset()
    for _ in range(7):
        obs = recorder.step(obs, np.zeros((2, 3, 2), np.float32))
    episodes = recorder.take(seed=5)
    assert episodes is not None
    assert episodes.lengths.tolist() == [2, 4, 3]
    assert episodes.obs[:, 2].tolist() == [
        *([0, 0, t] for t in range(3)),
        *([1, 0, t] for t in range(5)),
        *([0, 1, t] for t in range(4)),
    ]
    assert episodes.terminated[:, 1].nonzero()[0].tolist() == [1, 5, 8]
    obs = recorder.step(obs, np.zeros((2, 3, 2), np.float32))
    rest = recorder.take(seed=5)  # begun before the first call, ended after it
    assert rest is not None
    assert rest.obs[:, 2].tolist() == [[1, 1, t] for t in range(5)]
    obs = recorder.step(obs, np.zeros((2, 3, 2), np.float32))
    assert recorder.take(seed=5) is None


def test_rollout_of_worlds_that_end_at_times_of_their_own_loses_no_episode() -> None:
    lengths = np.random.default_rng(0).integers(1, 26, (5, 400)).tolist()
    found = rollout(UniformPolicy(CN), Clockwork(lengths), 2_000, seed=0)
    found.check()
    assert 2_000 <= found.num_transitions < 2_025
    first = found.obs[found.episode_start, 0]
    assert (first[:, 2] == 0).all()
    for world in range(5):
        mine = first[:, 0] == world
        assert first[mine, 1].tolist() == list(range(mine.sum()))
        assert found.lengths[mine].tolist() == lengths[world][: mine.sum()]


def test_returns_count_the_first_episode_of_every_world_only() -> None:
    env = Clockwork([[3] * 9, [25], [7, 7, 7, 7]])
    assert team_returns(UniformPolicy(CN), env, seed=0).tolist() == [3, 25, 7]


@pytest.mark.parametrize(("transitions", "episodes"), [(1, 1), (25, 1), (26, 2), (75, 3), (76, 4), (200, 8)])
def test_rollout_gives_whole_episodes_and_no_more_than_needed(transitions: int, episodes: int) -> None:
    told: list[int] = []
    found = rollout(UniformPolicy(CN), make("cn", 3), transitions, seed=1, progress=told.append)
    assert found.lengths.tolist() == [25] * episodes
    assert sum(told) == 25 * episodes
    last = np.cumsum(found.lengths) - 1
    assert found.truncated[last].all()
    assert not found.terminated.any()
    assert found.truncated.sum() == 3 * episodes
    found.check()


def test_rollout_of_the_same_seed_on_one_and_two_threads() -> None:
    """2048 copies are enough to wake a second thread."""
    policy = UniformPolicy(CN)
    one, two = (rollout(policy, make("cn", 2048, threads=n), 50_000, seed=3) for n in (1, 2))
    assert one.num_transitions == 50_000
    assert one.content_hash() == two.content_hash()
    other = rollout(policy, make("cn", 2048, threads=1), 50_000, seed=4)
    assert np.isin(other.obs[other.episode_start, 0, 2], one.obs[one.episode_start, 0, 2]).mean() < 0.01
    assert np.isin(other.actions[::25, 0, 0], one.actions[::25, 0, 0]).mean() < 0.01


def test_rollout_on_halfcheetah_keeps_the_state() -> None:
    one, two = (rollout(UniformPolicy(HC), make("hc", 2, threads=n), 1_001, seed=0) for n in (1, 2))
    assert one.lengths.tolist() == [1000, 1000]
    assert one.state is not None
    assert one.state.shape == (2002, 17)
    assert one.content_hash() == two.content_hash()
    # The state is qpos without the root's x, then qvel; agent 0 sees angle and velocity of the back foot, shin, thigh.
    np.testing.assert_array_equal(one.obs[:, 0], one.state[:, [4, 13, 3, 12, 2, 11]])


def test_episodes_do_not_repeat() -> None:
    found = rollout(UniformPolicy(CN), make("cn", 4), 1_000, seed=0)
    starts = found.obs[found.episode_start].reshape(found.num_episodes, -1)
    assert len(np.unique(starts, axis=0)) == found.num_episodes == 40


def test_every_transition_is_what_physics_makes_of_its_own_episode() -> None:
    """Played once more from the first observation, which shows an agent all positions."""
    found = rollout(UniformPolicy(CN), make("cn", 3), 300, seed=7)
    first = found.obs[found.episode_start].astype(np.float64)  # [E, N, 18]: velocity, position, landmarks, ...
    again = replay(
        "simple_spread",
        init_pos=first[:, :, 2:4],
        init_vel=first[:, :, 0:2],
        landmark_pos=first[:, 0, 4:10].reshape(-1, 3, 2) + first[:, 0, None, 2:4],
        actions=found.actions.reshape(12, 25, 3, 2),
    )
    next_obs = found.obs[found.obs_index + 1].reshape(12, 25, 3, 18)
    for agent in range(3):
        np.testing.assert_allclose(next_obs[:, :, agent], again[f"obs_{agent}"], atol=2e-4)
    np.testing.assert_allclose(found.rewards.reshape(12, 25, 3), again["rewards"], atol=2e-3)


def test_returns_of_a_rollout_are_those_of_an_evaluation() -> None:
    policy = UniformPolicy(CN)
    found = rollout(policy, make("cn", 6), 150, seed=2)
    np.testing.assert_allclose(team_returns(policy, make("cn", 6), seed=2), found.team_returns, rtol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "transitions", "count"),
    [([3, 4, 5], 1, 1), ([3, 4, 5], 3, 1), ([3, 4, 5], 4, 2), ([3, 4, 5], 12, 3), ([3, 4, 5], 99, 3)],
)
def test_enough(lengths: list[int], transitions: int, count: int) -> None:
    assert enough(lengths, transitions) == count
