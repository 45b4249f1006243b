"""Particle worlds whose agents choose one of five moves: a translation in front of the continuous ones."""

from __future__ import annotations

import numpy as np

from om2p_data.envs.particle.env import ParticleEnv
from om2p_data.envs.vector import Step
from om2p_data.errors import UserError

# Stay, left, right, down, up: the order of the original particle environments, each the longest action that way.
_MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], np.float32)


def moved(choices: np.ndarray) -> np.ndarray:
    """Numbers of moves, integers [...] from 0 to 4 -> the actions that they stand for, float32 [..., 2]."""
    return _MOVES[choices]


class DiscreteParticleEnv(ParticleEnv):
    """`ParticleEnv` for a discrete task: actions are choices, one-hot [E, N, 5]."""

    def step(self, actions: np.ndarray) -> Step:
        """Advance every copy by one step: see `VectorEnv.step`.

        Raises:
            UserError: actions of another shape than [E, N, 5], or not one-hot.
        """
        actions = np.asarray(actions)
        shape = (self.num_envs, self.task.num_agents, len(_MOVES))
        if actions.shape != shape:
            raise UserError(f"actions must have shape {shape}, not {actions.shape}")
        choices = actions.argmax(-1)  # [E, N]
        wrong = (actions != np.eye(len(_MOVES))[choices]).any(-1)
        if wrong.any():
            index = np.argwhere(wrong)[0].tolist()
            raise UserError(f"actions must be one-hot, but actions{index} is {actions[tuple(index)].tolist()}")
        return super().step(moved(choices))
