"""Particle worlds: recorded trajectories of the original ones, closed-form physics, and the vector interface."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from om2p_data.behavior.policy import UniformPolicy
from om2p_data.envs import NetworkPrey, Prey, make
from om2p_data.envs.particle import SCENARIOS, ParticleEnv, replay
from om2p_data.envs.particle.simple_tag import SIZES as TAG_SIZES
from om2p_data.envs.vector import available_threads
from om2p_data.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
TASK_OF = {"simple_spread": "cn", "simple_tag": "pp", "simple_world": "world"}
STARTS = ("init_pos", "init_vel", "landmark_pos")
HORIZON = 25

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS)
each_task = pytest.mark.parametrize("name", [*TASK_OF.values(), "cnd"])


def golden(scenario: str) -> dict[str, np.ndarray]:
    """The recorded episodes: layout in `replay`."""
    with np.load(GOLDEN / f"{scenario}.npz") as record:
        return dict(record)


def start_of(record: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, velocities and landmarks that the recorded episodes start from."""
    return record["init_pos"], record["init_vel"], record["landmark_pos"]


class PreyFromList:
    """A prey that plays a list of actions [T, E, 2] and keeps what it was shown."""

    identity = "list"

    def __init__(self, actions: np.ndarray):
        self.actions = actions
        self.shown: list[np.ndarray] = []

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.shown.append(obs.copy())
        return self.actions[len(self.shown) - 1]


def particle_env(name: str, num_envs: int, seed: int = 0, **options) -> ParticleEnv:
    """`make`, for tests that look inside."""
    env = make(name, num_envs, seed, **options)
    assert isinstance(env, ParticleEnv)
    return env


def uniform(rng: np.random.Generator, env: ParticleEnv) -> np.ndarray:
    """Random team actions, float32 [E, N, 2]."""
    return UniformPolicy(env.task).act(np.empty((env.num_envs, 0)), rng)


def gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances of points [..., 2]."""
    return np.linalg.norm(a - b, axis=-1)


# ------------------------------------------------------------------------------------------ recorded trajectories


@each_scenario
def test_replay_reproduces_the_original_world(scenario: str):
    record = golden(scenario)
    ours = replay(scenario, *start_of(record), record["actions"])
    assert ours.keys() == record.keys()
    for key, expected in record.items():
        assert ours[key].dtype == np.float64
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-9, err_msg=key)


@each_scenario
def test_recorded_episodes_use_all_rules(scenario: str):
    """Contacts, speed limits, catches, flags: a rule that no recording uses would be tested by none."""
    record, world = golden(scenario), SCENARIOS[scenario]
    before = np.concatenate([record["init_pos"][:, None], record["pos"][:, :-1]], axis=1)  # [E, T, n, 2]
    agents = range(len(world.SIZES))
    between_agents = sum(
        int((gaps(before[:, :, i], before[:, :, j]) < world.SIZES[i] + world.SIZES[j]).sum())
        for i, j in combinations(agents, 2)
    )
    assert between_agents > 100
    landmarks = record["landmark_pos"][:, None]  # [E, 1, L, 2]
    for m in range(world.NUM_OBSTACLES):
        touches = [gaps(before[:, :, i], landmarks[:, :, m]) < world.SIZES[i] + world.LANDMARK_SIZES[m] for i in agents]
        assert np.sum(touches) > 10
    if scenario == "simple_spread":
        assert np.unique((record["rewards"][..., 0] - record["rewards"][..., 1]).round(6)).size > 1
        return
    speeds = np.linalg.norm(record["vel"], axis=-1)  # [E, T, n]
    for i in agents:
        assert 0 < np.mean(speeds[..., i] > world.MAX_SPEEDS[i] - 1e-9) < 1
    assert (record["rewards"][..., 0] > 1).any()  # a catch
    prey = np.abs(record["pos"][:, :, -1])
    assert ((prey > 0.9) & (prey < 1.0)).any()
    assert (prey > 1.0).any()
    if scenario == "simple_world":
        for i in agents:
            assert set(np.unique(record[f"obs_{i}"][..., -2:])) == {-1.0, 1.0}


@each_scenario
def test_vector_world_equals_replay_of_the_recordings(scenario: str):
    """Same observations to the bit: the vector world only rounds its results to float32."""
    record = golden(scenario)
    actions = record["actions"].astype(np.float32)
    expected = replay(scenario, *start_of(record), actions)
    team = 3
    prey = PreyFromList(actions[:, :, -1].swapaxes(0, 1)) if SCENARIOS[scenario].HAS_PREY else None
    env = particle_env(TASK_OF[scenario], len(actions), prey=prey)
    env._pos[:], env._vel[:], env._landmarks[:] = start_of(record)
    for t in range(HORIZON):
        _, rewards, _, _ = env.step(actions[:, t, :team])
        np.testing.assert_allclose(rewards, expected["rewards"][:, t, :team], rtol=1e-6, atol=1e-5)
        for i in range(team):
            np.testing.assert_array_equal(env.final_obs[:, i], expected[f"obs_{i}"][:, t].astype(np.float32))
        whole = np.concatenate(
            [expected["pos"][:, t], expected["vel"][:, t], record["landmark_pos"]], axis=1
        )  # [E, B, 2]
        np.testing.assert_array_equal(env.final_state, whole.reshape(len(whole), -1).astype(np.float32))
    if prey is not None:
        shown = np.stack(prey.shown[1:], axis=1)  # the first one is of the start that this test replaced
        np.testing.assert_array_equal(shown, expected["obs_3"][:, :-1].astype(np.float32))


@each_scenario
def test_vector_world_equals_replay_across_restarts(scenario: str):
    rng = np.random.default_rng(5)
    num_envs, episodes, bodies = 6, 3, len(SCENARIOS[scenario].SIZES)
    actions = rng.uniform(-1, 1, (num_envs, episodes * HORIZON, bodies, 2)).astype(np.float32)
    prey = PreyFromList(actions[:, :, -1].swapaxes(0, 1)) if SCENARIOS[scenario].HAS_PREY else None
    env = particle_env(TASK_OF[scenario], num_envs, seed=11, prey=prey)
    first = env.reset(seed=12)
    for episode in range(episodes):
        pos, vel, landmarks = env._pos.copy(), env._vel.copy(), env._landmarks.copy()
        now = slice(episode * HORIZON, (episode + 1) * HORIZON)
        expected = replay(scenario, pos, vel, landmarks, actions[:, now])
        for i in range(3):
            np.testing.assert_array_equal(first[:, i], expected[f"init_obs_{i}"].astype(np.float32))
        for t, joint in enumerate(actions[:, now].swapaxes(0, 1)):
            first, rewards, _, _ = env.step(joint[:, :3])
            np.testing.assert_allclose(rewards, expected["rewards"][:, t, :3], rtol=1e-6, atol=1e-5)
            for i in range(3):
                np.testing.assert_array_equal(env.final_obs[:, i], expected[f"obs_{i}"][:, t].astype(np.float32))
            if prey is not None:  # what a learning prey goes by
                np.testing.assert_array_equal(env.final_prey_obs, expected["obs_3"][:, t].astype(np.float32))
                np.testing.assert_allclose(env.prey_reward, expected["rewards"][:, t, 3], rtol=1e-6, atol=1e-5)


# --------------------------------------------------------------------------------------------- closed-form physics


def spread(pos: list, vel: list | None = None, actions: np.ndarray | None = None, steps: int = 1, landmarks=None):
    """One Cooperative Navigation world from a hand-made start, actions 0 unless given, landmarks far away."""
    start = np.array([pos], float)
    return replay(
        "simple_spread",
        start,
        np.zeros_like(start) if vel is None else np.array([vel], float),
        np.full((1, 3, 2), 50.0) if landmarks is None else np.array([landmarks], float),
        np.zeros((1, steps, 3, 2)) if actions is None else actions,
    )


APART = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]


def test_free_flight_slows_by_a_quarter_a_step():
    speed = np.array([0.4, -1.2])
    world = spread(APART, vel=[speed, [0, 0], [0, 0]], steps=20)
    decay = 0.75 ** np.arange(1, 21)[:, None]
    np.testing.assert_allclose(world["vel"][0, :, 0], speed * decay, rtol=1e-12)
    np.testing.assert_allclose(world["pos"][0, :, 0], 0.1 * speed * np.cumsum(decay, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(world["pos"][0, :, 1:], np.broadcast_to(APART[1:], (20, 2, 2)))


def test_constant_push_reaches_its_terminal_velocity():
    actions = np.broadcast_to([1.0, -0.5], (1, 60, 3, 2))
    world = spread(APART, actions=actions, steps=60)
    np.testing.assert_allclose(world["vel"][0, 0], np.broadcast_to([0.5, -0.25], (3, 2)), rtol=1e-12)  # 5 a dt
    np.testing.assert_allclose(world["vel"][0, -1], np.broadcast_to([2.0, -1.0], (3, 2)), rtol=1e-6)  # over damping


@pytest.mark.parametrize("scenario", ["simple_tag", "simple_world"])
def test_speed_limit_keeps_the_direction(scenario: str):
    pos = np.array([[[0, 0], [10, 0], [0, 10], [10, 10]]], float)
    landmarks = np.full((1, len(SCENARIOS[scenario].LANDMARK_SIZES), 2), 50.0)
    actions = np.broadcast_to([0.8, 0.6], (1, 6, 4, 2))
    world = replay(scenario, pos, np.zeros_like(pos), landmarks, actions)
    direction = np.array([0.8, 0.6])
    np.testing.assert_allclose(world["vel"][0, 0, 0], 0.9 * direction, rtol=1e-12)  # below the limit: 9 a dt
    np.testing.assert_allclose(world["vel"][0, 1:, 0], np.broadcast_to(direction, (5, 2)), rtol=1e-12)
    np.testing.assert_allclose(world["vel"][0, :, 3], np.broadcast_to(1.3 * direction, (6, 2)), rtol=1e-12)  # 1.6 a


def test_overlapping_agents_push_each_other_apart_alike():
    world = spread([[-0.1, 0.0], [0.1, 0.0], [10, 10]])
    # 0.1 deep in a margin of 1e-3: the soft contact is a spring of force 100 a unit, for 0.1 time units.
    np.testing.assert_allclose(world["vel"][0, 0], [[-1, 0], [1, 0], [0, 0]], rtol=1e-12)
    np.testing.assert_allclose(world["pos"][0, 0, :2], [[-0.2, 0], [0.2, 0]], rtol=1e-12)


def test_touching_agents_feel_the_soft_edge():
    world = spread([[-0.15, 0.0], [0.15, 0.0], [10, 10]])
    push = 100 * 1e-3 * np.log(2) * 0.1  # no penetration: log(1 + exp(0)) margins
    np.testing.assert_allclose(world["vel"][0, 0, :2], [[-push, 0], [push, 0]], rtol=1e-9)


def test_coincident_agents_stay_finite():
    world = spread([[0.3, 0.3], [0.3, 0.3], [0.3, 0.3]], steps=5)
    assert all(np.isfinite(values).all() for values in world.values())
    np.testing.assert_array_equal(world["vel"], 0)
    np.testing.assert_array_equal(world["obs_0"][0, :, 10:14], 0)


def test_obstacle_pushes_and_stays():
    pos = np.array([[[0.25, 0.0], [10, 0], [0, 10], [10, 10]]])
    world = replay("simple_tag", pos, 0 * pos, np.array([[[0.0, 0.0], [50, 50]]]), np.zeros((1, 1, 4, 2)))
    np.testing.assert_allclose(world["vel"][0, 0, 0], [0.25, 0], rtol=1e-9)  # 0.025 deep
    np.testing.assert_allclose(world["obs_0"][0, 0, 4:6], [-0.275, 0], rtol=1e-9)  # the obstacle, seen from the agent


# -------------------------------------------------------------------------------------------------------- rewards


def test_covered_landmarks_pay_the_cap():
    places = [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    with np.errstate(all="raise"):
        covered = spread(places, landmarks=places)["rewards"]
    np.testing.assert_array_equal(covered, 30.0)
    one_off = spread(places, landmarks=[*places[:2], [0.0, 1.2]])["rewards"]
    np.testing.assert_allclose(one_off, 10 + 10 + 1 / 0.2, rtol=1e-12)


def test_bumping_costs_both_agents():
    start = [[-0.1, 0.0], [0.1, 0.0], [10, 10]]
    # After the step they are 0.4 apart and no longer touch; running at each other they still do.
    np.testing.assert_allclose(np.ptp(spread(start)["rewards"]), 0, atol=1e-12)
    bump = spread(start, vel=[[4.0, 0], [-4.0, 0], [0, 0]])["rewards"][0, 0]
    np.testing.assert_allclose(bump - bump[2], [-5, -5, 0], atol=1e-12)


def test_catching_pays_the_predators():
    pos = np.array([[[0.0, 0.0], [0.1, 0.0], [3.0, 0.0], [0.05, 0.08]]])
    for scenario, catch in (("simple_tag", 10.0), ("simple_world", 5.0)):
        landmarks = np.full((1, len(SCENARIOS[scenario].LANDMARK_SIZES), 2), 50.0)
        world = replay(scenario, pos, 0 * pos, landmarks, np.zeros((1, 1, 4, 2)))
        distance = gaps(world["pos"][0, 0, :3], world["pos"][0, 0, 3])
        caught = (distance < np.add(SCENARIOS[scenario].SIZES[:3], SCENARIOS[scenario].SIZES[3])).sum()
        expected = catch * caught - 0.1 * distance.sum()
        np.testing.assert_allclose(world["rewards"][0, 0, :3], np.full(3, expected), rtol=1e-12)


@pytest.mark.parametrize("x", [0.5, 0.95, 1.5, 3.0])
def test_prey_pays_for_leaving_and_is_paid_for_food(x: float):
    """The recordings never show a prey that eats."""
    bound = {0.5: 0.0, 0.95: 0.5, 1.5: np.e, 3.0: 10.0}[x]
    pos = np.array([[[5.0, 0], [5, 4], [5, -4], [x, 0.0]]])
    still = np.zeros((1, 1, 4, 2))
    distance = gaps(pos[0, :3], pos[0, 3]).sum()

    def prey_reward(scenario: str, landmarks: list) -> float:
        return replay(scenario, pos, 0 * pos, np.array([landmarks], float), still)["rewards"][0, 0, 3]

    far = [[0, 50]]
    assert prey_reward("simple_tag", far * 2) == pytest.approx(0.1 * distance - bound, rel=1e-12)
    for near, away, eaten in ((0.07, 0.08, 1), (0.07, 0.07, 2), (0.08, 0.09, 0)):
        food = [[x, near], [x, -away]]
        expected = 0.1 * distance - 2 * bound + 2 * eaten + 0.05 * near
        assert prey_reward("simple_world", far + food + far * 2) == pytest.approx(expected, rel=1e-12)


def test_uniform_actions_score_the_published_return():
    """159.6 +- 60.5 a Cooperative Navigation episode; over 40,000 of them the mean is known to 0.3."""
    env = particle_env("cn", 4000, seed=0)
    rng = np.random.default_rng(1)
    returns = []
    for _ in range(10):
        returns.append(sum(env.step(uniform(rng, env))[1].mean(axis=1) for _ in range(HORIZON)))
    assert np.mean(returns) == pytest.approx(159.6, abs=1)
    assert np.std(returns) == pytest.approx(60.5, abs=1.5)


# ----------------------------------------------------------------------------------------------- vector interface


def rollout(env: ParticleEnv, steps: int = 2 * HORIZON + 5, seed: int = 3) -> list[np.ndarray]:
    """All that the world hands over under random actions."""
    rng = np.random.default_rng(seed)
    out = [env.reset(), env.state()]
    for _ in range(steps):
        out += [*env.step(uniform(rng, env)), env.final_obs, env.final_state, env.state()]
    return out


def assert_equal_rollouts(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@each_task
def test_seed_alone_decides_the_episodes(name: str):
    same, other = rollout(particle_env(name, 7, seed=4)), rollout(particle_env(name, 7, seed=5))
    assert_equal_rollouts(same, rollout(particle_env(name, 7, seed=4)))
    assert not np.array_equal(same[0], other[0])
    assert not np.array_equal(same[-1], other[-1])
    assert np.unique(same[0], axis=0).shape[0] == 7  # every copy has a start of its own
    env = particle_env(name, 7, seed=5)
    rollout(env)
    env.reset(seed=4)
    env_again = particle_env(name, 7, seed=4)
    env_again.reset(seed=4)
    assert_equal_rollouts(rollout(env), rollout(env_again))


@each_task
@pytest.mark.skipif(available_threads() < 2, reason="one core only")
def test_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("om2p_data.envs.particle.env._COPIES_PER_THREAD", 1)
    worlds = [particle_env(name, 50, seed=2, threads=threads) for threads in (1, 2)]
    assert [env._threads for env in worlds] == [1, 2]
    assert_equal_rollouts(*(rollout(env) for env in worlds))


@each_task
def test_shapes_types_and_clock(name: str):
    env = particle_env(name, 5)
    task, rng = env.task, np.random.default_rng(0)
    for step in range(1, 3 * HORIZON + 1):
        obs, rewards, terminated, truncated = env.step(uniform(rng, env))
        assert obs.shape == env.final_obs.shape == (5, task.num_agents, task.obs_dim)
        assert rewards.shape == terminated.shape == truncated.shape == (5, task.num_agents)
        assert env.state().shape == env.final_state.shape == (5, task.state_dim)
        assert {values.dtype for values in (obs, rewards, env.final_obs, env.state(), env.final_state)} == {
            np.dtype(np.float32)
        }
        assert terminated.dtype == truncated.dtype == bool
        assert not terminated.any()
        assert (truncated == (step % HORIZON == 0)).all()
        assert all(np.isfinite(values).all() for values in (obs, rewards, env.state()))


@each_task
def test_restart_hands_over_what_the_step_led_to(name: str):
    env, rng = particle_env(name, 4, seed=9), np.random.default_rng(0)
    team, bodies = env.task.num_agents, env._pos.shape[1]
    before = env.state()
    for step in range(1, HORIZON + 1):
        before = env.state()
        obs, _, _, truncated = env.step(uniform(rng, env))
        for seen, state in ((obs, env.state()), (env.final_obs, env.final_state)):
            positions = state[:, : 2 * bodies].reshape(4, bodies, 2)
            np.testing.assert_array_equal(seen[:, :, 2:4], positions[:, :team])
        # The final state continues the last one: landmarks stay, bodies move by a tenth of their velocity.
        positions, velocities = (env.final_state[:, k * 2 * bodies : (k + 1) * 2 * bodies] for k in (0, 1))
        np.testing.assert_allclose(positions, before[:, : 2 * bodies] + 0.1 * velocities, atol=1e-6)
        np.testing.assert_array_equal(env.final_state[:, 4 * bodies :], before[:, 4 * bodies :])
        assert truncated.all() == (step == HORIZON)
        assert np.array_equal(obs, env.final_obs) == (step < HORIZON)
    start = env.state()
    np.testing.assert_array_equal(start[:, 2 * bodies : 4 * bodies], 0)
    assert (np.abs(start) <= 1).all()
    assert not np.array_equal(start[:, 4 * bodies :], before[:, 4 * bodies :])


@each_scenario
def test_starts_are_uniform_and_at_rest(scenario: str):
    env, landmark_range = particle_env(TASK_OF[scenario], 4000), 1.0 if scenario == "simple_spread" else 0.9
    env.reset(seed=0)
    np.testing.assert_array_equal(env._vel, 0)
    for places, half in ((env._pos, 1.0), (env._landmarks, landmark_range)):
        columns = places.reshape(len(places), -1) / half  # [E, 2 n]
        assert (np.abs(columns).max(axis=0) <= 1).all()
        assert (np.abs(columns).max(axis=0) > 0.998).all()
        np.testing.assert_allclose(columns.mean(axis=0), 0, atol=0.04)
        np.testing.assert_allclose(np.cov(columns.T), np.eye(columns.shape[1]) / 3, atol=0.03)


@each_task
def test_returned_arrays_are_never_written_again(name: str):
    env, rng = particle_env(name, 3), np.random.default_rng(0)
    kept = [env.reset()]
    snapshots = [kept[0].copy()]
    for _ in range(HORIZON + 5):
        new = [*env.step(uniform(rng, env)), env.final_obs, env.final_state, env.state()]
        kept += new
        snapshots += [values.copy() for values in new]
    assert_equal_rollouts(kept, snapshots)


def test_actions_of_any_layout_and_type_are_the_same_actions():
    worlds = [particle_env(name, 6, seed=1) for name in ("cn", "cn", "pp", "pp")]
    actions = uniform(np.random.default_rng(0), worlds[0])
    agents_first = np.ascontiguousarray(actions.swapaxes(0, 1)).swapaxes(0, 1).astype(np.float64, order="K")
    assert not agents_first.flags.c_contiguous
    for plain, other in (worlds[:2], worlds[2:]):
        for ours, theirs in zip(plain.step(actions), other.step(agents_first), strict=True):
            np.testing.assert_array_equal(ours, theirs)


# ----------------------------------------------------------------------------------------------------------- prey


def chase(prey: Prey | None, episodes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Predators that run straight at the prey: distance of the nearest [T, E], and where the prey is [T, E, 2]."""
    env = particle_env("pp", 256, seed=6, prey=prey)
    nearest, places = [], []
    obs = env.reset()
    for _ in range(episodes * HORIZON):
        to_prey = obs[:, :, 12:14]
        obs, _, _, _ = env.step(to_prey / (np.linalg.norm(to_prey, axis=-1, keepdims=True) + 1e-6))
        nearest.append(np.linalg.norm(env.final_obs[:, :, 12:14], axis=-1).min(axis=1))
        places.append(env.final_obs[:, 0, 2:4] + env.final_obs[:, 0, 12:14])
    return np.array(nearest), np.array(places)


class Still:
    """A prey that stays where it is."""

    identity = "still"

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 2), np.float32)


def test_the_bundled_prey_flees_and_stays_in_reach():
    fleeing, places = chase(None)
    caught = np.mean(fleeing < TAG_SIZES[0] + TAG_SIZES[3])
    still, _ = chase(Still())
    assert caught < 0.8 * np.mean(still < TAG_SIZES[0] + TAG_SIZES[3])
    assert np.median(fleeing) > np.median(still)
    assert np.quantile(np.abs(places), 0.99) < 1.3
    assert np.abs(places).max() < 2


@pytest.mark.parametrize(("name", "scenario"), [("pp", "simple_tag"), ("world", "simple_world")])
def test_custom_prey_is_the_one_that_runs(name: str, scenario: str):
    prey = PreyFromList(np.broadcast_to(np.array([1, 0], np.float32), (HORIZON, 2, 2)))
    env = particle_env(name, 2, prey=prey)
    assert env.prey is prey
    env._pos[:] = np.array([[50, 0], [60, 0], [70, 0], [0, 0]])  # nobody near
    env._landmarks[:] = 90
    for t in range(3):
        env.step(np.zeros((2, 3, 2)))
        assert prey.shown[t].shape == (2, SCENARIOS[scenario].OBS_DIMS[-1])
    np.testing.assert_allclose(env._vel[:, 3], [[1.3, 0], [1.3, 0]], rtol=1e-12)
    np.testing.assert_allclose(env._pos[:, 3], [[0.39, 0], [0.39, 0]], rtol=1e-12)
    assert isinstance(particle_env(name, 1).prey, NetworkPrey)


# --------------------------------------------------------------------------------------------------------- errors


def test_unknown_names_offer_the_nearest():
    with pytest.raises(UserError, match=r"unknown scenario 'simple_tags': did you mean 'simple_tag'"):
        replay("simple_tags", *[np.zeros(1)] * 4)
    with pytest.raises(UserError, match=r"unknown environment 'predator_prey': did you mean 'predator-prey'"):
        make("predator_prey")


@pytest.mark.parametrize("key", [*STARTS, "actions"])
@each_scenario
def test_replay_names_the_array_of_a_wrong_shape(scenario: str, key: str):
    record = golden(scenario)
    given = {name: record[name] for name in (*STARTS, "actions")}
    for wrong in (given[key][:, 1:] if key != "actions" else given[key][:, :, 1:], given[key][..., :1], given[key][0]):
        with pytest.raises(UserError, match="must have shape"):
            replay(scenario, **{**given, key: wrong})
    with pytest.raises(UserError, match=f"{key} of {scenario} must have shape"):
        replay(scenario, **{**given, key: given[key][..., :1]})


@pytest.mark.parametrize("name", TASK_OF.values())
@pytest.mark.parametrize("shape", [(3, 3, 2), (4, 2, 2), (4, 4, 2), (4, 3, 1), (4, 3), (4, 6)])
def test_step_refuses_a_wrong_shape(name: str, shape: tuple[int, ...]):
    env = particle_env(name, 4)
    with pytest.raises(UserError, match=r"actions must have shape \(4, 3, 2\), not"):
        env.step(np.zeros(shape, np.float32))


def test_impossible_worlds_are_refused():
    with pytest.raises(UserError, match="cooperative-navigation has no prey"):
        make("cn", prey=Still())
    for name in TASK_OF.values():
        with pytest.raises(UserError, match="num_envs must be 1 or more, not 0"):
            make(name, 0)
    with pytest.raises(ValueError, match="threads must be 1 or more, not 0"):
        make("cn", threads=0)


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("100000", None), ("0", None), ("4,2", None), ("", None)])
def test_fewer_threads_than_cores_where_the_environment_wants_that(monkeypatch, value, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = available_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert available_threads() == (expected or cores)
    assert available_threads(3) == 3
