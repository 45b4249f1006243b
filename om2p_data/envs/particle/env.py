"""Batched particle worlds: one class for the three scenarios, and exact replay of recorded actions."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numba
import numpy as np

from om2p_data.envs.particle import physics, simple_spread, simple_tag, simple_world
from om2p_data.envs.particle.prey import Prey, bundled_prey
from om2p_data.envs.particle.render import draw
from om2p_data.envs.registry import Task
from om2p_data.envs.vector import Step, VectorEnv, available_threads, require_finite
from om2p_data.errors import UserError, unknown

SCENARIOS: dict[str, ModuleType] = {
    "simple_spread": simple_spread,
    "simple_tag": simple_tag,
    "simple_world": simple_world,
}


# Waking a thread takes up to 0.1 ms (in a virtual machine), in which time one thread steps a thousand copies: a smaller
# share for each is a loss.
_COPIES_PER_THREAD = 1024


class ParticleEnv(VectorEnv):
    """E copies of a particle world, stepped by a compiled loop: physics in float64, results in float32.

    All copies start and end together, since nothing ends a particle episode but the clock.

    Args:
        task: row of the task table.
        num_envs: E.
        seed: where the random starts come from (one stream a copy, whatever the number of threads).
        threads: threads to step with at most, by default all cores; it changes no result.
        prey: whom the predators chase; by default the frozen prey that ships with the
            package. Cooperative Navigation has none.

    Raises:
        UserError: a prey where there is none.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        seed: int = 0,
        *,
        threads: int | None = None,
        prey: Prey | None = None,
    ):
        self.task = task
        self.num_envs = num_envs
        self._scenario = SCENARIOS[task.scenario]
        if prey is not None and not self._scenario.HAS_PREY:
            raise UserError(f"{task.name} has no prey: leave `prey` out")
        num_landmarks = len(self._scenario.LANDMARK_SIZES)
        self.prey = (prey or bundled_prey(self._scenario.PREY)) if self._scenario.HAS_PREY else None
        most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
        self.prey_identity = self.prey.identity if self.prey is not None else None
        self._threads = min(available_threads(threads), max(1, num_envs // _COPIES_PER_THREAD), most)
        bodies = len(self._scenario.SIZES)
        self._pos = np.zeros((num_envs, bodies, 2))
        self._vel = np.zeros((num_envs, bodies, 2))
        self._landmarks = np.zeros((num_envs, num_landmarks, 2))
        self.reset(seed)

    def reset(self, seed: int | None = None) -> np.ndarray:
        if seed is not None:
            self._rng = np.random.SeedSequence(seed).generate_state(self.num_envs, np.uint64)
        self._restart()
        self.final_obs = self._team(self._obs)
        self._last_state = self.state()
        return self.final_obs

    def step(self, actions: np.ndarray) -> Step:
        """Advance every copy by one step: see `VectorEnv.step`.

        Raises:
            UserError: actions of another shape than [E, N, 2], or not all finite.
        """
        scenario = self._scenario
        shape = (self.num_envs, self.task.num_agents)
        # One type and memory order, whatever the caller has: each other one would be compiled anew.
        actions = np.ascontiguousarray(actions, np.float32)
        if actions.shape != (*shape, 2):
            raise UserError(f"actions must have shape {(*shape, 2)}, not {actions.shape}")
        require_finite(actions)
        numba.set_num_threads(self._threads)
        if self.prey is not None:
            actions = np.concatenate([actions, self.prey.act(self.prey_obs)[:, None]], axis=1, dtype=np.float32)
        obs = self._empty_obs()
        rewards = np.empty((self.num_envs, len(scenario.SIZES)), np.float32)
        scenario.step(self._pos, self._vel, self._landmarks, actions, rewards, obs)  # actions [E, n, 2]
        self._obs = obs
        self.final_obs = self._team(obs)
        self.final_prey_obs, self.prey_reward = self.prey_obs, rewards[:, -1]
        self._clock += 1
        over = self._clock == self.task.horizon
        if over and self.auto_restart:
            self._last_state = self.state()
            self._restart()
        return self._team(self._obs), self._team(rewards), np.zeros(shape, bool), np.full(shape, over)

    @property
    def final_state(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See `VectorEnv.final_state`. Put together only when asked for: it costs a third of a step."""
        return self._last_state if self._clock == 0 else self.state()

    @property
    def prey_obs(self) -> np.ndarray:
        """What the prey sees now, float32 [E, O]; after a restart, of the new episode."""
        return self._obs[:, -1, : self._scenario.OBS_DIMS[-1]]

    def state(self) -> np.ndarray:
        parts = (self._pos, self._vel, self._landmarks)
        return np.concatenate([part.reshape(self.num_envs, -1) for part in parts], axis=1).astype(np.float32)

    def render(self, index: int = 0) -> np.ndarray:
        return draw(self._scenario, self._pos[index], self._vel[index], self._landmarks[index])

    def film(self, states: np.ndarray, every: int = 1) -> Iterator[np.ndarray]:
        bodies = len(self._scenario.SIZES)
        for state in states[::every]:
            points = state.reshape(-1, 2)  # positions, velocities, landmarks: as in `state`
            yield draw(self._scenario, points[:bodies], points[bodies : 2 * bodies], points[2 * bodies :])

    def _restart(self) -> None:
        numba.set_num_threads(self._threads)
        physics.scatter(self._pos, self._vel, self._landmarks, self._rng, self._scenario.LANDMARK_RANGE)
        self._obs = self._empty_obs()
        self._scenario.observe(self._pos, self._vel, self._landmarks, self._obs)
        self._clock = 0

    def _empty_obs(self) -> np.ndarray:
        return np.empty((self.num_envs, len(self._scenario.OBS_DIMS), max(self._scenario.OBS_DIMS)), np.float32)

    def _team(self, values: np.ndarray) -> np.ndarray:
        """The controlled agents' part of an array over all bodies."""
        return values[:, : self.task.num_agents]


def observed_states(task: Task, obs: np.ndarray) -> np.ndarray:
    """Global states as in `ParticleEnv.state`, which the team's observations show: [..., N, O] -> float32 [..., S]."""
    scenario = SCENARIOS[task.scenario]
    others = 4 + 2 * len(scenario.LANDMARK_SIZES)  # where an observation places the other bodies, the prey last
    after = others + 2 * (len(scenario.SIZES) - 1)
    first = obs[..., 0, :]
    places, speeds = [obs[..., 2:4]], [obs[..., 0:2]]
    if scenario.HAS_PREY:
        places.append((first[..., after - 2 : after] + first[..., 2:4])[..., None, :])
        speeds.append(first[..., None, after : after + 2])
    landmarks = first[..., 4:others].reshape(*first.shape[:-1], -1, 2) + first[..., None, 2:4]
    parts = [np.concatenate(places, axis=-2), np.concatenate(speeds, axis=-2), landmarks]
    return np.concatenate([part.reshape(*first.shape[:-1], -1) for part in parts], axis=-1, dtype=np.float32)


def replay(
    scenario: str,
    init_pos: np.ndarray,
    init_vel: np.ndarray,
    landmark_pos: np.ndarray,
    actions: np.ndarray,
) -> dict[str, np.ndarray]:
    """Step recorded actions from recorded starts, in float64, with every agent's action given (the prey's too).

    Args:
        scenario: `simple_spread`, `simple_tag` or `simple_world`.
        init_pos, init_vel: [E, n, 2], prey last.
        landmark_pos: [E, L, 2].
        actions: [E, T, n, 2].

    Returns:
        The inputs, and float64 `pos`, `vel` [E, T, n, 2] and `rewards` [E, T, n] after each step, and for every agent i
        `init_obs_i` [E, O_i] and `obs_i` [E, T, O_i].

    Raises:
        UserError: no such scenario, an array of the wrong shape, or actions that are not all finite.
    """
    if scenario not in SCENARIOS:
        raise unknown("scenario", scenario, SCENARIOS)
    module = SCENARIOS[scenario]
    bodies, num_landmarks = len(module.SIZES), len(module.LANDMARK_SIZES)
    given = {"init_pos": init_pos, "init_vel": init_vel, "landmark_pos": landmark_pos, "actions": actions}
    given = {key: np.ascontiguousarray(value, np.float64) for key, value in given.items()}
    episodes, steps = (given["actions"].shape[:2]) if given["actions"].ndim == 4 else (len(given["init_pos"]), 0)
    shapes = {
        "init_pos": (episodes, bodies, 2),
        "init_vel": (episodes, bodies, 2),
        "landmark_pos": (episodes, num_landmarks, 2),
        "actions": (episodes, steps, bodies, 2),
    }
    for key, shape in shapes.items():
        if given[key].shape != shape:
            raise UserError(f"{key} of {scenario} must have shape {shape}, not {given[key].shape}")
    require_finite(given["actions"])

    pos, vel = given["init_pos"].copy(), given["init_vel"].copy()
    obs = np.zeros((steps + 1, episodes, bodies, max(module.OBS_DIMS)))
    module.observe(pos, vel, given["landmark_pos"], obs[0])
    out = {
        "pos": np.empty((episodes, steps, bodies, 2)),
        "vel": np.empty((episodes, steps, bodies, 2)),
        "rewards": np.empty((episodes, steps, bodies)),
    }
    rewards = np.empty((episodes, bodies))
    for t in range(steps):
        module.step(pos, vel, given["landmark_pos"], given["actions"][:, t].copy(), rewards, obs[t + 1])
        out["pos"][:, t], out["vel"][:, t], out["rewards"][:, t] = pos, vel, rewards
    for i, dim in enumerate(module.OBS_DIMS):
        out[f"init_obs_{i}"] = obs[0, :, i, :dim].copy()
        out[f"obs_{i}"] = obs[1:, :, i, :dim].transpose(1, 0, 2).copy()
    return given | out
