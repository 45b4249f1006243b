"""What the locomotion tasks are made of: bodies with their rewards, and what each agent sees and moves."""

# MuJoCo has no type stubs for its compiled names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np

from om2p_data.envs.locomotion.simulation import BatchSimulation, ContactSimulation, Simulation, load_model


@dataclass(frozen=True)
class Joint:
    """A hinge with limits: where the state holds its angle and angular velocity, and the limits (rad)."""

    name: str
    angle: int
    velocity: int
    low: float
    high: float


class Body(abc.ABC):
    """E copies of one of gymnasium's `-v5` bodies: its start, its rewards and what counts as its fall.

    Attributes:
        simulation: the copies.

    Args:
        num_envs: E.
        threads: threads to step on.
    """

    simulation: Simulation
    _MODEL: ClassVar[str]  # file in gymnasium's assets
    _PHYSICS_STEPS: ClassVar[int]  # MuJoCo steps in one step of the task
    _CONTROL_COST: ClassVar[float]  # reward lost per unit of squared action, summed over all joints
    _RESET_NOISE: ClassVar[float]
    _ROOT: ClassVar[int]  # how many of the first positions are the place on the floor, which the state leaves out
    _FLOOR_PERIOD: ClassVar[float]  # metres after which the drawn floor looks the same again

    def __init__(self, num_envs: int, threads: int):
        self.simulation = BatchSimulation(load_model(self._MODEL), num_envs, threads)

    @property
    def model(self) -> mujoco.MjModel:
        return self.simulation.model

    def step(self, controls: np.ndarray) -> np.ndarray:
        """Advance by one step of the task: controls [E, nu], in the actuators' order -> rewards [E]."""
        before = self._place().copy()
        self.simulation.ctrl[:] = controls
        self.simulation.advance(self._PHYSICS_STEPS)
        speed = (self._place() - before) / (self.model.opt.timestep * self._PHYSICS_STEPS)
        # MuJoCo clamps the controls that it applies; the cost is of the actions as given, as in gymnasium.
        return speed + self._bonus() - self._CONTROL_COST * np.einsum("ej,ej->e", controls, controls)

    def start(self, rng: np.random.Generator, copies: np.ndarray) -> None:
        """Put the K copies of those indices, ascending, where an episode may start."""
        model = self.model
        qpos = model.qpos0 + rng.uniform(-self._RESET_NOISE, self._RESET_NOISE, (len(copies), model.nq))
        self.simulation.place(copies, qpos, self._start_velocities(rng, len(copies)))

    def state(self) -> np.ndarray:
        """Global state, [E, S]: positions (m, rad) without the place on the floor, then velocities."""
        return np.concatenate((self.simulation.qpos[:, self._ROOT :], self.simulation.qvel), axis=1)

    def fallen(self) -> np.ndarray:
        """Copies whose episode is over, bool [E]."""
        return np.zeros(len(self.simulation.qpos), dtype=bool)

    @property
    def velocities_entry(self) -> int:
        """Where the state's velocities begin; the first is the forward speed (m/s)."""
        return self.model.nq - self._ROOT

    def joints(self) -> list[Joint]:
        """The body's limited hinges."""
        model = self.model
        return [
            Joint(
                model.joint(index).name,
                int(model.jnt_qposadr[index]) - self._ROOT,
                self.velocities_entry + int(model.jnt_dofadr[index]),
                *map(float, model.jnt_range[index]),
            )
            for index in range(model.njnt)
            if model.jnt_limited[index]
        ]

    def places(self, states: np.ndarray) -> np.ndarray:
        """Where recorded states [T, S] were on the floor (m), which they leave out: [T, 1 or 2] from the start on.

        Velocities are summed up, each step at the mean of its two ends.
        """
        speed = states[:, self.velocities_entry :][:, : self._ROOT].astype(np.float64)
        moved = (speed[1:] + speed[:-1]) / 2 * (self.model.opt.timestep * self._PHYSICS_STEPS)
        return np.concatenate((np.zeros((1, self._ROOT)), np.cumsum(moved, axis=0)))

    def recorded(self, states: np.ndarray, every: int = 1) -> Iterator[mujoco.MjData]:
        """Each `every`-th of the recorded states [T, S] of one episode as MuJoCo data, for pictures."""
        split = self.velocities_entry
        for state, place in zip(states[::every], self.places(states)[::every], strict=True):
            yield self._data(np.concatenate((place, state[:split])), state[split : split + self.model.nv])

    def drawable(self, index: int) -> mujoco.MjData:
        """Copy `index` as MuJoCo data of its own, for a picture."""
        return self._data(self.simulation.qpos[index], self.simulation.qvel[index])

    def _data(self, qpos: np.ndarray, qvel: np.ndarray) -> mujoco.MjData:
        data = mujoco.MjData(self.model)
        data.qpos[:], data.qvel[:] = qpos, qvel
        # The floor is drawn 20 or 40 m each way, and a good team runs 200: stay in the middle, where patterns match.
        data.qpos[: self._ROOT] %= self._FLOOR_PERIOD
        mujoco.mj_forward(self.model, data)
        return data

    def _place(self) -> np.ndarray:
        """How far (m) each copy is along the way, [E]."""
        return self.simulation.qpos[:, 0]

    def _bonus(self) -> np.ndarray | float:
        """Reward [E] beside speed and control cost."""
        return 0.0

    def _start_velocities(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self._RESET_NOISE * rng.standard_normal((count, self.model.nv))


class HalfCheetah(Body):
    """Gymnasium's HalfCheetah-v5: speed minus control cost; a cheetah on its back runs on."""

    _MODEL = "half_cheetah.xml"
    _PHYSICS_STEPS = 5
    _CONTROL_COST = 0.1
    _RESET_NOISE = 0.1
    _ROOT = 1
    _FLOOR_PERIOD = 80 / 60


class Hopper(Body):
    """Gymnasium's Hopper-v5: speed plus 1 for every step that it stands, minus control cost.

    A torso below 0.7 m or tilted by more than 0.2 rad ends the episode.
    """

    _MODEL = "hopper.xml"
    _PHYSICS_STEPS = 4
    _CONTROL_COST = 1e-3
    _RESET_NOISE = 5e-3
    _ROOT = 1
    _FLOOR_PERIOD = 40 / 60

    def state(self) -> np.ndarray:
        qpos, qvel = self.simulation.qpos, self.simulation.qvel
        return np.concatenate((qpos[:, 1:], np.clip(qvel, -10.0, 10.0)), axis=1)

    def fallen(self) -> np.ndarray:
        qpos, qvel = self.simulation.qpos, self.simulation.qvel
        height, angle = qpos[:, 1], qpos[:, 2]
        moderate = (np.abs(qpos[:, 2:]) < 100.0).all(1) & (np.abs(qvel) < 100.0).all(1)
        return ~((height > 0.7) & np.isfinite(height) & (np.abs(angle) < 0.2) & moderate)

    def _bonus(self) -> np.ndarray:
        return (~self.fallen()).astype(np.float64)

    def _start_velocities(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.uniform(-self._RESET_NOISE, self._RESET_NOISE, (count, self.model.nv))


class Ant(Body):
    """Gymnasium's Ant-v5: speed of the torso plus 1 for every step that it stands, minus control and contact cost.

    Leaving heights of 0.2 to 1 m ends the episode. The state ends with torque and force of contacts on each body but
    the ground, clipped to [-1, 1].
    """

    _MODEL = "ant.xml"
    _PHYSICS_STEPS = 5
    _CONTROL_COST = 0.5
    _CONTACT_COST = 5e-4
    _RESET_NOISE = 0.1
    _ROOT = 2
    _FLOOR_PERIOD = 80 / 60

    def __init__(self, num_envs: int, threads: int):
        self.simulation = self._contacts = ContactSimulation(load_model(self._MODEL), num_envs, threads)

    def state(self) -> np.ndarray:
        return np.concatenate((super().state(), self._forces()[:, 6:]), axis=1)

    def fallen(self) -> np.ndarray:
        height = self.simulation.qpos[:, 2]
        finite = np.isfinite(self.simulation.qpos).all(1) & np.isfinite(self.simulation.qvel).all(1)
        return ~((height >= 0.2) & (height <= 1.0) & finite)

    def _place(self) -> np.ndarray:
        # Not qpos: gymnasium takes the torso where it was when forces were last computed, a part of a step earlier.
        return self._contacts.xpos[:, 1, 0]

    def _bonus(self) -> np.ndarray:
        forces = self._forces()
        return ~self.fallen() - self._CONTACT_COST * np.einsum("ej,ej->e", forces, forces)

    def _forces(self) -> np.ndarray:
        """[E, 6 nbody]"""
        return np.clip(self._contacts.cfrc_ext, -1.0, 1.0).reshape(len(self._contacts.qpos), -1)


class View(abc.ABC):
    """What each agent sees of the global state."""

    @abc.abstractmethod
    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Global states [..., S] -> observations [..., N, O], float64."""


class OwnEntries(View):
    """Each agent sees some entries of the state. Args: `entries`, for each agent the indices."""

    def __init__(self, *entries: tuple[int, ...]):
        self._entries = np.array(entries)  # [N, O]

    def __call__(self, state: np.ndarray) -> np.ndarray:
        return np.take(state, self._entries, axis=-1)


class StandardisedState(View):
    """Each agent sees the whole state and which agent it is (one-hot); of this vector, its mean is subtracted and
    the rest divided by its (population) deviation.
    """

    def __init__(self, num_agents: int):
        self._names = np.eye(num_agents)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        # All agents' vectors hold the same numbers in another order, so one mean and deviation serves them all.
        num_agents, size = len(self._names), state.shape[-1]
        vector = np.concatenate((state, np.broadcast_to(self._names[0], (*state.shape[:-1], num_agents))), axis=-1)
        mean, deviation = vector.mean(-1, keepdims=True), vector.std(-1, keepdims=True)
        out = np.empty((*state.shape[:-1], num_agents, size + num_agents))
        out[..., :size] = ((state - mean) / deviation)[..., None, :]
        out[..., size:] = (self._names - mean[..., None]) / deviation[..., None]
        return out


@dataclass(frozen=True)
class Setup:
    """A body whose joints are shared out. `actuators`: for each entry of the joint action (agent by agent), which
    actuator it drives.
    """

    body: type[Body]
    view: View
    actuators: tuple[int, ...]


# Agents, their joints and their order are those of mamujoco_v1. The first task's observations are its own with
# agent_obsk=0 and global_categories=(); those of the others are the published data sets'.
SETUPS: dict[str, Setup] = {
    "halfcheetah-2x3": Setup(
        HalfCheetah, OwnEntries((4, 13, 3, 12, 2, 11), (7, 16, 6, 15, 5, 14)), actuators=(0, 1, 2, 3, 4, 5)
    ),
    "halfcheetah-6x1": Setup(HalfCheetah, StandardisedState(6), actuators=(0, 1, 2, 3, 4, 5)),
    "hopper-3x1": Setup(Hopper, StandardisedState(3), actuators=(0, 1, 2)),
    # Ant's actuators are hip 4, ankle 4, hip 1, ankle 1, ...; its agents have legs 1 and 2, and legs 3 and 4.
    "ant-2x4": Setup(Ant, StandardisedState(2), actuators=(2, 3, 4, 5, 6, 7, 0, 1)),
}
