"""Recorded states as pictures: the worlds that observations show, where a body was, and what is drawn of it."""

from __future__ import annotations

import numpy as np
import pytest

from om2p_data.envs import TASKS, Family, make
from om2p_data.envs.locomotion import LocomotionEnv
from om2p_data.envs.particle import observed_states
from om2p_data.envs.registry import find

LOCOMOTION = [task.name for task in TASKS.values() if task.family is Family.LOCOMOTION]


@pytest.mark.parametrize("name", ["cn", "pp", "world"])
def test_observations_show_the_whole_particle_world(name: str) -> None:
    env = make(name, num_envs=3, seed=4)
    obs = [env.reset()]
    states = [env.state()]
    rng = np.random.default_rng(0)
    for _ in range(4):
        obs.append(env.step(rng.uniform(-1, 1, (3, 3, 2)))[0])
        states.append(env.state())
    found = observed_states(find(name), np.array(obs))
    assert found.shape == (5, 3, env.task.state_dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, states, atol=1e-6)


@pytest.mark.parametrize("name", ["cn", "pp", "world"])
def test_particle_film_is_what_would_have_been_rendered(name: str) -> None:
    env = make(name, num_envs=2, seed=1)
    env.reset()
    states, pictures = [], []
    for _ in range(3):
        env.step(np.full((2, 3, 2), 0.5))
        states.append(env.state()[1])
        pictures.append(env.render(1))
    other = make(name, seed=9)
    before = other.state()
    film = list(other.film(np.array(states)))
    # Drawn from positions rounded to single precision, an edge may fall on another pixel's side.
    for found, wanted in zip(film, pictures, strict=True):
        assert np.mean(np.any(np.abs(found.astype(int) - wanted) > 8, axis=2)) < 1e-3
    assert np.abs(film[0].astype(int) - film[2]).max() > 50
    np.testing.assert_array_equal(other.state(), before)


@pytest.mark.parametrize("name", LOCOMOTION)
def test_the_place_on_the_floor_is_put_back(name: str) -> None:
    """Summed up from the velocities, it ends within a few percent of where the body is."""
    env = make(name, seed=3)
    assert isinstance(env, LocomotionEnv)
    env.auto_restart = False
    env.reset()
    body = env._team.body
    root = 2 if name.startswith("ant") else 1  # an ant moves sideways too
    states, places = [env.state()[0]], [body.simulation.qpos[0, :root].copy()]
    rng = np.random.default_rng(1)
    for _ in range(60):
        env.step(rng.uniform(-1, 1, (1, env.task.num_agents, env.task.act_dim)))
        states.append(env.state()[0])
        places.append(body.simulation.qpos[0, :root].copy())
    moved = np.array(places) - places[0]
    found = body.places(np.array(states))
    assert np.abs(moved).max() > 0.03
    np.testing.assert_allclose(found, moved, atol=0.1 * np.abs(moved).max())


@pytest.mark.parametrize("name", LOCOMOTION)
def test_recorded_bodies_are_posed_as_recorded(name: str) -> None:
    env = make(name, seed=2)
    assert isinstance(env, LocomotionEnv)
    env.reset()
    states = [env.state()[0]]
    for _ in range(2):
        env.step(np.full((1, env.task.num_agents, env.task.act_dim), 0.7))
        states.append(env.state()[0])
    body = env._team.body
    shown = list(body.recorded(np.array(states)))
    assert len(shown) == 3
    for data, state in zip(shown, states, strict=True):
        for joint in body.joints():
            own = body.model.joint(joint.name)
            assert data.qpos[own.qposadr[0]] == state[joint.angle]
            assert data.qvel[own.dofadr[0]] == state[joint.velocity]
            assert (joint.low, joint.high) == tuple(own.range)
    assert len(body.joints()) == body.model.nu
