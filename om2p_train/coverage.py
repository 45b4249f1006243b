"""How far the actions of a policy keep to those of the data, on arrays alone.

Nobody can ask the data twice for an action at the same observation. So they are looked at locally: the actions of the K
transitions whose observations lie nearest stand for what the data do there, and a policy is asked once at each of those
K observations.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

PRESENT = 0.1  # share of the data nearby from which a team counts as one of their modes
_BLOCK_ROWS = 16_384  # of the data at a time, so that a search takes little memory
_BLOCK_SETS = 256  # sets of samples whose pairwise distances are held at a time
_STILL = 1e-6  # deviation below which a component counts as constant
_COVERED = stats.chi2.cdf(3.0**2, 1)  # of a normal distribution within 3 deviations, 99.73%


def neighbours(obs: np.ndarray, anchors: np.ndarray, count: int) -> np.ndarray:
    """The nearest observations, each component standardised by the data's own deviation.

    Args:
        obs: of all transitions, float32 [M, O].
        anchors: which of them neighbours are wanted of, int64 [n].
        count: C < M, how many; an anchor is not its own neighbour.

    Returns:
        Rows of `obs`, nearest first, int64 [n, C].
    """
    mean = obs.mean(0, dtype=np.float64)
    deviation = np.array([component.std(dtype=np.float64) for component in obs.T])  # all at once would take a copy
    scale = np.where(deviation > _STILL, deviation, 1.0)

    def standard(some: np.ndarray) -> np.ndarray:
        return ((some - mean) / scale).astype(np.float32)

    points = standard(obs[anchors])
    each = np.arange(len(points))[:, None]
    nearest = np.empty((len(points), 0), np.float32)
    rows = np.empty((len(points), 0), np.int64)
    for start in range(0, len(obs), _BLOCK_ROWS):
        block = standard(obs[start : start + _BLOCK_ROWS])
        # Squared distances but for the anchor's own square, which changes no order.
        squares = (block**2).sum(1) - 2.0 * points @ block.T  # [n, rows]
        within = np.flatnonzero((anchors >= start) & (anchors < start + len(block)))
        squares[within, anchors[within] - start] = np.inf
        found = _smallest(squares, count)
        nearest = np.concatenate([nearest, squares[each, found]], 1)
        rows = np.concatenate([rows, start + found], 1)
        kept = _smallest(nearest, count)
        nearest, rows = nearest[each, kept], rows[each, kept]
    return rows[each, nearest.argsort(1, kind="stable")]


def energy_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo 2013), without bias.

    It is 0 for equal distributions and positive for all others; of an estimate that means on average, so it may fall
    below 0. The i-th actions of the two sets are taken at the same observation: only pairs of different observations
    are compared, in all three means, for those alone are independent (the U-statistic of pairs).

    Args:
        first, second: samples [..., K, A] of X and of Y, K > 1. Choices are one-hot: the distance is then sqrt(2)
            times the squared Euclidean distance of the two vectors of frequencies.

    Returns:
        float64 [...], in the units of the actions.
    """
    shape, (count, size) = first.shape[:-2], first.shape[-2:]
    x, y = (samples.reshape(-1, count, size).astype(np.float64) for samples in (first, second))
    found = np.empty(len(x))
    for start in range(0, len(x), _BLOCK_SETS):
        some = slice(start, start + _BLOCK_SETS)
        found[some] = 2.0 * _between(x[some], y[some]) - _between(x[some], x[some]) - _between(y[some], y[some])
    return found.reshape(shape)


def variance(samples: np.ndarray) -> np.ndarray:
    """Mean squared distance of samples [..., K, A] from their mean, without bias, float64 [...]."""
    return samples.var(-2, ddof=1, dtype=np.float64).sum(-1)


def noise_radius(deviation: float, size: int) -> float:
    """Radius that holds as much of normal noise in `size` components as 3 deviations hold of one: 99.73%.

    The square of a normal vector's length has a chi-square distribution. Clipping to a box brings no action farther
    from one within the box, so at least as much stays inside.
    """
    return deviation * float(np.sqrt(stats.chi2.ppf(_COVERED, size)))


def apart(teams: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Where no action can lie within the radius of two teams' at once.

    Args:
        teams: actions [T, ..., A] of T teams at the same observations.
        radius: [...].

    Returns:
        bool [...]; true everywhere for a single team.
    """
    found = np.ones(teams.shape[1:-1], bool)
    for index, one in enumerate(teams):
        for other in teams[index + 1 :]:
            found &= np.linalg.norm(one - other, axis=-1) > 2.0 * radius
    return found


def near(actions: np.ndarray, team: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Which actions [..., A] lie within a radius [...] of a team's, [..., A]; bool [...]. All may be broadcast."""
    return np.linalg.norm(actions - team, axis=-1) <= radius


def present(data: np.ndarray) -> np.ndarray:
    """Which teams are modes of the data, by their shares of the data nearby; bool [T, ...]."""
    return data >= PRESENT


def modes_kept(shares: np.ndarray, data: np.ndarray) -> np.ndarray:
    """How many modes of the data a policy has: those near which at least half as many of its actions lie.

    Args:
        shares: of the policy's samples near each of T teams, [T, ...].
        data: shares of the data nearby, [T, ...].

    Returns:
        int64 [...].
    """
    return (present(data) & (shares >= 0.5 * data)).sum(0)


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns of the smallest values of each row, in any order."""
    if values.shape[1] <= count:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return values.argpartition(count - 1, axis=1)[:, :count]


def _between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean distance over the pairs i != j of x_i and y_j; [B, K, A] each -> [B]."""
    count = x.shape[1]
    squares = np.zeros((len(x), count, count))
    for component in range(x.shape[2]):
        squares += (x[:, :, None, component] - y[:, None, :, component]) ** 2
    distances = np.sqrt(squares)
    return (distances.sum((1, 2)) - np.trace(distances, axis1=1, axis2=2)) / (count * (count - 1))
