"""Statistics against closed forms and against figures of the library that the field used for them."""

import itertools

import numpy as np
import pytest
from scipy import stats

from om2p_train import statistics

# 5 runs on each of 4 data sets, and of another method: normal numbers of numpy.random.default_rng(1).
FIRST, SECOND = (
    [np.random.default_rng(seed).normal(mean + shift, 10, 5) for seed, mean in enumerate((10, 50, 80, 30), start)]
    for start, shift in ((1, 0), (11, 4))
)
# Of FIRST: mean and IQM, each with its interval, by rliable.
RLIABLE = (41.7246, 36.3334, 47.0316, 37.6578, 31.1920, 45.4203)


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert statistics.iqm([np.array([0.0, 10, 20, 1e9])]).value == 15
    assert statistics.iqm([np.array([-1e9, 1.0]), np.array([3.0, 1e9])]).value == 2  # of all runs, not set by set
    assert statistics.iqm([np.array([1.0, 2, 30])]).value == 11  # fewer than four runs: their mean


def test_resampling_stays_within_a_data_set():
    """Where runs of a data set agree, nothing is uncertain, however far apart the data sets are."""
    same = [np.full(3, 10.0), np.full(3, 90.0)]
    assert statistics.mean(same) == (50, 50, 50)
    assert statistics.probability_of_improvement(same, [np.full(3, 20.0), np.full(3, 20.0)]) == (0.5, 0.5, 0.5)


def test_the_interval_is_that_of_all_resamples():
    """Of two runs each, all 4 x 4 resamples of two data sets are equally likely: quantiles by hand."""
    scores = [np.array([0.0, 1.0]), np.array([10.0, 14.0])]
    every = [np.mean([*one, *other]) for one in itertools.product(scores[0], repeat=2) for other in
             itertools.product(scores[1], repeat=2)]  # fmt: skip
    estimate = statistics.mean(scores)
    assert estimate.value == 6.25
    assert (estimate.low, estimate.high) == (min(every), max(every)) == (5, 7.5)
    assert statistics.CONFIDENCE == 0.95


def test_the_interval_of_a_mean_agrees_with_theory():
    values = np.random.default_rng(0).normal(100, 15, 400)
    estimate = statistics.mean([values])
    half = 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.15)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.15)


def test_one_run_has_no_interval():
    assert statistics.iqm([np.array([4.0])]) == (4, None, None)
    assert statistics.mean([np.ones(3), np.array([4.0])]) == (1.75, None, None)
    profile = statistics.performance_profile([np.array([4.0])], np.array([0.0]))
    assert (profile.low, profile.high) == (None, None)


def test_improvement_counts_pairs_on_the_same_data_set():
    first, second = [np.array([1.0, 3.0]), np.array([100.0])], [np.array([2.0, 3.0, 0.0]), np.array([100.0])]
    by_pairs = np.mean([0, 0, 1, 1, 0.5, 1])
    assert statistics.probability_of_improvement(first, second).value == pytest.approx((by_pairs + 0.5) / 2)
    with pytest.raises(ValueError, match="2 data sets against 1"):
        statistics.probability_of_improvement(first, second[:1])


def test_improvement_is_the_statistic_of_mann_and_whitney():
    by_set = [stats.mannwhitneyu(b, a).statistic / 25 for a, b in zip(FIRST, SECOND, strict=True)]
    found = statistics.probability_of_improvement(SECOND, FIRST)
    assert found.value == pytest.approx(np.mean(by_set))
    back = statistics.probability_of_improvement(FIRST, SECOND)
    assert back.value == pytest.approx(1 - found.value)
    assert back.low == pytest.approx(1 - (found.high or 0), abs=0.02)  # other resamples


def test_a_profile_falls_from_all_to_none():
    thresholds = np.array([-1.0, 0.0, 4.9, 5.0, 90.0])
    profile = statistics.performance_profile([np.array([0.0, 5.0]), np.array([50.0, 80.0])], thresholds)
    np.testing.assert_array_equal(profile.shares, [1, 0.75, 0.75, 0.5, 0])
    assert (profile.low <= profile.shares).all()
    assert (profile.shares <= profile.high).all()
    uneven = statistics.performance_profile([np.array([0.0] * 6), np.array([9.0, 9.0])], np.array([5.0]))
    assert uneven.shares == [0.5]  # data sets count alike, however many runs they have


def test_the_same_runs_give_the_same_intervals():
    assert statistics.iqm(FIRST) == statistics.iqm(FIRST)
    assert statistics.iqm(FIRST) != statistics.iqm(SECOND)


def test_figures_agree_with_the_library_of_the_protocols_authors():
    """rliable 1.2.0 (archived, and its dependencies no longer work together) on the same numbers, 50,000 resamples."""
    found = [*statistics.mean(FIRST), *statistics.iqm(FIRST)]
    np.testing.assert_allclose(found, RLIABLE, atol=0.25)
    np.testing.assert_allclose(statistics.probability_of_improvement(SECOND, FIRST), (0.63, 0.45, 0.80), atol=0.02)
    profile = statistics.performance_profile(FIRST, np.linspace(0, 100, 5))
    np.testing.assert_allclose(profile.shares, [0.95, 0.65, 0.35, 0.15, 0.05])
    np.testing.assert_allclose(profile.low, [0.85, 0.55, 0.25, 0.05, 0], atol=0.051)  # one run of twenty
    np.testing.assert_allclose(profile.high, [1, 0.75, 0.45, 0.25, 0.15], atol=0.051)


def test_bold_is_what_a_test_does_not_tell_from_the_best():
    runs = {"best": np.array([10.0, 11, 12]), "near": np.array([8.0, 11, 13]), "far": np.array([1.0, 2, 3])}
    assert statistics.indistinguishable(runs) == {"best", "near"}
    assert statistics.indistinguishable({"a": np.full(3, 2.0), "b": np.full(3, 2.0), "c": np.full(3, 1.0)}) == {
        "a",
        "b",
    }
    assert statistics.indistinguishable({"a": np.array([3.0]), "b": np.array([1.0, 2.0])}) == set()


def test_students_interval_of_few_runs():
    """Its quantile for two degrees of freedom, 4.3027, is of the tables."""
    assert statistics.lower_bound(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert statistics.lower_bound(np.array([1.0])) is None


@pytest.mark.parametrize("seeds", sorted(statistics.COVERAGE))
def test_how_rarely_intervals_of_few_seeds_hold_the_mean(seeds):
    """COVERAGE, which is what readers are told, by simulation: percentiles of resampled means of normal numbers."""
    random = np.random.default_rng(seeds)
    held = []
    for _ in range(1000):
        values = random.normal(size=seeds)
        means = values[random.integers(0, seeds, (1000, seeds))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        held.append(low <= 0 <= high)
    assert np.mean(held) == pytest.approx(statistics.COVERAGE[seeds], abs=0.05)
