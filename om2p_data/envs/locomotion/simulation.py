"""E copies of a MuJoCo model on several threads, in float64. It knows physics, but no task."""

# MuJoCo has no type stubs for its compiled names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import abc
import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
from mujoco.batch import Batch


def load_model(name: str) -> mujoco.MjModel:
    """The body of that file name in gymnasium's assets."""
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / name))
    # gymnasium's files use an attribute that MuJoCo 4 deprecates: not the user's doing, and MjModel.from_xml_path
    # would even leave a MUJOCO_LOG.TXT in the working directory.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="compiler attribute")
        return spec.compile()


class Simulation(abc.ABC):
    """E copies of a model. A trajectory depends on its start and its controls alone, not on the number of threads.

    Attributes:
        model: what is simulated.
        qpos: [E, nq], MuJoCo's generalised positions (m, rad, quaternions).
        qvel: [E, nv], the velocities (m/s, rad/s).
        ctrl: [E, nu], controls of the next steps; MuJoCo clamps them to their range when it applies them.
    """

    model: mujoco.MjModel
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray

    @abc.abstractmethod
    def place(self, copies: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put the K copies of those indices, ascending, into qpos [K, nq] and qvel [K, nv], without a past."""

    @abc.abstractmethod
    def advance(self, steps: int) -> None:
        """Step every copy that many times under `ctrl`."""


class BatchSimulation(Simulation):
    """On MuJoCo's own threads: the fastest, and it tells positions and velocities."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, threads: int):
        self.model = model
        self.batch = Batch(model, num_envs, min(threads, num_envs))
        # Live views into the batch: what is written here is the state of the next call.
        self.qpos = self.batch.bind("qpos")
        self.qvel = self.batch.bind("qvel")
        self.ctrl = self.batch.bind("ctrl")

    def place(self, copies: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        # The contact solver starts each step from its last solution (the warm start), so that has to be forgotten too:
        # with another one, trajectories part within 100 steps. The calls are those of gymnasium's own reset.
        self.batch.reset(copies, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[copies] = qpos
        self.qvel[copies] = qvel
        self.batch.forward(copies)

    def advance(self, steps: int) -> None:
        self.batch.step(nstep=steps)


class ContactSimulation(Simulation):
    """Like `BatchSimulation`, and it tells the contact forces, which MuJoCo's batch does not compute.

    `mj_rnePostConstraint` has to follow the very step whose forces are wanted: a force sensor would make MuJoCo call
    it, but with the Runge-Kutta integrator at another place of the step. So one MuJoCo data a thread is loaded with
    copy after copy; the interpreter is let go during a step, and what it does between takes 2% of the time.

    Attributes:
        cfrc_ext: [E, nbody, 6], torque and force (N m, N) of contacts on each body in the last step; 0 at a start.
        xpos: [E, nbody, 3], where the bodies were (m) when these were computed.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, threads: int):
        self.model = model
        self.qpos = np.zeros((num_envs, model.nq))
        self.qvel = np.zeros((num_envs, model.nv))
        self.ctrl = np.zeros((num_envs, model.nu))
        self.cfrc_ext = np.zeros((num_envs, model.nbody, 6))
        self.xpos = np.zeros((num_envs, model.nbody, 3))
        self._warmstart = np.zeros((num_envs, model.nv))  # the solver's last solution
        bounds = np.linspace(0, num_envs, min(threads, num_envs) + 1).astype(int)
        self._shares = [(range(*share), mujoco.MjData(model)) for share in itertools.pairwise(bounds)]
        self._pool = ThreadPoolExecutor(len(self._shares))

    def place(self, copies: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        _, data = self._shares[0]
        for copy, position, velocity in zip(copies, qpos, qvel, strict=True):
            mujoco.mj_resetData(self.model, data)  # it forgets the contact forces and the warm start
            data.qpos[:], data.qvel[:] = position, velocity
            mujoco.mj_forward(self.model, data)
            for ours, theirs in self._fields(data):
                ours[copy] = theirs

    def advance(self, steps: int) -> None:
        if len(self._shares) == 1:  # no need to wake another thread
            self._advance(*self._shares[0], steps)
            return
        for done in [self._pool.submit(self._advance, *share, steps) for share in self._shares]:
            done.result()

    def _advance(self, copies: range, data: mujoco.MjData, steps: int) -> None:
        model, ctrl = self.model, data.ctrl
        fields = self._fields(data)
        for copy in copies:
            for ours, theirs in fields[:3]:
                theirs[:] = ours[copy]
            ctrl[:] = self.ctrl[copy]
            mujoco.mj_step(model, data, nstep=steps)
            mujoco.mj_rnePostConstraint(model, data)
            for ours, theirs in fields:
                ours[copy] = theirs

    def _fields(self, data: mujoco.MjData) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Our array and the view into `data` of all that a step changes; the first three are what it starts from."""
        return (
            (self.qpos, data.qpos),
            (self.qvel, data.qvel),
            (self._warmstart, data.qacc_warmstart),
            (self.cfrc_ext, data.cfrc_ext),
            (self.xpos, data.xpos),
        )
