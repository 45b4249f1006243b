"""The worlds as PettingZoo and Gymnasium see them, names and aliases, and which package may import which."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import parallel_api_test, parallel_seed_test

from om2p_data.envs import TASKS, Family, ParallelWorld, TeamEnv, find, make, parallel_env
from om2p_data.errors import UserError

ROOT = Path(__file__).parents[2]
ALIASES = ("cn", "cnd", "pp", "world", "hc", "hc6", "hopper", "ant")
FALLS = ("hopper", "ant")  # where an episode may end before the horizon

each_task = pytest.mark.parametrize("name", ALIASES)


def random_actions(env: ParallelWorld, rng: np.random.Generator) -> dict[str, Any]:
    """Uniform actions of all possible agents."""
    spaces = [env.action_space(agent) for agent in env.possible_agents]
    drawn = [
        int(rng.integers(space.n))
        if isinstance(space, Discrete)
        else rng.uniform(-1, 1, space.shape).astype(np.float32)
        for space in spaces
    ]
    return dict(zip(env.possible_agents, drawn, strict=True))


def joint(env: ParallelWorld, values: dict) -> np.ndarray:
    """Dictionary over agents -> one array [1, N, ...], as the vector world has it."""
    return np.stack([values[agent] for agent in env.possible_agents])[None]


def joint_actions(env: ParallelWorld, actions: dict) -> np.ndarray:
    """The same of actions, choices one-hot."""
    stacked = joint(env, actions)
    return np.eye(env.task.act_dim)[stacked] if env.task.discrete else stacked


# ----------------------------------------------------------------------------------------------------- PettingZoo


@each_task
def test_pettingzoo_api(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(name), num_cycles=60)


@each_task
def test_pettingzoo_seeds(name: str):
    parallel_seed_test(lambda: parallel_env(name), num_cycles=60)


@each_task
def test_a_seed_decides_the_whole_episode(name: str):
    """PettingZoo's own test stops after one step."""
    records = []
    for seed in (3, 3, 4):
        env, rng, record = parallel_env(name), np.random.default_rng(0), []
        obs, _ = env.reset(seed=seed)
        for _ in range(30):
            record.append(joint(env, obs))
            obs = env.step(random_actions(env, rng))[0] if env.agents else env.reset()[0]
        records.append(np.array(record))
    np.testing.assert_array_equal(records[0], records[1])
    assert not np.array_equal(records[0][:5], records[2][:5])
    one, other = parallel_env(name).reset()[0], parallel_env(name).reset()[0]  # nobody gave a seed
    agent = find(name).agents[0]
    assert not np.array_equal(one[agent], other[agent])


@each_task
def test_episode_equals_the_vector_world_and_ends(name: str):
    task, rng = find(name), np.random.default_rng(1)
    env, vector = parallel_env(name), make(name, 1, threads=1)
    obs, infos = env.reset(seed=4)  # an ant that falls; many do not
    restarted = vector.reset(4)
    np.testing.assert_array_equal(joint(env, obs), restarted)
    np.testing.assert_array_equal(env.state(), vector.state()[0])
    assert infos == {agent: {} for agent in task.agents}
    for step in range(1, task.horizon + 1):
        assert tuple(env.agents) == task.agents
        actions = random_actions(env, rng)
        obs, rewards, terminated, truncated, _ = env.step(actions)
        restarted, vector_rewards, vector_terminated, _ = vector.step(joint_actions(env, actions))
        np.testing.assert_array_equal(joint(env, obs), vector.final_obs)
        np.testing.assert_array_equal(joint(env, rewards), vector_rewards)
        np.testing.assert_array_equal(env.state(), vector.final_state[0])
        np.testing.assert_array_equal(joint(env, terminated), vector_terminated)
        assert set(truncated.values()) == {step == task.horizon}
        for agent, value in obs.items():
            assert env.observation_space(agent).contains(value)
        assert env.state().dtype == np.float32
        assert env.state_space.contains(env.state())
        if any(terminated.values()):
            break
    assert all(terminated.values()) == (name in FALLS)
    # The vector world has restarted; what the last step led to is another place.
    assert not np.array_equal(joint(env, obs), restarted)
    assert not np.array_equal(env.state(), vector.state()[0])
    assert env.agents == []
    assert env.step({}) == ({}, {}, {}, {}, {})
    env.reset()
    assert tuple(env.agents) == task.agents


def test_state_tells_where_everybody_is():
    env = parallel_env("pp")
    obs, _ = env.reset(seed=0)
    positions, landmarks = env.state()[:8].reshape(4, 2), env.state()[16:].reshape(2, 2)
    for i, view in enumerate(obs.values()):
        np.testing.assert_array_equal(view[2:4], positions[i])
        np.testing.assert_allclose(view[4:8].reshape(2, 2), landmarks - positions[i], atol=1e-6)
    np.testing.assert_allclose(obs["predator_0"][12:14], positions[3] - positions[0], atol=1e-6)


@each_task
def test_pictures_show_what_moves(name: str):
    env, rng = parallel_env(name, render_mode="rgb_array"), np.random.default_rng(0)
    env.reset(seed=0)
    try:
        first = env.render()
    except UserError as error:
        assert find(name).family is Family.LOCOMOTION
        pytest.skip(str(error))  # no OpenGL here
    assert first is not None
    np.testing.assert_array_equal(first, env.render())
    for _ in range(5):
        env.step(random_actions(env, rng))
    second = env.render()
    env.close()
    assert second is not None
    for picture in (first, second):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert min(picture.shape[:2]) >= 256
        assert picture.std() > 5
    changed = (first != second).any(axis=-1).mean()
    assert 0.001 < changed < 0.9


def test_pictures_only_on_demand():
    env = parallel_env("cn")
    env.reset(seed=0)
    assert env.render() is None
    with pytest.raises(UserError, match="render_mode must be None or 'rgb_array', not 'human'"):
        parallel_env("cn", render_mode="human")


@pytest.mark.parametrize("name", ["pp", "world"])
def test_pictures_tell_the_prey_from_the_predators(name: str):
    """Red over blue turns to blue over red when a predator and the prey change places."""
    env = make(name, 1, seed=1)
    vars(env)["_landmarks"][:] = [2.5, 2.5]
    vars(env)["_vel"][:] = 0

    def colors(predator: float, prey: float) -> np.ndarray:
        vars(env)["_pos"][0] = [[0, predator], [1, 1], [1, 1], [0, prey]]
        picture = env.render(0)
        middle = picture.shape[1] // 2
        column = picture[:, middle - 4 : middle - 2].mean(axis=1)  # beside the number on the predator
        rows = [round(middle * (1 - y / 1.35)) for y in (0.5, -0.5)]
        return np.argmax(column[rows], axis=-1)  # channel that stands out: red 0, blue 2

    np.testing.assert_array_equal(colors(0.5, -0.5), [0, 2])
    np.testing.assert_array_equal(colors(-0.5, 0.5), [2, 0])


# ------------------------------------------------------------------------------------------------------ Gymnasium


@each_task
def test_gymnasium_accepts_the_team_env(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|different from the unwrapped version|spec)")
        check_env(TeamEnv(name), skip_render_check=True)


@each_task
def test_team_reward_is_the_mean_over_agents(name: str):
    team, env, rng = TeamEnv(name), parallel_env(name), np.random.default_rng(2)
    spread = 0.0
    for seed in range(5):
        team.reset(seed=seed)
        env.reset(seed=seed)
        for step in range(1, 26):
            if not env.agents:
                break
            actions = random_actions(env, rng)
            obs, reward, terminated, truncated, info = team.step(actions)
            their_obs, rewards, their_terminated, _, _ = env.step(actions)
            agent_rewards = np.array([rewards[agent] for agent in env.possible_agents])
            assert reward == pytest.approx(agent_rewards.mean(), abs=1e-5)
            np.testing.assert_allclose(info["agent_rewards"], agent_rewards, rtol=1e-6)
            np.testing.assert_array_equal(joint(env, obs), joint(env, their_obs))
            assert terminated is any(their_terminated.values())
            assert terminated is False or name in FALLS
            assert truncated is (step == env.task.horizon)
            spread = max(spread, float(np.ptp(agent_rewards)))
    assert (spread > 0) == (name in ("cn", "cnd"))  # the others share one reward


# ---------------------------------------------------------------------------------------------- names and aliases


def test_names_and_aliases_are_the_same_worlds():
    assert set(ALIASES) <= {task.alias for task in TASKS.values()}
    for name, task in TASKS.items():
        assert find(name) is find(task.alias) is find(name.upper()) is task
        by_name, by_alias = make(name, 2, seed=1), make(task.alias, 2, seed=1)
        np.testing.assert_array_equal(by_name.reset(1), by_alias.reset(1))
        assert parallel_env(task.alias).metadata["name"] == f"om2p/{name}"


@pytest.mark.parametrize("name", TASKS)
def test_the_task_table_tells_the_sizes(name: str):
    task, env = TASKS[name], parallel_env(name)
    obs, _ = env.reset()
    assert tuple(obs) == task.agents
    assert env.state().shape == env.state_space.shape == (task.state_dim,)
    for agent in task.agents:
        assert obs[agent].shape == env.observation_space(agent).shape == (task.obs_dim,)
        space = env.action_space(agent)
        if task.discrete:
            assert space == Discrete(task.act_dim)
        else:
            assert space == Box(-1.0, 1.0, (task.act_dim,), np.float32)


def test_unknown_environment_offers_the_nearest():
    with pytest.raises(UserError, match=r"unknown environment 'halfcheeta-2x3': did you mean 'halfcheetah-2x3'"):
        parallel_env("halfcheeta-2x3")
    with pytest.raises(UserError, match=r"valid: .*cooperative-navigation"):
        TeamEnv("zzz")


def test_prey_only_where_there_is_one():
    class Still:
        identity = "still"

        def act(self, obs: np.ndarray) -> np.ndarray:
            return np.zeros((len(obs), 2), np.float32)

    for name in ("cn", "cnd", "hc", "ant"):
        with pytest.raises(UserError, match="has no prey"):
            parallel_env(name, prey=Still())
    env = parallel_env("pp", prey=Still())
    env.reset(seed=0)
    before = env.state()[6:8]
    for _ in range(3):
        env.step(random_actions(env, np.random.default_rng(0)))
    assert np.linalg.norm(env.state()[6:8] - before) < 0.5  # pushed at most


# ------------------------------------------------------------------------------------------------ import direction


def imported_packages(source: str) -> Iterator[str]:
    """Top-level packages that a file imports, wherever in it the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_imported_packages_sees_every_form():
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    if True:\n        import i as j\n"
    assert list(imported_packages(source)) == ["a", "c", "d", "i"]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("om2p_data", {"om2p_train", "om2p_cli", "cli"}), ("om2p_train", {"om2p_cli", "cli"})],
)
def test_imports_point_one_way(package: str, forbidden: set[str]):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {found}"
        for path in files
        for found in imported_packages(path.read_text("utf-8"))
        if found in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_the_last_picture_shows_the_end_not_the_next_start():
    """Without actions nobody moves in Cooperative Navigation, so the last picture is the first one."""
    env = parallel_env("cn", render_mode="rgb_array")
    env.reset(seed=0)
    first, start = env.render(), env.state()
    while env.agents:
        env.step({agent: np.zeros(2, np.float32) for agent in env.agents})
    np.testing.assert_array_equal(env.state(), start)
    np.testing.assert_array_equal(env.render(), first)


def test_the_cheetahs_last_state_follows_its_last_but_one():
    env = parallel_env("hc")
    env.reset(seed=0)
    while env.agents:
        before = env.state()
        env.step({agent: np.zeros(3, np.float32) for agent in env.agents})
    assert np.abs(env.state() - before).max() < 0.1, "a cheetah at rest does not jump to a new start"
