"""Checks of our own tasks' data against their worlds: what agents see of each other, and that worlds move as stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from om2p_data.envs.registry import Family, Task
from om2p_data.validation.findings import Report, Severity
from om2p_data.validation.raw import Block

_CHECK = "physics"
# Stored numbers are rounded to single precision, at the size of the positions that were subtracted.
_TOLERANCE = 2e-5
_REWARD_TOLERANCE = 1e-2  # closeness is one over a distance, which makes errors larger
# MuJoCo's solver finds its contacts from another start here; the largest difference measured is 2e-4.
_LOCOMOTION_TOLERANCE = 2e-3
# A contact at the very edge can go either way after rounding.
_TOLERATED_SHARE = 1e-3
_CLIPPED = 10.0
_PARTICLE_SAMPLE = 4_096  # transitions a block
_LOCOMOTION_SAMPLE = 64


class WorldChecks:
    """Replays a sample of each block's transitions.

    Args:
        task: row of the task table; the set's agents and sizes are the task's.
        collection: how the metadata state that the data came about.
        report: where findings go.
    """

    def __init__(self, task: Task, collection: Mapping[str, Any], report: Report):
        self._task, self._report = task, report
        self._prey = None
        self._replayed = self._strayed = 0
        self._place: str | None = None
        self._skipped: str | None = None
        if task.family is Family.PARTICLE:
            from om2p_data.envs.particle import ParticleEnv

            self._prey = ParticleEnv(task).prey
            if self._prey is not None and collection.get("prey") != self._prey.identity:
                self._skipped = f"not replayed: collected with prey {collection.get('prey')}, not {self._prey.identity}"

    def look(self, block: Block) -> None:
        """Take in some episodes."""
        agents = self._task.agents
        try:
            obs = np.stack([block.arrays[f"observations/{agent}"] for agent in agents], axis=1)
            actions = np.stack([block.arrays[f"actions/{agent}"] for agent in agents], axis=1)
            rewards = block.arrays["rewards"]
        except KeyError:
            return  # arrays that could not be read were reported
        if not (np.isfinite(obs).all() and np.isfinite(actions).all()):
            return  # so were those
        if self._task.discrete:
            from om2p_data.envs.particle import moved

            if not ((actions >= 0) & (actions < self._task.act_dim)).all():
                return  # and so were those
            actions = moved(actions)  # [T, N, 2]
        obs_row = np.arange(len(actions)) + np.repeat(np.arange(len(block.lengths)), block.lengths)
        if self._task.family is Family.PARTICLE:
            self._look_views(block, obs)
            if self._skipped is None:
                self._replay_particles(block, obs, actions, rewards, obs_row)
        elif "infos/state" in block.arrays:
            self._replay_body(block, obs, actions, rewards, obs_row)

    def finish(self) -> None:
        """Report what is known only at the end."""
        if self._skipped is not None:
            self._report.fine(_CHECK, self._skipped)
            return
        if self._strayed > _TOLERATED_SHARE * self._replayed:
            self._report.problem(
                _CHECK,
                f"{self._strayed / self._replayed:.2%} of {self._replayed:,} replayed transitions lead elsewhere",
                self._place,
                count=self._strayed,
            )
        elif self._strayed:
            self._report.fine(
                _CHECK, f"{self._replayed:,} transitions replayed, all but {self._strayed} lead where the data say"
            )
        self._report.fine(_CHECK, f"{self._replayed:,} transitions replayed, all lead where the data say")

    def _look_views(self, block: Block, obs: np.ndarray) -> None:
        """Every agent must see the same world, and landmarks must stay where they are."""
        from om2p_data.envs.particle import replay

        world = self._world(obs)
        bodies = world.pos.shape[1]
        played = replay(*world, np.zeros((len(obs), 0, bodies, 2)))
        seen = np.stack([played[f"init_obs_{i}"] for i in range(self._task.num_agents)], axis=1)
        # Beyond positions and velocities, World tells who is in a forest: at its edge, rounding decides that.
        told = 4 + 2 * world.landmarks.shape[1] + 2 * (bodies - 1) + 2 * (self._prey is not None)
        scale = _TOLERANCE * (1.0 + np.abs(world.pos).max(axis=(1, 2)))  # [rows]
        wrong = np.abs(seen - obs)[..., :told].max(axis=(1, 2)) > scale
        self._note_rows(block, "agents do not see the same world", wrong)
        start = np.repeat(world.landmarks[block.first_row], block.lengths + 1, axis=0)
        wrong = np.abs(world.landmarks - start).max(axis=(1, 2)) > 2 * scale
        self._note_rows(block, "a landmark moves within an episode", wrong)

    def _replay_particles(
        self, block: Block, obs: np.ndarray, actions: np.ndarray, rewards: np.ndarray, obs_row: np.ndarray
    ) -> None:
        from om2p_data.envs.particle import replay

        steps = _spread(len(actions), _PARTICLE_SAMPLE)
        before, after = obs[obs_row[steps]], obs[obs_row[steps] + 1]
        world = self._world(before)
        bodies = world.pos.shape[1]
        joint = actions[steps, None]  # [E, 1, N, 2]
        if self._prey is not None:
            seen = replay(*world, np.zeros((len(steps), 0, bodies, 2)))[f"init_obs_{bodies - 1}"]
            joint = np.concatenate((joint, self._prey.act(seen.astype(np.float32))[:, None, None]), axis=2)
        played = replay(*world, joint)
        found = np.stack([played[f"obs_{i}"][:, 0] for i in range(self._task.num_agents)], axis=1)
        scale = 1.0 + np.abs(world.pos).max(axis=(1, 2)) + np.abs(world.vel).max(axis=(1, 2))
        far = np.abs(found - after).max(axis=(1, 2)) > _TOLERANCE * scale
        team = played["rewards"][:, 0, : self._task.num_agents].mean(axis=1)
        far |= np.abs(team - rewards[steps]) > _REWARD_TOLERANCE * scale
        self._note_replayed(block, steps, far)

    def _world(self, obs: np.ndarray) -> _World:
        from om2p_data.envs.particle import SCENARIOS, observed_states

        bodies = len(SCENARIOS[self._task.scenario].SIZES)
        points = observed_states(self._task, obs).reshape(len(obs), -1, 2)
        return _World(self._task.scenario, points[:, :bodies], points[:, bodies : 2 * bodies], points[:, 2 * bodies :])

    def _replay_body(
        self, block: Block, obs: np.ndarray, actions: np.ndarray, rewards: np.ndarray, obs_row: np.ndarray
    ) -> None:
        from om2p_data.envs.locomotion import replay
        from om2p_data.envs.locomotion.bodies import SETUPS

        model = SETUPS[self._task.name].body(1, 1).model
        steps = _spread(len(actions), _LOCOMOTION_SAMPLE)
        state = block.arrays["infos/state"].astype(np.float64)
        with_forces = state.shape[1] > model.nq + model.nv
        moving = state.shape[1] - 6 * (model.nbody - 1) * with_forces  # positions and velocities
        before, after = state[obs_row[steps], :moving], state[obs_row[steps] + 1, :moving]
        # Where a state clips its velocities, those at the limit are not what they were.
        kept = ~(np.abs(before) == _CLIPPED).any(axis=1)
        steps, before, after = steps[kept], before[kept], after[kept]
        if not len(steps):
            return
        # The state leaves out the place on the floor, on which nothing depends.
        place = np.zeros((len(steps), model.nq + model.nv - moving))
        split = model.nq - place.shape[1]
        qpos, qvel = np.concatenate((place, before[:, :split]), axis=1), before[:, split:]
        played = replay(self._task.name, qpos, qvel, actions[steps, None])
        far = _far(played["state"][:, 0, :moving], after)
        if not with_forces:  # the others' rewards compare two places of which the first was a part of a step earlier
            far |= _far(played["rewards"], rewards[steps, None])
        # Agents see nothing but the state, so what they see strays as little, unless it is another state's.
        far |= _far(played["obs"][:, 0].reshape(len(steps), -1), obs[obs_row[steps] + 1].reshape(len(steps), -1))
        self._note_replayed(block, steps, far)

    def _note_replayed(self, block: Block, steps: np.ndarray, far: np.ndarray) -> None:
        self._replayed += len(steps)
        self._strayed += int(np.count_nonzero(far))
        if far.any() and self._place is None:
            self._place = block.place("actions", int(steps[far][0]), False)

    def _note_rows(self, block: Block, message: str, wrong: np.ndarray) -> None:
        rows = np.flatnonzero(wrong)
        if len(rows):
            place = block.place("observations", int(rows[0]), True)
            self._report.problem("views", message, place, count=len(rows), severity=Severity.ERROR)
        else:
            self._report.fine("views", "all agents see the same world, and its landmarks stay in place")


class _World(NamedTuple):
    """Where everything is, as `replay` takes it."""

    scenario: str
    pos: np.ndarray  # [rows, bodies, 2]
    vel: np.ndarray  # [rows, bodies, 2]
    landmarks: np.ndarray  # [rows, L, 2]


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of the integers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _far(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows that differ by more than locomotion's tolerance, relative to their largest entry."""
    return np.abs(found - wanted).max(axis=1) > _LOCOMOTION_TOLERANCE * (1.0 + np.abs(wanted).max(axis=1))
