"""Locomotion worlds against Gymnasium-Robotics, and the promises of the vector interface."""

from __future__ import annotations

import os

import mujoco
import numpy as np
import pytest

from om2p_data.envs.locomotion import LocomotionEnv, replay
from om2p_data.envs.locomotion.simulation import BatchSimulation
from om2p_data.envs.registry import find
from om2p_data.errors import UserError

TASK = find("halfcheetah-2x3")
HORIZON = TASK.horizon
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Three whole episodes of Gymnasium-Robotics: starts, actions and what came of them, float64, copies leading."""
    mamujoco_v1 = pytest.importorskip("gymnasium_robotics").mamujoco_v1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("log"))  # MuJoCo writes a log about gymnasium's model
        env = mamujoco_v1.parallel_env("HalfCheetah", "2x3", agent_obsk=0, global_categories=())
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-1, 1, (HORIZON, 2, 3))
    bang_bang = rng.choice((-1.0, 1.0), (HORIZON, 2, 3))
    too_large = rng.uniform(-2, 2, (HORIZON, 2, 3))  # MuJoCo clamps these controls; their cost stays that of the action
    actions = np.stack((uniform, bang_bang, too_large)).astype(np.float32)

    record: dict[str, list] = {key: [] for key in ("qpos", "qvel", "obs", "rewards", "state", "truncated")}
    for seed, episode in enumerate(actions):
        env.reset(seed=seed)
        data = env.unwrapped.single_agent_env.unwrapped.data
        record["qpos"].append(data.qpos.copy())
        record["qvel"].append(data.qvel.copy())
        steps = []
        for joint in episode:
            obs, rewards, terminated, truncated, _ = env.step({"agent_0": joint[0], "agent_1": joint[1]})
            assert not any(terminated.values())
            assert rewards["agent_0"] == rewards["agent_1"]
            views = np.stack([obs[agent] for agent in TASK.agents])
            steps.append((views, rewards["agent_0"], env.state(), truncated["agent_0"]))
        for key, values in zip(("obs", "rewards", "state", "truncated"), zip(*steps, strict=True), strict=True):
            record[key].append(np.stack(values))
    return {key: np.stack(values) for key, values in record.items()} | {"actions": actions}


def started(episodes: dict[str, np.ndarray], threads: int) -> LocomotionEnv:
    """A world with a past, whose copies stand where the recorded episodes began."""
    copies = len(episodes["qpos"])
    env = LocomotionEnv(TASK, copies, threads=threads)
    env.reset()
    random_steps(env, 50)
    env.reset()
    env._team.body.simulation.place(np.arange(copies), episodes["qpos"], episodes["qvel"])
    return env


def random_steps(env: LocomotionEnv, steps: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    shape = (env.num_envs, TASK.num_agents, TASK.act_dim)
    return [(*env.step(rng.uniform(-1, 1, shape).astype(np.float32)), env.state()) for _ in range(steps)]


# Equal to the reference


@pytest.mark.parametrize("threads", [1, 2])
def test_replay_equals_gymnasium_robotics(episodes: dict[str, np.ndarray], threads: int) -> None:
    ours = replay("hc", episodes["qpos"], episodes["qvel"], episodes["actions"], threads=threads)
    for key in ("obs", "rewards", "state"):
        assert ours[key].dtype == np.float64
        np.testing.assert_allclose(ours[key], episodes[key], **CLOSE, err_msg=key)
    np.testing.assert_array_equal(ours["truncated"], episodes["truncated"])


@pytest.mark.parametrize("threads", [1, 2])
def test_world_equals_gymnasium_robotics(episodes: dict[str, np.ndarray], threads: int) -> None:
    env = started(episodes, threads)
    for t in range(HORIZON):
        obs, rewards, terminated, truncated = env.step(episodes["actions"][:, t])
        np.testing.assert_allclose(env.final_obs, episodes["obs"][:, t], **CLOSE)
        np.testing.assert_allclose(env.final_state, episodes["state"][:, t], **CLOSE)
        np.testing.assert_allclose(rewards, np.repeat(episodes["rewards"][:, t, None], 2, axis=1), **CLOSE)
        np.testing.assert_array_equal(truncated, np.repeat(episodes["truncated"][:, t, None], 2, axis=1))
        assert not terminated.any()
        if t + 1 < HORIZON:
            np.testing.assert_array_equal(obs, env.final_obs)
    assert truncated.all()
    assert obs.dtype == rewards.dtype == env.final_obs.dtype == env.final_state.dtype == env.state().dtype == np.float32
    assert terminated.dtype == truncated.dtype == bool


def test_random_policy_scores_as_published() -> None:
    env = LocomotionEnv(TASK, 64, seed=0, threads=2)
    env.reset()
    returns = sum(rewards.mean(axis=1) for _, rewards, *_ in random_steps(env, HORIZON))
    assert np.mean(returns) == pytest.approx(-286, abs=15)
    assert np.std(returns) == pytest.approx(80, abs=20)


# Deterministic


def test_threads_change_nothing() -> None:
    runs = []
    for threads in (1, 2, 3):
        env = LocomotionEnv(TASK, 7, seed=5, threads=threads)
        start = env.reset()
        runs.append([(start,), *random_steps(env, 300)])
    for other in runs[1:]:
        for ours, theirs in zip(runs[0], other, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


def test_seed_decides_every_episode() -> None:
    def two_episodes(env: LocomotionEnv, first: np.ndarray) -> np.ndarray:
        return np.stack([first, *(obs for obs, *_ in random_steps(env, HORIZON + 1))])

    def made(seed: int) -> np.ndarray:
        env = LocomotionEnv(TASK, 2, seed=seed)
        return two_episodes(env, env.reset())

    reference = made(3)
    env = LocomotionEnv(TASK, 2)
    env.reset()
    random_steps(env, 2)
    np.testing.assert_array_equal(two_episodes(env, env.reset(seed=3)), reference)
    assert not np.array_equal(made(4)[0], reference[0])
    starts = np.concatenate((reference[0], reference[HORIZON]))  # [2 episodes * 2 copies, N, O]
    assert len(np.unique(starts, axis=0)) == 4


# The vector interface


def test_warm_start_is_gymnasiums(episodes: dict[str, np.ndarray]) -> None:
    """The solver's memory after a start is that of mj_forward on fresh data, to the last bit."""
    env = started(episodes, threads=1)
    body = env._team.body
    assert isinstance(body.simulation, BatchSimulation)
    for copy, (qpos, qvel) in enumerate(zip(episodes["qpos"], episodes["qvel"], strict=True)):
        data = mujoco.MjData(body.model)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(body.model, data)
        np.testing.assert_array_equal(body.simulation.batch.get_data(copy).qacc_warmstart, data.qacc_warmstart)


def test_ended_episodes_hand_over_and_restart(episodes: dict[str, np.ndarray]) -> None:
    env = started(episodes, threads=2)
    for t in range(HORIZON):
        obs, *_ = env.step(episodes["actions"][:, t])
    np.testing.assert_allclose(env.final_obs, episodes["obs"][:, -1], **CLOSE)
    np.testing.assert_allclose(env.final_state, episodes["state"][:, -1], **CLOSE)
    assert np.abs(obs - env.final_obs).max() > 0.5
    state = env.state()
    assert np.abs(state[:, :8]).max() <= 0.1  # positions of a fresh start, whose rest is 0
    np.testing.assert_array_equal(obs, state[:, [[4, 13, 3, 12, 2, 11], [7, 16, 6, 15, 5, 14]]])
    truncations = np.stack([truncated for _, _, _, truncated, _ in random_steps(env, HORIZON)])
    assert not truncations[:-1].any()
    assert truncations[-1].all()


def test_reset_noise() -> None:
    env = LocomotionEnv(TASK, 4000, seed=1)
    env.reset()
    positions, velocities = np.split(env.state(), [8], axis=1)
    assert np.abs(positions).max() <= 0.1
    np.testing.assert_allclose(positions.std(axis=0), 0.1 / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(velocities.std(axis=0), 0.1, rtol=0.05)
    np.testing.assert_allclose(env.state().mean(axis=0), 0, atol=0.01)


def test_returned_arrays_are_the_callers() -> None:
    env = LocomotionEnv(TASK, 3, seed=0)
    actions = np.full((3, 2, 3), 0.5, dtype=np.float32)
    kept = [env.reset(), env.state(), *env.step(actions), env.final_obs, env.final_state, env.state()]
    copies = [array.copy() for array in kept]
    env.step(actions)
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    obs, *_ = env.step(actions)
    expected, state = env.final_obs.copy(), env.state()
    obs[:] = 7.0
    np.testing.assert_array_equal(env.final_obs, expected)
    np.testing.assert_array_equal(env.state(), state)


def test_bad_use_is_named() -> None:
    env = LocomotionEnv(TASK, 4)
    with pytest.raises(UserError, match="reset"):
        env.step(np.zeros((4, 2, 3)))
    env.reset()
    with pytest.raises(UserError, match=r"actions must have shape \(4, 2, 3\), not \(4, 6\)"):
        env.step(np.zeros((4, 6)))
    with pytest.raises(UserError, match="num_envs"):
        LocomotionEnv(TASK, 0)
    with pytest.raises(UserError, match="not a locomotion task"):
        LocomotionEnv(find("cn"))
    with pytest.raises(UserError, match="index"):
        env.render(4)


def test_leaves_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(folder)
    LocomotionEnv(TASK).reset()
    assert not list(folder.iterdir())
    assert capfd.readouterr() == ("", "")


# Replay arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "cn"}, "'cooperative-navigation' is not a locomotion task"),
        ({"task": "halfcheetah"}, "unknown environment 'halfcheetah'.*halfcheetah-2x3"),
        ({"qpos": np.zeros((4, 8))}, r"qpos must have shape \(E, 9\), not \(4, 8\)"),
        ({"qpos": np.zeros(9)}, r"qpos must have shape \(E, 9\), not \(9,\)"),
        ({"qpos": np.zeros((0, 9))}, r"qpos must have shape \(E, 9\), not \(0, 9\)"),
        ({"qvel": np.zeros((3, 9))}, r"qvel must have shape \(4, 9\), not \(3, 9\)"),
        ({"actions": np.zeros((4, 5, 6))}, r"actions must have shape \(4, T, 2, 3\), not \(4, 5, 6\)"),
        ({"actions": np.zeros((4, 0, 2, 3))}, r"actions must have shape \(4, T, 2, 3\), not \(4, 0, 2, 3\)"),
    ],
)
def test_replay_names_the_wrong_argument(changes: dict, message: str) -> None:
    right = {"task": "hc", "qpos": np.zeros((4, 9)), "qvel": np.zeros((4, 9)), "actions": np.zeros((4, 5, 2, 3))}
    assert replay(**right)["obs"].shape == (4, 5, 2, 6)
    with pytest.raises(UserError, match=message) as caught:
        replay(**right | changes)
    assert "\n" not in str(caught.value)


# Pictures


@pytest.fixture
def drawn() -> LocomotionEnv:
    env = LocomotionEnv(TASK, 2, seed=0)
    env.reset()
    chosen = os.environ.get("MUJOCO_GL")
    try:
        env.render()
    except UserError as error:
        pytest.skip(str(error))
    assert os.environ.get("MUJOCO_GL") == chosen
    return env


def test_pictures_show_each_copy_wherever_it_ran(drawn: LocomotionEnv) -> None:
    picture = drawn.render(1)
    assert picture.shape == (320, 480, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 20
    np.testing.assert_array_equal(drawn.render(1), picture)
    assert not np.array_equal(drawn.render(0), picture)

    simulation = drawn._team.body.simulation
    qpos, qvel = np.tile(simulation.qpos[1], (2, 1)), np.tile(simulation.qvel[1], (2, 1))
    qpos[0, 0] += 200.0  # 150 periods of the floor's pattern and 160 m behind its drawn edge
    simulation.place(np.arange(2), qpos, qvel)
    assert np.abs(drawn.render(0).astype(int) - picture).mean() < 1
    drawn.close()
    drawn.close()


def test_drawing_leaves_the_physics_alone(drawn: LocomotionEnv) -> None:
    plain = LocomotionEnv(TASK, 2, seed=0)
    plain.reset()
    for seed in range(3):
        for ours, theirs in zip(random_steps(drawn, 10, seed), random_steps(plain, 10, seed), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
        drawn.render()
    drawn.close()


def test_no_opengl_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    env = LocomotionEnv(TASK)
    env.reset()
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(UserError, match=r"MUJOCO_GL='nonsense'.*install libegl1") as caught:
        env.render()
    assert "\n" not in str(caught.value)
