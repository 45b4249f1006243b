"""Physics that the particle worlds share, compiled: contacts, integration, random starts.

Everything here works on one world at a time (no leading batch dimension) in float64 and is inlined by numba into the
batched kernels of the scenario files. Numbers are those of the original particle environments (facts of the OMAR and
OM2P benchmarks), not of today's PettingZoo or mpe2, which differ on purpose.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
# Beyond this many margins the contact force is below 1e-20 and the pair need not be looked at.
_NEGLIGIBLE = 50.0

# `cache` keeps compiled kernels between processes, but numba looks for changes only in the file of the outermost one:
# after an edit here, touch the scenario files. `nogil` lets a policy run beside the world. `forceinline`: left to
# itself, LLVM calls the larger kernels, where sizes and gains are then no constants, which takes half as long again.
KERNEL = {"cache": True, "nogil": True, "error_model": "numpy", "forceinline": True}
BATCH_KERNEL = {"cache": True, "nogil": True, "error_model": "numpy", "parallel": True}


@njit(**KERNEL)
def near(dx, dy, reach):
    """Whether two bodies at offset (dx, dy), whose sizes sum to `reach`, push each other. Coincident ones do not."""
    square = dx * dx + dy * dy
    limit = reach + _NEGLIGIBLE * CONTACT_MARGIN
    return 0.0 < square < limit * limit


@njit(**KERNEL)
def contact(dx, dy, reach):
    """Force of a soft contact on the first of two near bodies; (dx, dy) is its position minus the other's."""
    distance = math.sqrt(dx * dx + dy * dy)
    depth = (reach - distance) / CONTACT_MARGIN
    # log(1 + exp(depth)) without overflow
    softplus = depth + math.log1p(math.exp(-depth)) if depth > 0.0 else math.log1p(math.exp(depth))
    scale = CONTACT_FORCE * CONTACT_MARGIN * softplus / distance
    return scale * dx, scale * dy


@njit(**KERNEL)
def advance(pos, vel, actions, landmarks, sizes, gains, max_speeds, landmark_sizes, num_obstacles):
    """One step of one world, in place.

    Args:
        pos, vel: [n, 2], every agent (prey last). All agents collide with each other.
        actions: [n, 2].
        landmarks: [L, 2]; the first `num_obstacles` of them push agents away, the others touch nobody.
        sizes, gains, max_speeds: n floats each; an infinite max_speed means no limit.
        landmark_sizes: L floats.
    """
    n = len(sizes)
    for i in range(n):
        vel[i, 0] = (1.0 - DAMPING) * vel[i, 0] + gains[i] * actions[i, 0] * DT
        vel[i, 1] = (1.0 - DAMPING) * vel[i, 1] + gains[i] * actions[i, 1] * DT
    # Contacts use the positions before integration, so adding their impulses to the velocities right away is the same.
    for i in range(n):
        for j in range(i + 1, n):
            dx = pos[i, 0] - pos[j, 0]
            dy = pos[i, 1] - pos[j, 1]
            reach = sizes[i] + sizes[j]
            if near(dx, dy, reach):
                fx, fy = contact(dx, dy, reach)
                vel[i, 0] += fx * DT
                vel[i, 1] += fy * DT
                vel[j, 0] -= fx * DT
                vel[j, 1] -= fy * DT
        for k in range(num_obstacles):
            dx = pos[i, 0] - landmarks[k, 0]
            dy = pos[i, 1] - landmarks[k, 1]
            reach = sizes[i] + landmark_sizes[k]
            if near(dx, dy, reach):
                fx, fy = contact(dx, dy, reach)
                vel[i, 0] += fx * DT
                vel[i, 1] += fy * DT
    for i in range(n):
        if max_speeds[i] < math.inf:
            # Half of the bodies are at their limit, which no branch predictor learns: always multiply, by 1 below it.
            speed = math.sqrt(vel[i, 0] * vel[i, 0] + vel[i, 1] * vel[i, 1])
            scale = max_speeds[i] / max(speed, max_speeds[i])
            vel[i, 0] *= scale
            vel[i, 1] *= scale
        pos[i, 0] += vel[i, 0] * DT
        pos[i, 1] += vel[i, 1] * DT


@njit(**KERNEL)
def distance(a, b):
    """Euclidean distance of two points [2]."""
    dx = a[0] - b[0]
    dy = a[1] - b[1]
    return math.sqrt(dx * dx + dy * dy)


@njit(**KERNEL)
def boundary_penalty(x):
    """What a prey pays for one coordinate outside the arena: 0 inside, steep and then capped outside."""
    x = abs(x)
    if x < 0.9:
        return 0.0
    if x < 1.0:
        return 10.0 * (x - 0.9)
    return min(math.exp(2.0 * x - 2.0), 10.0)


@njit(**KERNEL)
def write_common(pos, vel, landmarks, i, n, num_landmarks, out):
    """First 4 + 2 L + 2 (n - 1) numbers of every observation of agent i: own v, own x, landmarks - x, others - x.

    Every index is a plain function of a loop counter: with a running write position the loops stay rolled and bounds
    are computed at run time, which made observing seven times slower.
    """
    x = pos[i, 0]
    y = pos[i, 1]
    out[0] = vel[i, 0]
    out[1] = vel[i, 1]
    out[2] = x
    out[3] = y
    for m in range(num_landmarks):
        out[4 + 2 * m] = landmarks[m, 0] - x
        out[5 + 2 * m] = landmarks[m, 1] - y
    for k in range(n - 1):
        other = k + (k >= i)
        out[4 + 2 * (num_landmarks + k)] = pos[other, 0] - x
        out[5 + 2 * (num_landmarks + k)] = pos[other, 1] - y


@njit(**KERNEL)
def _uniform(rng, e, low, high):
    """Next draw from U[low, high) of stream e (splitmix64: one 64-bit counter a world, so threads cannot change it)."""
    rng[e] += np.uint64(0x9E3779B97F4A7C15)
    z = rng[e]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return low + (high - low) * (float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0))


@njit(**BATCH_KERNEL)
def scatter(pos, vel, landmarks, rng, landmark_range):
    """New episodes: agents U[-1, 1]^2 at rest, landmarks U[-landmark_range, landmark_range]^2.

    Args: pos, vel [E, n, 2], landmarks [E, L, 2], all overwritten; rng uint64 [E], advanced.
    """
    for e in prange(len(pos)):
        for i in range(pos.shape[1]):
            for c in range(2):
                pos[e, i, c] = _uniform(rng, e, -1.0, 1.0)
                vel[e, i, c] = 0.0
        for m in range(landmarks.shape[1]):
            for c in range(2):
                landmarks[e, m, c] = _uniform(rng, e, -landmark_range, landmark_range)
