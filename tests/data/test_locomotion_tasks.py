"""HalfCheetah of six, Hopper of three and Ant of two agents against Gymnasium-Robotics, and episodes that end early."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from om2p_data.behavior.policy import UniformPolicy
from om2p_data.envs import make, particle
from om2p_data.envs.locomotion import LocomotionEnv, replay
from om2p_data.envs.registry import find
from om2p_data.errors import UserError
from om2p_data.rollout import rollout

SCENARIOS = {"halfcheetah-6x1": ("HalfCheetah", "6x1"), "hopper-3x1": ("Hopper", "3x1"), "ant-2x4": ("Ant", "2x4")}
SIZES = {"halfcheetah-6x1": (6, 23, 1, 17), "hopper-3x1": (3, 14, 1, 11), "ant-2x4": (2, 107, 4, 105)}
FALLS = ("hopper-3x1", "ant-2x4")
STEPS = 300

each_task = pytest.mark.parametrize("name", SCENARIOS)
each_that_falls = pytest.mark.parametrize("name", FALLS)


def joint_actions(name: str, copies: int, steps: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    """Uniform actions, float32 [E, T, N, A]."""
    agents, _, act_dim, _ = SIZES[name]
    shape = (copies, steps, agents, act_dim)
    return np.random.default_rng(seed).uniform(-size, size, shape).astype(np.float32)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """By task, what Gymnasium-Robotics made of four starts; it steps on after a fall. Float64, copies leading."""
    mamujoco_v1 = pytest.importorskip("gymnasium_robotics").mamujoco_v1
    records = {}
    for name, scenario in SCENARIOS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("log"))  # MuJoCo writes a log about gymnasium's model
            env = mamujoco_v1.parallel_env(*scenario)
        data = env.unwrapped.single_agent_env.unwrapped.data
        # Quiet, lively and too large: MuJoCo clamps the controls, the cost stays that of the action.
        actions = np.concatenate([joint_actions(name, 1, STEPS, i, size) for i, size in enumerate((0.2, 1, 1, 2))])
        record: dict[str, list] = {key: [] for key in ("qpos", "qvel", "state", "rewards", "terminated")}
        for seed, episode in enumerate(actions):
            env.reset(seed=seed)
            record["qpos"].append(data.qpos.copy())
            record["qvel"].append(data.qvel.copy())
            rows = []
            for joint in episode:
                _, rewards, terminated, _, _ = env.step(dict(zip(env.possible_agents, joint, strict=True)))
                rows.append((env.state(), rewards["agent_0"], terminated["agent_0"]))
            for key, values in zip(("state", "rewards", "terminated"), zip(*rows, strict=True), strict=True):
                record[key].append(np.stack(values))
        records[name] = {key: np.stack(values) for key, values in record.items()} | {"actions": actions}
    return records


def as_seen(state: np.ndarray, agent: int, agents: int) -> np.ndarray:
    """What one agent sees of one global state, straight from the definition."""
    vector = np.concatenate((state, np.arange(agents) == agent))
    return (vector - np.mean(vector)) / np.sqrt(np.mean((vector - np.mean(vector)) ** 2))


# Equal to the reference


@pytest.mark.parametrize("threads", [1, 2])
@each_task
def test_replay_equals_gymnasium_robotics(name: str, threads: int, recorded: dict) -> None:
    theirs = recorded[name]
    ours = replay(name, theirs["qpos"], theirs["qvel"], theirs["actions"], threads=threads)
    assert ours["state"].shape == (4, STEPS, SIZES[name][3])
    for key in ("state", "rewards"):
        assert ours[key].dtype == np.float64
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-9, err_msg=key)
    np.testing.assert_array_equal(ours["terminated"], theirs["terminated"])
    assert not ours["truncated"].any()


def test_what_was_recorded_holds_the_hard_cases(recorded: dict) -> None:
    """Falls and none, velocities beyond the clip, contact forces within and beyond theirs."""
    for name in SCENARIOS:
        fallen = recorded[name]["terminated"].any(1)
        assert fallen.any() == (name in FALLS)
    assert not recorded["ant-2x4"]["terminated"][0].any()
    assert np.abs(recorded["hopper-3x1"]["state"][..., 5:]).max() == 10.0
    forces = np.abs(recorded["ant-2x4"]["state"][..., 27:])
    assert forces.max() == 1.0
    assert ((forces > 0) & (forces < 1)).any()


@each_task
def test_world_equals_gymnasium_robotics(name: str, recorded: dict) -> None:
    theirs, task = recorded[name], find(name)
    env = LocomotionEnv(task, 4, threads=2)
    env.reset()
    for actions in joint_actions(name, 4, 20).swapaxes(0, 1):  # a past, which must not matter
        env.step(actions)
    env.reset()
    env.auto_restart = False
    env._team.body.simulation.place(np.arange(4), theirs["qpos"], theirs["qvel"])
    for t in range(STEPS):
        obs, rewards, terminated, truncated = env.step(theirs["actions"][:, t])
        np.testing.assert_array_equal(env.final_state, theirs["state"][:, t].astype(np.float32))
        np.testing.assert_allclose(rewards, np.repeat(theirs["rewards"][:, t, None], task.num_agents, 1), rtol=1e-6)
        np.testing.assert_array_equal(terminated, np.repeat(theirs["terminated"][:, t, None], task.num_agents, 1))
        assert not truncated.any()
        np.testing.assert_array_equal(obs, env.final_obs)


@each_task
def test_agents_see_the_standardised_state_and_who_they_are(name: str, recorded: dict) -> None:
    agents, obs_dim, _, _ = SIZES[name]
    theirs = {key: recorded[name][key] for key in ("qpos", "qvel", "actions")}
    ours = replay(name, **theirs)
    assert ours["obs"].shape == (4, STEPS, agents, obs_dim)
    for t in (0, STEPS // 2, STEPS - 1):
        for copy in range(4):
            expected = np.stack([as_seen(ours["state"][copy, t], agent, agents) for agent in range(agents)])
            np.testing.assert_allclose(ours["obs"][copy, t], expected, rtol=0, atol=1e-12)
    env = LocomotionEnv(find(name), 4)
    env.reset()
    env.auto_restart = False
    env._team.body.simulation.place(np.arange(4), theirs["qpos"], theirs["qvel"])
    for t in range(20):
        env.step(theirs["actions"][:, t])
        np.testing.assert_array_equal(env.final_obs, ours["obs"][:, t].astype(np.float32))


def test_random_hoppers_score_what_the_table_says() -> None:
    task = find("hopper")
    episodes = rollout(
        UniformPolicy(task), LocomotionEnv(task, 1, threads=1), 5_000, seed=0
    )  # in turn: no short ones first
    returns = episodes.team_returns
    assert returns.mean() == pytest.approx(task.reference_random, abs=4 * returns.std() / np.sqrt(len(returns)))
    assert returns.std() == pytest.approx(16.6, abs=4)


# Starts


@pytest.mark.parametrize(("name", "noise", "spread"), [("hopper-3x1", 5e-3, 5e-3 / np.sqrt(3)), ("ant-2x4", 0.1, 0.1)])
def test_reset_noise(name: str, noise: float, spread: float) -> None:
    env = LocomotionEnv(find(name), 2000, seed=1)
    env.reset()
    simulation = env._team.body.simulation
    positions, velocities = simulation.qpos - simulation.model.qpos0, simulation.qvel
    assert np.abs(positions).max() <= noise
    np.testing.assert_allclose(positions.std(0), noise / np.sqrt(3), rtol=0.08)
    np.testing.assert_allclose(velocities.std(0), spread, rtol=0.08)
    assert (np.abs(velocities).max() <= noise) == (name == "hopper-3x1")


# Episodes that end early


@each_that_falls
def test_fallen_copies_restart_alone(name: str) -> None:
    """Cut at the restarts, a run of the world is a replay of every episode on its own, first to last step."""
    copies, steps = 5, 260
    env = LocomotionEnv(find(name), copies, seed=3, threads=2)
    env.reset()
    simulation = env._team.body.simulation
    actions = joint_actions(name, copies, steps, seed=1)
    starts = {copy: (0, simulation.qpos[copy].copy(), simulation.qvel[copy].copy()) for copy in range(copies)}
    rows, episodes = [], []
    for t in range(steps):
        obs, rewards, terminated, truncated = env.step(actions[:, t])
        rows.append((rewards, env.final_obs, env.final_state))
        over = terminated[:, 0]
        assert not truncated.any()
        np.testing.assert_array_equal(terminated, np.repeat(over[:, None], terminated.shape[1], axis=1))
        np.testing.assert_array_equal(obs[~over], env.final_obs[~over])
        np.testing.assert_array_equal(env.state()[~over], env.final_state[~over])
        for copy in np.flatnonzero(over).tolist():
            qpos, qvel = simulation.qpos[copy].copy(), simulation.qvel[copy].copy()
            assert np.abs(qpos - simulation.model.qpos0).max() <= 0.1  # a fresh start
            state = env.state()[copy]
            np.testing.assert_allclose(obs[copy, 0], as_seen(state, 0, env.task.num_agents), atol=1e-5)
            assert not np.allclose(obs[copy], env.final_obs[copy], atol=1e-2)
            episodes.append((copy, *starts[copy], t + 1))
            starts[copy] = (t + 1, qpos, qvel)
    assert len(episodes) > copies
    assert len({end for *_, end in episodes}) > 2, "all at once proves little"
    for copy, begin, qpos, qvel, end in episodes:
        alone = replay(name, qpos[None], qvel[None], actions[copy, begin:end][None])
        assert alone["terminated"][0].tolist() == [False] * (end - begin - 1) + [True]
        for t in range(begin, end):
            rewards, final_obs, final_state = (values[copy] for values in rows[t])
            np.testing.assert_allclose(rewards, alone["rewards"][0, t - begin], rtol=1e-6)
            np.testing.assert_array_equal(final_obs, alone["obs"][0, t - begin].astype(np.float32))
            np.testing.assert_array_equal(final_state, alone["state"][0, t - begin].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "entry", "values"),
    [
        ("hopper-3x1", 1, (0.69, 0.7, 0.71, 50.0, np.inf, np.nan)),  # height
        ("hopper-3x1", 2, (-0.21, -0.2, -0.19, 0.19, 0.2, 0.21)),  # tilt
        ("hopper-3x1", 5, (-101.0, -100.0, -99.0, 99.0, 100.0, 101.0)),  # a joint
        ("ant-2x4", 2, (0.19, 0.2, 0.21, 0.99, 1.0, 1.01)),  # height
        ("ant-2x4", 9, (np.nan, np.inf, -np.inf, 1e9, 0.0, 1.0)),  # a joint
    ],
)
def test_what_counts_as_a_fall_is_gymnasiums(name: str, entry: int, values: tuple[float, ...]) -> None:
    theirs: Any = gymnasium.make(f"{SCENARIOS[name][0]}-v5").unwrapped
    env = LocomotionEnv(find(name), len(values))
    env.reset()
    body = env._team.body
    body.simulation.qpos[:] = theirs.init_qpos
    body.simulation.qvel[:] = 0.0
    body.simulation.qpos[:, entry] = values
    expected = []
    for value in values:
        theirs.data.qpos[:] = theirs.init_qpos
        theirs.data.qpos[entry] = value
        expected.append(not theirs.is_healthy)
    assert 0 < sum(expected) < len(values)
    assert body.fallen().tolist() == expected


@each_that_falls
def test_episodes_of_a_rollout_end_with_the_fall(name: str) -> None:
    task = find(name)
    episodes = rollout(UniformPolicy(task), LocomotionEnv(task, 4, threads=1), 200, seed=0)
    ends = np.cumsum(episodes.lengths) - 1
    assert episodes.num_episodes >= 2
    assert (episodes.lengths < task.horizon).any()
    assert episodes.terminated[ends][episodes.lengths < task.horizon].all()
    assert episodes.terminated.any(1).sum() <= episodes.num_episodes
    assert episodes.state is not None
    assert episodes.state.shape == (episodes.num_transitions + episodes.num_episodes, task.state_dim)


def test_the_clock_ends_an_episode_that_does_not_fall() -> None:
    """From the same start and age, one hopper stands at the horizon and one is thrown over."""
    env = LocomotionEnv(find("hopper"), 2, seed=0)
    env.reset()
    simulation = env._team.body.simulation
    start, thrown = simulation.model.qpos0.copy(), simulation.model.qpos0.copy()
    thrown[2] = 0.3  # beyond 0.2 rad
    simulation.place(np.arange(2), np.stack((start, thrown)), np.zeros((2, simulation.model.nv)))
    assert env._age is not None
    env._age[:] = 999
    _, rewards, terminated, truncated = env.step(np.zeros((2, 3, 1)))
    assert truncated.all()
    np.testing.assert_array_equal(terminated[:, 0], [False, True])
    assert rewards[0, 0] > 0.5 > rewards[1, 0] + 0.4  # the bonus of standing
    _, _, terminated, truncated = env.step(np.zeros((2, 3, 1)))
    assert not (terminated | truncated).any()


@each_that_falls
def test_threads_and_seeds(name: str) -> None:
    def run(seed: int, threads: int) -> list[np.ndarray]:
        env = LocomotionEnv(find(name), 7, seed=seed, threads=threads)
        out = [env.reset()]
        for actions in joint_actions(name, 7, 120).swapaxes(0, 1):
            obs, rewards, terminated, _ = env.step(actions)
            out += [obs, rewards, terminated, env.final_state]
        assert any(values.any() for values in out[3::4]), "nobody fell"
        return out

    reference = run(5, 1)
    for threads in (2, 3):
        for ours, theirs in zip(run(5, threads), reference, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(run(6, 1)[0], reference[0])


# What the worlds refuse


@pytest.mark.parametrize("name", ["cn", "pp", "hc", "hopper", "ant"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_no_numbers(name: str, value: float) -> None:
    env, task = make(name, 3, seed=0), find(name)
    env.reset()
    actions = np.full((3, task.num_agents, task.act_dim), 0.5, np.float32)
    before = env.state()
    actions[2, 1, 0] = value
    with pytest.raises(UserError, match=rf"actions must be finite, but actions\[2, 1, 0\] is {value}$"):
        env.step(actions)
    np.testing.assert_array_equal(env.state(), before)


def test_large_actions_are_numbers() -> None:
    env = make("cn", 3, seed=0)
    actions = np.full((3, 3, 2), 1e30, np.float32)  # their squares are no float32
    env.step(actions)
    assert np.abs(env.state()).max() > 1e28


def test_replays_refuse_them_too() -> None:
    actions = np.zeros((1, 2, 3, 1))
    actions[0, 1] = np.nan
    with pytest.raises(UserError, match=r"actions\[0, 1, 0, 0\] is nan"):
        replay("hopper", np.zeros((1, 6)), np.zeros((1, 6)), actions)
    still = np.zeros((1, 3, 2))
    with pytest.raises(UserError, match=r"actions\[0, 1, 0, 0\] is nan"):
        particle.replay("simple_spread", still, still, still, np.repeat(actions, 2, axis=-1))


# Pictures


@each_task
def test_pictures_wherever_it_ran(name: str) -> None:
    env = LocomotionEnv(find(name), 2, seed=0)
    env.reset()
    try:
        picture = env.render(1)
    except UserError as error:
        pytest.skip(str(error))
    assert picture.std() > 20
    simulation = env._team.body.simulation
    qpos, qvel = np.tile(simulation.qpos[1], (2, 1)), np.tile(simulation.qvel[1], (2, 1))
    qpos[0, : 2 if name == "ant-2x4" else 1] += 200.0  # whole periods of the floor's pattern, beyond its edge
    simulation.place(np.arange(2), qpos, qvel)
    assert np.abs(env.render(0).astype(int) - picture).mean() < 1
    env.close()
