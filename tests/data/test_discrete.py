"""Particle worlds whose agents choose one of five moves: the same world as the continuous one, and its data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Discrete

from om2p_data import dataset
from om2p_data.behavior.policy import UniformPolicy
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs import TeamEnv, make, parallel_env
from om2p_data.envs.particle import DiscreteParticleEnv, ParticleEnv, moved
from om2p_data.envs.registry import TASKS, find
from om2p_data.errors import UserError
from om2p_data.rollout import rollout, team_returns
from om2p_data.spec import EnvironmentCard
from om2p_data.validation import Severity, validate

CND = find("cnd")
ID = f"om2p/{CND.name}/random-v0"
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], np.float32)


def chosen(rng: np.random.Generator, *lead: int) -> np.ndarray:
    """Uniform choices, int64 [*lead, 3]."""
    return rng.integers(0, 5, (*lead, 3))


# The world


@pytest.mark.parametrize("continuous", ["cn", "pp", "world"])
def test_any_particle_task_has_a_twin_with_the_same_physics(continuous: str) -> None:
    task = find(continuous)
    twin = DiscreteParticleEnv(dataclasses.replace(task, name="twin", act_dim=5, discrete=True), 9, seed=3)
    world, rng = ParticleEnv(task, 9, seed=3), np.random.default_rng(0)
    np.testing.assert_array_equal(twin.reset(1), world.reset(1))
    assert twin.prey_identity == world.prey_identity
    for _ in range(60):
        choices = chosen(rng, 9)
        for ours, theirs in zip(twin.step(np.eye(5)[choices]), world.step(MOVES[choices]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(twin.final_obs, world.final_obs)
        np.testing.assert_array_equal(twin.final_state, world.final_state)


def test_the_row_differs_from_the_continuous_one_in_what_agents_do_alone() -> None:
    ours, theirs = dataclasses.asdict(CND), dataclasses.asdict(find("cn"))
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ == {
        "name", "alias", "act_dim", "discrete", "returns", "measured_random", "chosen_levels", "summary",
    }  # fmt: skip
    assert set(dataclasses.asdict(CND.returns).values()) == {None}  # nothing is published
    assert CND.levels == (273.4, 480.0)
    assert (CND.normalized(CND.measured_random or 0.0), CND.normalized(480.0)) == (0.0, 100.0)


@pytest.mark.parametrize(("move", "displacement"), list(enumerate(MOVES.tolist())))
def test_every_move_goes_its_way(move: int, displacement: list[float]) -> None:
    """From rest, one step with acceleration 5 over 0.1 s moves a lone agent by 0.05."""
    env = make("cnd", 200, seed=0)
    start = env.reset()[:, :, 2:4]
    env.step(np.eye(5)[np.full((200, 3), move)])
    far = np.linalg.norm(start[:, 0] - start[:, 1:].swapaxes(0, 1), axis=-1).min(0) > 0.6  # nobody pushes agent 0
    assert far.sum() > 20
    gone = env.final_obs[far, 0, 2:4] - start[far, 0]
    np.testing.assert_allclose(gone, np.broadcast_to(0.05 * np.array(displacement), gone.shape), atol=1e-5)


def test_moved_translates_any_shape() -> None:
    np.testing.assert_array_equal(moved(np.array([[3], [1]])), [[[0, -1]], [[-1, 0]]])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([0, 0, 0, 0, 0], r"actions must be one-hot, but actions\[1, 2\] is \[0.0, 0.0, 0.0, 0.0, 0.0\]"),
        ([1, 0, 1, 0, 0], r"actions\[1, 2\] is \[1.0, 0.0, 1.0"),
        ([0, 0.5, 0.5, 0, 0], r"actions\[1, 2\] is \[0.0, 0.5, 0.5"),
        ([0, 2, 0, 0, 0], r"actions\[1, 2\] is \[0.0, 2.0"),
        ([0, 1, 0, 0, -1], r"actions\[1, 2\] is \[0.0, 1.0, 0.0, 0.0, -1.0\]"),
        ([0, np.nan, 0, 0, 0], r"actions\[1, 2\] is \[0.0, nan"),
    ],
)
def test_what_is_not_one_hot_is_refused_and_nothing_moves(row: list[float], says: str) -> None:
    env = make("cnd", 2)
    actions = np.eye(5, dtype=np.float32)[np.ones((2, 3), int)]
    actions[1, 2] = row
    before = env.state()
    with pytest.raises(UserError, match=says) as caught:
        env.step(actions)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(env.state(), before)


@pytest.mark.parametrize("shape", [(2, 3, 2), (1, 3, 5), (2, 3), (2, 4, 5)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"actions must have shape \(2, 3, 5\), not"):
        make("cnd", 2).step(np.zeros(shape))


# PettingZoo and Gymnasium (their own tests of the task are among those of all tasks)


@pytest.mark.parametrize("action", [5, -1, 1.0, "2", np.eye(5)[1], None, [1]])
def test_choices_that_are_none_are_refused(action: object) -> None:
    env = parallel_env("cnd")
    env.reset(seed=0)
    with pytest.raises(UserError, match="agent_1 must choose an integer from 0 to 4, not"):
        env.step({"agent_0": 0, "agent_1": action, "agent_2": 0})  # pyright: ignore[reportArgumentType]


def test_integers_of_any_type_are_choices() -> None:
    states = []
    for kind in (int, np.int64, np.int8, np.array):
        env = parallel_env("cnd")
        env.reset(seed=0)
        env.step({agent: kind(3) for agent in env.agents})  # pyright: ignore[reportArgumentType]
        states.append(env.state())
    for state in states[1:]:
        np.testing.assert_array_equal(state, states[0])


def test_spaces_are_choices_everywhere() -> None:
    assert all(space == Discrete(5) for space in parallel_env("cnd").action_spaces.values())
    card = EnvironmentCard.of(CND)
    assert card.spec.discrete == (True, True, True)
    assert card.spec.act_dims == (5, 5, 5)
    assert card.task is CND
    assert card.spec.action_space() == TeamEnv("cnd").action_space
    assert EnvironmentCard.from_json(card.to_json()) == card


# Uniform choices


def test_uniform_choices_are_one_hot_and_even() -> None:
    actions = UniformPolicy(CND).act(np.empty((20_000, 3, 18), np.float32), np.random.default_rng(0))
    assert actions.shape == (20_000, 3, 5)
    assert actions.dtype == np.float32
    assert set(np.unique(actions)) == {0.0, 1.0}
    np.testing.assert_array_equal(actions.sum(-1), 1)
    np.testing.assert_allclose(actions.mean(0), 0.2, atol=0.012)  # four deviations
    chosen_by_two = actions[:, 0, :, None] * actions[:, 1, None, :]  # agents choose independently
    np.testing.assert_allclose(chosen_by_two.mean(0), 0.04, atol=0.006)


def test_uniform_choices_score_the_measured_return() -> None:
    returns = team_returns(UniformPolicy(CND), make("cnd", 10_000), seed=1)
    assert returns.mean() == pytest.approx(CND.reference_random, abs=4 * returns.std() / 100)


# Data sets


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episodes = rollout(UniformPolicy(CND), make("cnd", 8), 500, seed=0)
    returns = episodes.team_returns
    policy = BehaviorPolicy("random", "uniform", 0, 0, "", float(returns.mean()), float(returns.std()), len(returns))
    dataset.write(
        ID, episodes, environment=EnvironmentCard.of(CND), policies=[policy], collection={"seed": 0}, progress=False
    )
    return tmp_path


def test_data_sets_hold_integers_and_load_one_hot(root: Path) -> None:
    del root
    loaded = dataset.load(ID)
    expected = rollout(UniformPolicy(CND), make("cnd", 8), 500, seed=0)
    assert loaded.task is CND
    np.testing.assert_array_equal(loaded.episodes.actions, expected.actions)
    stock = minari.load_dataset(ID)
    assert stock.action_space == TeamEnv("cnd").action_space
    for index, episode in enumerate(stock.iterate_episodes()):
        for agent, name in enumerate(CND.agents):
            stored = episode.actions[name]
            assert stored.dtype == np.int64
            np.testing.assert_array_equal(stored, expected.select([index]).actions[:, agent].argmax(-1))


def test_the_recovered_environment_plays_the_data_again(root: Path) -> None:
    del root
    stock = minari.load_dataset(ID)
    env = stock.recover_environment()
    episode = stock[0]
    world = env.unwrapped._env._env  # pyright: ignore[reportAttributeAccessIssue]
    env.reset(seed=0)
    places = [episode.observations[name][0] for name in CND.agents]
    world._pos[0], world._vel[0] = [seen[2:4] for seen in places], 0.0
    world._landmarks[0] = places[0][4:10].reshape(3, 2) + places[0][2:4]
    for t in range(25):
        obs, reward, _, truncated, _ = env.step({name: episode.actions[name][t] for name in CND.agents})
        assert reward == pytest.approx(episode.rewards[t], abs=1e-2)
        np.testing.assert_allclose(obs["agent_2"], episode.observations["agent_2"][t + 1], atol=1e-4)
        assert truncated == (t == 24)


def test_validation_replays_the_choices(root: Path) -> None:
    findings = {finding.check: finding for finding in validate(ID)}
    assert all(finding.severity is Severity.OK for finding in findings.values()), findings
    assert "500 transitions replayed, all" in findings["physics"].message
    assert root.exists()


@pytest.mark.parametrize(("choice", "check"), [(7, "bounds"), (-1, "bounds"), (None, "physics")])
def test_validation_finds_choices_that_were_not_made(choice: int | None, check: str, root: Path) -> None:
    with h5py.File(root / ID / "data" / "main_data.hdf5", "r+") as file:
        for number in range(20):
            stored = file[f"episode_{number}/actions/agent_1"]
            assert isinstance(stored, h5py.Dataset)
            stored[3] = (stored[3] + 1) % 5 if choice is None else choice
    wrong = {finding.check for finding in validate(ID) if finding.severity is Severity.ERROR}
    assert check in wrong


def test_a_discrete_task_has_levels_of_its_own_or_published_ones() -> None:
    assert all(low < high for low, high in (task.levels for task in TASKS.values()))
