"""Statistics over few runs: interquartile mean, stratified bootstrap, probability of improvement, profiles.

Source of the protocol: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021).
The arithmetic is SciPy's. Scores are given as one array a data set, [S], of its runs (seeds); data sets are the strata,
so every resample has as many runs of each as there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9_999
# How often the interval of the mean of so many normal numbers holds it (simulated; a test repeats it).
COVERAGE = {2: 0.50, 3: 0.75, 4: 0.80, 5: 0.84, 6: 0.86, 7: 0.87, 8: 0.88, 9: 0.90, 10: 0.90}
_SEED = 0  # of the resampling: the same runs give the same intervals
_CUT = 0.25  # from each end
_BATCH = 500  # resamples at a time, a bound on memory


_Frozen = tuple[tuple[float, ...], ...]  # scores as a key: tables and figures ask for the same estimates many times


class Estimate(NamedTuple):
    """A figure with its interval; without one where a data set has a single run."""

    value: float
    low: float | None
    high: float | None


class Profile(NamedTuple):
    """Share of runs that score more than each threshold, all float64 [T]; bounds are pointwise."""

    thresholds: np.ndarray
    shares: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def mean(scores: Sequence[np.ndarray]) -> Estimate:
    """Mean over all runs of all data sets."""
    return _mean(_frozen(scores))


def iqm(scores: Sequence[np.ndarray]) -> Estimate:
    """Interquartile mean: of the middle half of all runs of all data sets. With fewer than 4 runs it is their mean."""
    return _iqm(_frozen(scores))


@functools.cache
def _mean(scores: _Frozen) -> Estimate:
    return _estimate(_thawed(scores), lambda *strata, axis=-1: np.concatenate(strata, axis).mean(axis))


@functools.cache
def _iqm(scores: _Frozen) -> Estimate:
    return _estimate(
        _thawed(scores), lambda *strata, axis=-1: stats.trim_mean(np.concatenate(strata, axis), _CUT, axis=axis)
    )


def probability_of_improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Estimate:
    """How likely a run of `first` scores more than one of `second` on the same data set; a draw counts half.

    Averaged over the data sets, which both have in the same order.

    Raises:
        ValueError: they have not as many data sets.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} data sets against {len(second)}")
    return _improvement(_frozen([*first, *second]))


@functools.cache
def _improvement(both: _Frozen) -> Estimate:
    """`both`: the data sets of the first, then those of the second."""
    count = len(both) // 2

    def wins(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
        pairs = zip(strata[:count], strata[count:], strict=True)
        return np.mean(
            [_wins(np.moveaxis(one, axis, -1), np.moveaxis(other, axis, -1)) for one, other in pairs], axis=0
        )

    return _estimate(_thawed(both), wins)


def performance_profile(scores: Sequence[np.ndarray], thresholds: np.ndarray) -> Profile:
    """Share of all runs above each threshold; every data set has the same weight.

    Args:
        scores: one array a data set.
        thresholds: float64 [T].
    """
    return _profile(_frozen(scores), tuple(thresholds.tolist()))


@functools.cache
def _profile(frozen: _Frozen, levels: tuple[float, ...]) -> Profile:
    scores, thresholds = _thawed(frozen), np.array(levels)

    def above(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
        shares = [(stratum[None] > thresholds.reshape(-1, *[1] * stratum.ndim)).mean(axis) for stratum in strata]
        return np.mean(shares, axis=0)  # [T] or [T, resamples]

    interval = _interval(scores, above)
    return Profile(thresholds, above(*scores), *(interval or (None, None)))


def lower_bound(values: np.ndarray) -> float | None:
    """Lower end of Student's interval of the mean, which is right for few runs; None of a single one."""
    if len(values) < 2:
        return None
    deviation = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() + stats.t.ppf((1 - CONFIDENCE) / 2, len(values) - 1) * deviation)


def indistinguishable(runs: Mapping[str, np.ndarray]) -> set[str]:
    """Names of the highest mean, and of those that Welch's t-test does not tell from it at 5%.

    The test and not overlapping bootstrap intervals, since these are too narrow for a handful of seeds. Empty where
    somebody has a single run: that tells nothing apart.
    """
    if not runs or min(map(len, runs.values())) < 2:
        return set()
    best = max(runs, key=lambda name: runs[name].mean())
    found = {best}
    for name, values in runs.items():
        if values.std() == runs[best].std() == 0:  # nothing to divide by
            differs = values.mean() != runs[best].mean()
        else:
            differs = stats.ttest_ind(values, runs[best], equal_var=False)[1] < 1 - CONFIDENCE  # pyright: ignore
        found |= set() if differs else {name}
    return found


def _frozen(scores: Sequence[np.ndarray]) -> _Frozen:
    return tuple(tuple(map(float, stratum)) for stratum in scores)


def _thawed(scores: _Frozen) -> list[np.ndarray]:
    return [np.array(stratum) for stratum in scores]


def _wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, other = first[..., :, None], second[..., None, :]
    return ((one > other) + 0.5 * (one == other)).mean((-2, -1))


def _estimate(strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    low, high = _interval(strata, statistic) or (None, None)
    value = float(statistic(*strata))
    return Estimate(value, None if low is None else float(low), None if high is None else float(high))


def _interval(
    strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Percentile bootstrap; None where a stratum has a single run, which says nothing about spread."""
    if min(map(len, strata)) < 2:
        return None
    found = stats.bootstrap(
        tuple(strata),
        statistic,
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    return found.confidence_interval.low, found.confidence_interval.high
