"""The locomotion tasks behind the vector interface, and exact replay of recorded actions."""

# MuJoCo has no type stubs for its compiled names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator

import mujoco
import numpy as np

from om2p_data.envs.locomotion.bodies import SETUPS, Joint
from om2p_data.envs.registry import Task, find
from om2p_data.envs.vector import Step, VectorEnv, available_threads, require_finite
from om2p_data.errors import UserError

_PICTURE = (320, 480)  # height, width in pixels


def _array(name: str, values: np.ndarray, *shape: int | str) -> np.ndarray:
    """`values` as float64, after a check of its shape; a letter in `shape` stands for any size from 1 on."""
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        size >= 1 if isinstance(want, str) else size == want for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise UserError(f"{name} must have shape ({', '.join(map(str, shape))}), not {array.shape}")
    return array


class _Team:
    """E copies of a task in float64: its body, moved and seen agent by agent. It knows no episodes."""

    def __init__(self, task: Task, num_envs: int, threads: int | None) -> None:
        if task.name not in SETUPS:
            raise UserError(f"{task.name!r} is not a locomotion task: valid: {', '.join(SETUPS)}")
        if num_envs < 1:
            raise UserError(f"num_envs must be 1 or more, not {num_envs}")
        setup = SETUPS[task.name]
        self.body = setup.body(num_envs, available_threads(threads))
        self.view = setup.view
        self._source = np.argsort(setup.actuators)  # for each actuator, the entry of the joint action that drives it

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Advance by one step of the task: actions [E, N, A] -> team rewards [E]."""
        return self.body.step(actions.reshape(len(actions), -1)[:, self._source])


class LocomotionEnv(VectorEnv):
    """E copies of a locomotion task behind the vector interface. Physics in float64, arrays out in float32.

    The reward is shared and its body's own (see `bodies`). Trajectories do not depend on `threads`.

    Args:
        task: a row of the task table with a MuJoCo body.
        num_envs: E.
        seed: of the reset noise; `reset(seed)` starts it anew.
        threads: threads to step on; the cores of this process unless given.

    Raises:
        UserError: not a locomotion task, or no copies.

    Source: Gymnasium-Robotics `mamujoco_v1` on gymnasium's `-v5` bodies.
    """

    def __init__(self, task: Task, num_envs: int = 1, seed: int = 0, *, threads: int | None = None) -> None:
        self.task = task
        self.num_envs = num_envs
        self._team = _Team(task, num_envs, threads)
        self._rng = np.random.default_rng(seed)
        self._age: np.ndarray | None = None  # [E] steps since the episode began, once there is one
        self._renderer: mujoco.Renderer | None = None

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start E new episodes: see `VectorEnv.reset`. Returns obs, float32 [E, N, O]."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._age = np.zeros(self.num_envs, dtype=np.int64)
        self._team.body.start(self._rng, np.arange(self.num_envs))
        self.final_obs, self._final_state = self._observe()
        return self.final_obs.copy()

    def step(self, actions: np.ndarray) -> Step:
        """Advance every copy by one step: see `VectorEnv.step`.

        Raises:
            UserError: actions of another shape than [E, N, A] or not all finite, or no `reset` before.
        """
        if self._age is None:
            raise UserError("call reset() before step()")
        task = self.task
        actions = _array("actions", actions, self.num_envs, task.num_agents, task.act_dim)
        require_finite(actions)
        team_reward = self._team.step(actions)
        self._age += 1
        self.final_obs, self._final_state = self._observe()
        terminated = self._team.body.fallen()
        truncated = self._age >= task.horizon
        ended = np.flatnonzero(terminated | truncated)
        obs = self.final_obs.copy()
        if ended.size and self.auto_restart:
            self._team.body.start(self._rng, ended)
            self._age[ended] = 0
            obs[ended] = self._team.view(self._team.body.state()[ended])
        return (
            obs,
            self._for_each_agent(team_reward.astype(np.float32)),
            self._for_each_agent(terminated),
            self._for_each_agent(truncated),
        )

    @property
    def final_state(self) -> np.ndarray:
        return self._final_state

    def state(self) -> np.ndarray:
        """Global state, float32 [E, S]: positions (m, rad) without the place on the floor, velocities, contact forces
        where the body tells them.
        """
        return self._team.body.state().astype(np.float32)

    def render(self, index: int = 0) -> np.ndarray:
        """Picture of copy `index` from a camera that runs beside it, uint8 [320, 480, 3].

        It needs no display: unless MUJOCO_GL says otherwise, a Linux machine without one draws through EGL.

        Raises:
            UserError: no such copy, or no OpenGL on this machine; the message says what to install or set.
        """
        if not 0 <= index < self.num_envs:
            raise UserError(f"index must be 0 to {self.num_envs - 1}, not {index}")
        return self._picture(self._team.body.drawable(index))

    def film(self, states: np.ndarray, every: int = 1) -> Iterator[np.ndarray]:
        return map(self._picture, self._team.body.recorded(states, every))

    def joints(self) -> list[Joint]:
        """The body's limited hinges, and where the state holds them."""
        return self._team.body.joints()

    @property
    def forward_speed_entry(self) -> int:
        """Where the state holds the forward speed (m/s)."""
        return self._team.body.velocities_entry

    def close(self) -> None:
        """Release the renderer. The threads end with the object."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _picture(self, data: mujoco.MjData) -> np.ndarray:
        if self._renderer is None:
            self._renderer = _open_renderer(self._team.body.model)
        self._renderer.update_scene(data, camera="track")
        return self._renderer.render()

    def _observe(self) -> tuple[np.ndarray, np.ndarray]:
        state = self._team.body.state()
        return self._team.view(state).astype(np.float32), state.astype(np.float32)

    def _for_each_agent(self, values: np.ndarray) -> np.ndarray:
        return np.repeat(values[:, None], self.task.num_agents, axis=1)  # [E] -> [E, N]


def _open_renderer(model: mujoco.MjModel) -> mujoco.Renderer:
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    headless = sys.platform.startswith("linux") and not display and not os.environ.get("MUJOCO_GL")
    if headless:
        os.environ["MUJOCO_GL"] = "egl"
    try:
        # MuJoCo reads MUJOCO_GL when it is first imported, which is long past: let it choose again.
        importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))
        return mujoco.Renderer(model, *_PICTURE)
    except Exception as error:  # every OpenGL library fails in its own way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"cannot draw with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} ({reason}): on Linux install libegl1 "
            "and libgl1 and set MUJOCO_GL=egl, or install libosmesa6 and set MUJOCO_GL=osmesa"
        ) from error
    finally:
        if headless:  # a child process without EGL could not even import mujoco with the variable set
            del os.environ["MUJOCO_GL"]


def replay(
    task: str, qpos: np.ndarray, qvel: np.ndarray, actions: np.ndarray, *, threads: int | None = None
) -> dict[str, np.ndarray]:
    """Run given actions from given positions and velocities, E copies at once, without restarts.

    Args:
        task: name or alias of a locomotion task.
        qpos: [E, nq], MuJoCo's generalised positions (m, rad) at the start.
        qvel: [E, nv], the velocities (m/s, rad/s) at the start.
        actions: [E, T, N, A], all agents' actions; not clipped, as in `LocomotionEnv.step`.
        threads: threads to step on; the cores of this process unless given. It changes no result.

    Returns:
        float64 `obs` [E, T, N, O] and `state` [E, T, S] after each step, float64 team `rewards` [E, T], bool
        `terminated` [E, T], true where the body has fallen (it is stepped on all the same), and bool `truncated`
        [E, T], true from the task's horizon on.

    Raises:
        UserError: unknown task, one that is not locomotion, an array of the wrong shape, or actions that are not all
            finite.
    """
    row = find(task)
    copies = max(1, len(np.atleast_1d(qpos)))
    team = _Team(row, copies, threads)
    body = team.body
    qpos = _array("qpos", qpos, "E", body.model.nq)
    qvel = _array("qvel", qvel, copies, body.model.nv)
    actions = _array("actions", actions, copies, "T", row.num_agents, row.act_dim)
    require_finite(actions)

    body.simulation.place(np.arange(copies), qpos, qvel)
    rewards, states, fallen = [], [], []
    for step_actions in actions.swapaxes(0, 1):  # [E, N, A]
        rewards.append(team.step(step_actions))
        states.append(body.state())
        fallen.append(body.fallen())
    state = np.stack(states, axis=1)  # [E, T, S]
    steps = state.shape[1]
    return {
        "obs": team.view(state),
        "rewards": np.stack(rewards, axis=1),
        "state": state,
        "terminated": np.stack(fallen, axis=1),
        "truncated": np.broadcast_to(np.arange(1, steps + 1) >= row.horizon, (copies, steps)).copy(),
    }
