"""Locomotion worlds: one MuJoCo body whose joints are shared out among agents, many copies stepped together.

The tasks are those of Gymnasium-Robotics' MAMuJoCo (`mamujoco_v1`), step for step. The copies run on MuJoCo's own
threads (`mujoco.batch`); the body models are the files of the installed gymnasium package.
"""

# MuJoCo has no type stubs for its compiled names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
from mujoco.batch import Batch

from om2p_data.envs.registry import Task, find
from om2p_data.envs.vector import Step, VectorEnv, available_threads
from om2p_data.errors import UserError

_PICTURE = (320, 480)  # height, width in pixels


@dataclass(frozen=True)
class _Body:
    """How one task uses its MuJoCo model. The global state is qpos without its first entry, the way run, then qvel.

    Attributes:
        model: file in gymnasium's assets.
        physics_steps: MuJoCo steps in one step of the task.
        control_cost: reward lost per unit of squared action, summed over all joints.
        reset_noise: half width of the uniform noise on qpos and deviation of the normal noise on qvel.
        sees: for each agent, the entries of the global state that it observes.
        floor_period: metres after which the drawn floor looks the same again.
    """

    model: str
    physics_steps: int
    control_cost: float
    reset_noise: float
    sees: tuple[tuple[int, ...], ...]
    floor_period: float


_BODIES = {
    # Constants of gymnasium's HalfCheetah-v5; `sees` is mamujoco_v1's 2x3 with agent_obsk=0, global_categories=().
    "halfcheetah-2x3": _Body(
        model="half_cheetah.xml",
        physics_steps=5,
        control_cost=0.1,
        reset_noise=0.1,
        sees=((4, 13, 3, 12, 2, 11), (7, 16, 6, 15, 5, 14)),
        floor_period=80 / 60,
    ),
}


def _load(name: str) -> mujoco.MjModel:
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / name))
    # gymnasium's files use an attribute that MuJoCo 4 deprecates: not the user's doing, and MjModel.from_xml_path
    # would even leave a MUJOCO_LOG.TXT in the working directory.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="compiler attribute")
        return spec.compile()


def _array(name: str, values: np.ndarray, *shape: int | str) -> np.ndarray:
    """`values` as float64, after a check of its shape; a letter in `shape` stands for any size from 1 on."""
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        size >= 1 if isinstance(want, str) else size == want for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise UserError(f"{name} must have shape ({', '.join(map(str, shape))}), not {array.shape}")
    return array


class _Bodies:
    """E copies of a task's body in float64. It knows dynamics, rewards and views, but no episodes."""

    def __init__(self, task: Task, num_envs: int, threads: int | None) -> None:
        if task.name not in _BODIES:
            raise UserError(f"{task.name!r} is not a locomotion task: valid: {', '.join(_BODIES)}")
        if num_envs < 1:
            raise UserError(f"num_envs must be 1 or more, not {num_envs}")
        self.body = _BODIES[task.name]
        self.model = _load(self.body.model)
        self.batch = Batch(self.model, num_envs, min(available_threads(threads), num_envs))
        # Live views into the batch: what is written here is the state of the next call.
        self._qpos = self.batch.bind("qpos")  # [E, nq]
        self._qvel = self.batch.bind("qvel")  # [E, nv]
        self._ctrl = self.batch.bind("ctrl")  # [E, nu]
        self._seconds = self.model.opt.timestep * self.body.physics_steps
        self._sees = np.array(self.body.sees)  # [N, O]

    def place(self, copies: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put the K copies of those indices, ascending, into qpos [K, nq] and qvel [K, nv]."""
        # The contact solver starts each step from its last solution (the warm start), so that has to be forgotten too:
        # with another one, trajectories part within 100 steps. The calls are those of gymnasium's own reset.
        self.batch.reset(copies, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self._qpos[copies] = qpos
        self._qvel[copies] = qvel
        self.batch.forward(copies)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Advance by one step of the task: actions [E, N, A] -> team rewards [E]."""
        controls = actions.reshape(len(actions), -1)  # [E, nu]
        before = self._qpos[:, 0].copy()  # [E]
        self._ctrl[:] = controls
        self.batch.step(nstep=self.body.physics_steps)
        # MuJoCo clamps the controls that it applies; the cost is of the actions as given, as in gymnasium.
        effort = np.einsum("ej,ej->e", controls, controls)
        return (self._qpos[:, 0] - before) / self._seconds - self.body.control_cost * effort

    def state(self) -> np.ndarray:
        """Global state, [E, S]."""
        return np.concatenate((self._qpos[:, 1:], self._qvel), axis=1)

    def view(self, state: np.ndarray) -> np.ndarray:
        """What each agent sees of the global state: [..., S] -> [..., N, O]."""
        return np.take(state, self._sees, axis=-1)


class LocomotionEnv(VectorEnv):
    """E copies of a locomotion task behind the vector interface. Physics in float64, arrays out in float32.

    The reward is shared: forward speed in m/s minus the control cost. Trajectories do not depend on `threads`.

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
        self._bodies = _Bodies(task, num_envs, threads)
        self._rng = np.random.default_rng(seed)
        self._age: np.ndarray | None = None  # [E] steps since the episode began, once there is one
        self._renderer: mujoco.Renderer | None = None

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start E new episodes: see `VectorEnv.reset`. Returns obs, float32 [E, N, O]."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._age = np.zeros(self.num_envs, dtype=np.int64)
        self._restart(np.arange(self.num_envs))
        self.final_obs, self._final_state = self._observe()
        return self.final_obs.copy()

    def step(self, actions: np.ndarray) -> Step:
        """Advance every copy by one step: see `VectorEnv.step`.

        Raises:
            UserError: actions of another shape than [E, N, A], or no `reset` before.
        """
        if self._age is None:
            raise UserError("call reset() before step()")
        task = self.task
        team_reward = self._bodies.step(_array("actions", actions, self.num_envs, task.num_agents, task.act_dim))
        self._age += 1
        self.final_obs, self._final_state = self._observe()
        terminated = np.zeros(self.num_envs, dtype=bool)  # a cheetah on its back runs on
        truncated = self._age >= task.horizon
        ended = np.flatnonzero(terminated | truncated)
        if ended.size and self.auto_restart:
            self._restart(ended)
            self._age[ended] = 0
            obs, _ = self._observe()
        else:
            obs = self.final_obs.copy()
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
        """Global state, float32 [E, S]: positions (m, rad) without the forward one, then velocities."""
        return self._bodies.state().astype(np.float32)

    def render(self, index: int = 0) -> np.ndarray:
        """Picture of copy `index` from a camera that runs beside it, uint8 [320, 480, 3].

        It needs no display: unless MUJOCO_GL says otherwise, a Linux machine without one draws through EGL.

        Raises:
            UserError: no such copy, or no OpenGL on this machine; the message says what to install or set.
        """
        if not 0 <= index < self.num_envs:
            raise UserError(f"index must be 0 to {self.num_envs - 1}, not {index}")
        bodies = self._bodies
        if self._renderer is None:
            self._renderer = _open_renderer(bodies.model)
        data = bodies.batch.get_data(index)
        # The floor is drawn 40 m each way, and a good team runs 200: keep to the middle, where the pattern matches.
        data.qpos[0] %= bodies.body.floor_period
        mujoco.mj_forward(bodies.model, data)
        self._renderer.update_scene(data, camera="track")
        return self._renderer.render()

    def close(self) -> None:
        """Release the renderer. The threads end with the object."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _restart(self, copies: np.ndarray) -> None:
        model, noise = self._bodies.model, self._bodies.body.reset_noise
        qpos = model.qpos0 + self._rng.uniform(-noise, noise, (len(copies), model.nq))
        qvel = noise * self._rng.standard_normal((len(copies), model.nv))
        self._bodies.place(copies, qpos, qvel)

    def _observe(self) -> tuple[np.ndarray, np.ndarray]:
        state = self.state()
        return self._bodies.view(state), state

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
        `truncated` [E, T], true from the task's horizon on.

    Raises:
        UserError: unknown task, one that is not locomotion, or an array of the wrong shape.
    """
    row = find(task)
    copies = max(1, len(np.atleast_1d(qpos)))
    bodies = _Bodies(row, copies, threads)
    qpos = _array("qpos", qpos, "E", bodies.model.nq)
    qvel = _array("qvel", qvel, copies, bodies.model.nv)
    actions = _array("actions", actions, copies, "T", row.num_agents, row.act_dim)

    bodies.place(np.arange(copies), qpos, qvel)
    rewards, states = [], []
    for step_actions in actions.swapaxes(0, 1):  # [E, N, A]
        rewards.append(bodies.step(step_actions))
        states.append(bodies.state())
    state = np.stack(states, axis=1)  # [E, T, S]
    steps = state.shape[1]
    return {
        "obs": bodies.view(state),
        "rewards": np.stack(rewards, axis=1),
        "state": state,
        "truncated": np.broadcast_to(np.arange(1, steps + 1) >= row.horizon, (copies, steps)).copy(),
    }
