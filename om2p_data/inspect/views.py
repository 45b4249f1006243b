"""Planes on which the states of a data set are looked at: where agents are, how joints swing, or what varies most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from om2p_data.dataset import Dataset
from om2p_data.envs import Family, make

SAMPLE = 50_000  # states looked at; as many in every set of that size, so that sets can be compared
CELLS = 20  # cells of a plane along each side
_MAX_SPEED = 25.0  # rad/s, at the edge of a joint's plane
_PAST_LIMIT = 0.2  # rad: MuJoCo's limits push back, but only once they are passed
_TAILS = 0.005  # left out on each side where a plane has no bounds of its own


@dataclass(frozen=True, eq=False)
class Plane:
    """Points of the data on a plane.

    Attributes:
        name: whose plane it is.
        x_label, y_label: what its axes mean, with units.
        low, high: [2], the bounds within which it is covered or not; points may lie outside.
        points: float32 [M, 2].
    """

    name: str
    x_label: str
    y_label: str
    low: np.ndarray
    high: np.ndarray
    points: np.ndarray

    def counts(self, cells: int = CELLS) -> np.ndarray:
        """Points in each of `cells` x `cells` equal cells, x first; those outside are left out."""
        edges = [np.linspace(low, high, cells + 1) for low, high in zip(self.low, self.high, strict=True)]
        return np.histogram2d(self.points[:, 0], self.points[:, 1], bins=edges)[0]

    @property
    def visited(self) -> float:
        """Share of the cells that hold a point."""
        return float(np.mean(self.counts() > 0))

    @property
    def evenness(self) -> float:
        """How evenly the cells are visited: exp(entropy of the points over cells) / cells, from 0 to 1.

        1 where all cells are visited alike, 1/2 where half of them are and the others never.
        """
        counts = self.counts().ravel()
        shares = counts[counts > 0] / max(counts.sum(), 1)
        return float(np.exp(-(shares * np.log(shares)).sum()) / counts.size) if shares.size else 0.0

    @property
    def outside(self) -> float:
        """Share of the points that lie outside the bounds."""
        return 1.0 - float(self.counts().sum()) / len(self.points)


@dataclass(frozen=True, eq=False)
class Views:
    """What the states of a data set look like.

    Attributes:
        states: float32 [M, S], the sampled states.
        planes: where they lie.
        meaning: one sentence on what the planes are.
        forward_speed: float32 [M] in m/s, for bodies that run.
    """

    states: np.ndarray
    planes: tuple[Plane, ...]
    meaning: str
    forward_speed: np.ndarray | None = None

    @property
    def effective_dimension(self) -> float:
        """Participation ratio of the correlations of the state's components, from 1 to S.

        It counts the independent directions in which the states vary: S where all components vary on their own, 1
        where one number determines them all.
        """
        varying = self.states[:, np.ptp(self.states, axis=0) > 0].astype(np.float64)
        if varying.shape[1] == 0:
            return 0.0
        standard = (varying - varying.mean(0)) / varying.std(0)
        spectrum = np.linalg.eigvalsh(standard.T @ standard / len(standard))
        return float(spectrum.sum() ** 2 / np.square(spectrum).sum())


def look(data: Dataset) -> Views:
    """The views of a data set: of our own worlds what they are about, of others their principal components.

    At most `SAMPLE` states are taken, always the same ones.
    """
    episodes, task = data.episodes, data.task
    rows = _sample(len(episodes.obs))
    if task is not None and task.family is Family.PARTICLE:
        return _plane_world(data, rows)
    if task is not None and episodes.state is not None:
        return _running_body(task.name, episodes.state[rows])
    if episodes.state is not None:
        return _principal("state", episodes.state[rows])
    return _principal("observations", episodes.obs[rows][:, ~data.environment.spec.padding[0]])


def _sample(count: int) -> np.ndarray:
    if count <= SAMPLE:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, SAMPLE, replace=False))


def _plane_world(data: Dataset, rows: np.ndarray) -> Views:
    from om2p_data.envs.particle import SCENARIOS, observed_states

    assert data.task is not None
    states = observed_states(data.task, data.episodes.obs[rows])
    bodies = len(SCENARIOS[data.task.scenario].SIZES)
    names = (*data.environment.spec.agents, "prey")
    edge = np.ones(2)
    planes = [Plane(names[body], "x", "y", -edge, edge, states[:, 2 * body : 2 * body + 2]) for body in range(bodies)]
    return Views(states, tuple(planes), "where the agents are; starts and landmarks lie within [-1, 1]")


def _running_body(task_name: str, states: np.ndarray) -> Views:
    from om2p_data.envs.locomotion import LocomotionEnv

    env = make(task_name)
    assert isinstance(env, LocomotionEnv)
    joints = env.joints()
    planes = [
        Plane(
            joint.name,
            "angle (rad)",
            "angular velocity (rad/s)",
            np.array([joint.low - _PAST_LIMIT, -_MAX_SPEED]),
            np.array([joint.high + _PAST_LIMIT, _MAX_SPEED]),
            states[:, [joint.angle, joint.velocity]],
        )
        for joint in joints
    ]
    meaning = f"how the joints swing, up to {_PAST_LIMIT} rad past their soft limits and at {_MAX_SPEED:.0f} rad/s"
    return Views(states, tuple(planes), meaning, states[:, env.forward_speed_entry])


def _principal(what: str, states: np.ndarray) -> Views:
    deviation = states.std(axis=0, dtype=np.float64)
    standard = (states - states.mean(axis=0, dtype=np.float64)) / np.where(deviation > 0, deviation, 1.0)
    directions = np.linalg.eigh(standard.T @ standard)[1][:, ::-1][:, :2]  # largest first
    points = np.zeros((len(states), 2), np.float32)
    points[:, : directions.shape[1]] = standard @ directions
    low, high = np.quantile(points, _TAILS, axis=0), np.quantile(points, 1 - _TAILS, axis=0)
    flat = high <= low
    low[flat], high[flat] = low[flat] - 0.5, low[flat] + 0.5
    plane = Plane(what, "first principal component", "second principal component", low, high, points)
    meaning = f"the first two principal components of the {what}, within their own 0.5% and 99.5% quantiles"
    return Views(states, (plane,), meaning)
