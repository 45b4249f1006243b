"""World: 3 predators (agents 0-2) chase a prey (agent 3) that looks for food between two forests."""

from __future__ import annotations

import math

from numba import njit, prange

from om2p_data.envs.particle.physics import BATCH_KERNEL, KERNEL, advance, boundary_penalty, distance, write_common

SIZES = (0.075, 0.075, 0.075, 0.045)
GAINS = (9.0, 9.0, 9.0, 16.0)
MAX_SPEEDS = (1.0, 1.0, 1.0, 1.3)
LANDMARK_SIZES = (0.2, 0.03, 0.03, 0.3, 0.3)  # one obstacle, two pieces of food, two forests
NUM_OBSTACLES = 1
LANDMARK_RANGE = 0.9
OBS_DIMS = (24, 24, 24, 22)
HAS_PREY = True
PREY = "world"  # the bundled one

_CATCH = 5.0
_SHAPING = 0.1
_BOUNDARY = 2.0
_EAT = 2.0
_SEEK = 0.05
_PREY = 3
_FOOD = (1, 2)
_FIRST_FOREST = 3


@njit(**KERNEL)
def _observe(pos, vel, landmarks, out):
    for i in range(4):
        write_common(pos, vel, landmarks, i, 4, 5, out[i])
        flags = 20
        if i != _PREY:
            out[i, 20] = vel[_PREY, 0]
            out[i, 21] = vel[_PREY, 1]
            flags = 22
        for f in range(2):
            forest = _FIRST_FOREST + f
            inside = distance(pos[i], landmarks[forest]) < SIZES[i] + LANDMARK_SIZES[forest]
            out[i, flags + f] = 1.0 if inside else -1.0


@njit(**KERNEL)
def _reward(pos, landmarks, out):
    total = 0.0
    caught = 0
    for i in range(_PREY):
        gap = distance(pos[i], pos[_PREY])
        total += gap
        if gap < SIZES[i] + SIZES[_PREY]:
            caught += 1
    for i in range(_PREY):
        out[i] = _CATCH * caught - _SHAPING * total
    nearest_food = math.inf
    eaten = 0
    for f in _FOOD:
        gap = distance(pos[_PREY], landmarks[f])
        nearest_food = min(nearest_food, gap)
        if gap < SIZES[_PREY] + LANDMARK_SIZES[f]:
            eaten += 1
    outside = boundary_penalty(pos[_PREY, 0]) + boundary_penalty(pos[_PREY, 1])
    out[_PREY] = _SHAPING * total - _CATCH * caught - _BOUNDARY * outside + _EAT * eaten + _SEEK * nearest_food


@njit(**BATCH_KERNEL)
def observe(pos, vel, landmarks, obs):
    """Observations of every world: pos, vel [E, 4, 2], landmarks [E, 5, 2] -> obs [E, 4, 24] (prey: first 22)."""
    for e in prange(len(pos)):
        _observe(pos[e], vel[e], landmarks[e], obs[e])


@njit(**BATCH_KERNEL)
def step(pos, vel, landmarks, actions, rewards, obs):
    """Advance every world in place; actions [E, 4, 2] -> rewards [E, 4], obs [E, 4, 24], overwritten."""
    for e in prange(len(pos)):
        advance(pos[e], vel[e], actions[e], landmarks[e], SIZES, GAINS, MAX_SPEEDS, LANDMARK_SIZES, NUM_OBSTACLES)
        _reward(pos[e], landmarks[e], rewards[e])
        _observe(pos[e], vel[e], landmarks[e], obs[e])
