"""Cooperative Navigation: 3 agents cover 3 landmarks without touching each other."""

from __future__ import annotations

import math

from numba import njit, prange

from om2p_data.envs.particle.physics import BATCH_KERNEL, KERNEL, advance, write_common

SIZES = (0.15, 0.15, 0.15)
GAINS = (5.0, 5.0, 5.0)
MAX_SPEEDS = (math.inf, math.inf, math.inf)
LANDMARK_SIZES = (0.05, 0.05, 0.05)  # drawn only: they push nobody
NUM_OBSTACLES = 0
LANDMARK_RANGE = 1.0
OBS_DIMS = (18, 18, 18)
HAS_PREY = False

_COLLISION_PENALTY = 5.0
_CLOSENESS_CAP = 10.0


@njit(**KERNEL)
def _observe(pos, vel, landmarks, out):
    for i in range(3):
        write_common(pos, vel, landmarks, i, 3, 3, out[i])
        for c in range(14, 18):
            out[i, c] = 0.0  # the original reserves four numbers for messages that nobody sends


@njit(**KERNEL)
def _reward(pos, landmarks, out):
    closeness = 0.0
    for m in range(3):
        nearest = math.inf
        for j in range(3):
            dx = pos[j, 0] - landmarks[m, 0]
            dy = pos[j, 1] - landmarks[m, 1]
            nearest = min(nearest, dx * dx + dy * dy)
        closeness += min(1.0 / math.sqrt(nearest), _CLOSENESS_CAP)
    for i in range(3):
        out[i] = closeness
    for i in range(3):
        for j in range(i + 1, 3):
            dx = pos[i, 0] - pos[j, 0]
            dy = pos[i, 1] - pos[j, 1]
            if math.sqrt(dx * dx + dy * dy) < SIZES[i] + SIZES[j]:
                out[i] -= _COLLISION_PENALTY
                out[j] -= _COLLISION_PENALTY


@njit(**BATCH_KERNEL)
def observe(pos, vel, landmarks, obs):
    """Observations of every world: pos, vel [E, 3, 2], landmarks [E, 3, 2] -> obs [E, 3, 18], overwritten."""
    for e in prange(len(pos)):
        _observe(pos[e], vel[e], landmarks[e], obs[e])


@njit(**BATCH_KERNEL)
def step(pos, vel, landmarks, actions, rewards, obs):
    """Advance every world in place; actions [E, 3, 2] -> rewards [E, 3], obs [E, 3, 18], overwritten."""
    for e in prange(len(pos)):
        advance(pos[e], vel[e], actions[e], landmarks[e], SIZES, GAINS, MAX_SPEEDS, LANDMARK_SIZES, NUM_OBSTACLES)
        _reward(pos[e], landmarks[e], rewards[e])
        _observe(pos[e], vel[e], landmarks[e], obs[e])
