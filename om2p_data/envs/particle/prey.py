"""Who the predators chase. The prey is part of the world: the same one collects data and scores policies."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numba import njit, prange

from om2p_data.envs.particle.physics import BATCH_KERNEL


class Prey(Protocol):
    """A deterministic policy of the prey.

    Attributes:
        identity: name and version, written into every data set and result that was made with this prey.
    """

    identity: str

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Prey observations [E, 14 or 22] -> actions [E, 2] in [-1, 1]."""
        ...


# Slow to fear and slow to flee: chosen so that random and chasing teams score on the published prey's scale.
_FEAR_RANGE = 0.3
_FLEE = 0.1
_COMFORT = 0.7
_TURN_BACK = 5.0


@njit(**BATCH_KERNEL)
def _flee(obs, first_predator, out):
    for e in prange(len(obs)):
        fx = 0.0
        fy = 0.0
        for p in range(3):
            dx = obs[e, first_predator + 2 * p]
            dy = obs[e, first_predator + 2 * p + 1]
            gap = math.sqrt(dx * dx + dy * dy) + 1e-6
            urgency = max(_FEAR_RANGE - gap, 0.0) / _FEAR_RANGE / gap
            fx -= dx * urgency
            fy -= dy * urgency
        for c in range(2):
            x = obs[e, 2 + c]
            outside = max(abs(x) - _COMFORT, 0.0)
            force = _FLEE * (fx if c == 0 else fy) - _TURN_BACK * (outside if x > 0.0 else -outside)
            out[e, c] = min(max(force, -1.0), 1.0)


class ScriptedPrey:
    """A hand-written stand-in: run from near predators, turn back at the edge of the arena.

    It is not the pretrained network of the published benchmarks, which is lost. Its two gains are set so that uniformly
    random predators score what they scored against that one (-4.1 ± 10.8 in Predator-Prey, -6.8 ± 5.7 in World), and
    predators that run straight at it land between the published medium and expert levels; nothing else is claimed.

    Args:
        num_landmarks: landmarks in the prey's observation (2 in Predator-Prey, 5 in World).
    """

    identity = "scripted-prey-v0"

    def __init__(self, num_landmarks: int):
        self._first_predator = 4 + 2 * num_landmarks

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Prey observations [E, O] -> actions float32 [E, 2] in [-1, 1]."""
        actions = np.empty((len(obs), 2), np.float32)
        _flee(obs, self._first_predator, actions)
        return actions
