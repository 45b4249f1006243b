"""Predator-Prey: 3 slow predators (agents 0-2) chase one faster prey (agent 3) around 2 obstacles."""

from __future__ import annotations

from numba import njit, prange

from om2p_data.envs.particle.physics import BATCH_KERNEL, KERNEL, advance, boundary_penalty, distance, write_common

SIZES = (0.075, 0.075, 0.075, 0.05)
GAINS = (9.0, 9.0, 9.0, 16.0)
MAX_SPEEDS = (1.0, 1.0, 1.0, 1.3)
LANDMARK_SIZES = (0.2, 0.2)
NUM_OBSTACLES = 2
LANDMARK_RANGE = 0.9
OBS_DIMS = (16, 16, 16, 14)
HAS_PREY = True
PREY = "predator-prey"  # the bundled one

_CATCH = 10.0
_SHAPING = 0.1
_PREY = 3


@njit(**KERNEL)
def _observe(pos, vel, landmarks, out):
    for i in range(4):
        write_common(pos, vel, landmarks, i, 4, 2, out[i])
        if i != _PREY:
            out[i, 14] = vel[_PREY, 0]
            out[i, 15] = vel[_PREY, 1]


@njit(**KERNEL)
def _reward(pos, out):
    total = 0.0
    caught = 0
    for i in range(_PREY):
        gap = distance(pos[i], pos[_PREY])
        total += gap
        if gap < SIZES[i] + SIZES[_PREY]:
            caught += 1
    chase = -_SHAPING * total + _CATCH * caught
    for i in range(_PREY):
        out[i] = chase
    out[_PREY] = -chase - boundary_penalty(pos[_PREY, 0]) - boundary_penalty(pos[_PREY, 1])


@njit(**BATCH_KERNEL)
def observe(pos, vel, landmarks, obs):
    """Observations of every world: pos, vel [E, 4, 2], landmarks [E, 2, 2] -> obs [E, 4, 16] (prey: first 14)."""
    for e in prange(len(pos)):
        _observe(pos[e], vel[e], landmarks[e], obs[e])


@njit(**BATCH_KERNEL)
def step(pos, vel, landmarks, actions, rewards, obs):
    """Advance every world in place; actions [E, 4, 2] -> rewards [E, 4], obs [E, 4, 16], overwritten."""
    for e in prange(len(pos)):
        advance(pos[e], vel[e], actions[e], landmarks[e], SIZES, GAINS, MAX_SPEEDS, LANDMARK_SIZES, NUM_OBSTACLES)
        _reward(pos[e], rewards[e])
        _observe(pos[e], vel[e], landmarks[e], obs[e])
