"""Goldens are of rliable 1.2.0 (arch 7.2.0, numpy 2.4.6, scipy 1.17.1), its global generator seeded with 11."""

import math

import numpy as np
import pytest

from experiments.intervals import Estimate, improvement, interquartile_mean, interval, mean, paired_difference

X = [[0.076, 0.78, 0.438], [0.723, 0.978, 0.538], [0.501, 0.072, 0.268], [0.5, 0.679, 0.804], [0.381, 0.066, 0.288]]
Y = [[1.11, 0.413, 0.652], [1.131, 0.225, 0.801], [1.15, 0.43, 0.748], [1.109, 0.333, 0.723]]


def close(estimate, point, low, high):
    np.testing.assert_allclose([estimate.point, estimate.low, estimate.high], [point, low, high], rtol=1e-12)


def test_the_interquartile_mean_is_that_of_rliable():
    close(interval(X, repeats=300, seed=11), 0.47955555555555555, 0.295375, 0.6364555555555556)
    for runs, value in ((1, 0.43133333333333335), (2, 0.61975), (5, 0.4795555555555555)):
        np.testing.assert_allclose(interquartile_mean(np.ravel(X[:runs])), value, rtol=1e-12)


def test_the_probability_of_improvement_is_that_of_rliable():
    close(improvement(X, Y, repeats=300, seed=11), 0.26666666666666666, 0.06666666666666667, 0.4666666666666666)
    assert improvement(X, X).point == 0.5


def test_tasks_are_resampled_one_by_one():
    """Runs of task 1 and 2 that cancel: resampled together, the mean would not vary at all."""
    scores = np.stack([np.arange(8.0), -np.arange(8.0)], axis=1)
    estimate = interval(scores, mean, repeats=200)
    assert estimate.point == 0
    assert estimate.low < -0.3
    assert estimate.high > 0.3


def test_a_single_run_has_no_interval_and_says_why():
    for estimate in (interval([0.3]), improvement([0.3], [0.1, 0.2]), paired_difference([0.3], [0.1])):
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
        assert "two seeds" in estimate.reason
        assert "[" not in str(estimate)


def test_pairing_takes_out_what_a_seed_does_to_both():
    rng = np.random.default_rng(0)
    luck = rng.normal(size=10)
    first, second = luck + 0.1 + 0.01 * rng.normal(size=10), luck
    paired = paired_difference(first, second)
    assert 0.08 < paired.low < paired.point < paired.high < 0.12
    assert improvement(first, second).low < 0.5  # which the unpaired comparison cannot tell
    np.testing.assert_allclose(paired.point, np.mean(first - second), rtol=1e-12)


def test_intervals_cover_at_no_more_than_their_rate_and_not_much_less():
    """The mean of 20 normal runs: a 90% percentile interval covers about P(|t_19| < z·sqrt(19/20)) = 87.5%.

    400 samples: four standard errors are 4·sqrt(0.875·0.125/400) = 6.6 points.
    """
    rng = np.random.default_rng(1)
    found = [interval(rng.normal(size=20), mean, level=0.9, repeats=200, seed=s) for s in range(400)]
    rate = np.mean([e.low <= 0 <= e.high for e in found])
    assert abs(rate - 0.875) < 0.066
    halves = np.mean([(e.low + e.point) / 2 <= 0 <= (e.high + e.point) / 2 for e in found])
    assert halves < 0.875 - 0.066  # intervals of half the width are told apart


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interval([]), "at least one run"),
        (lambda: interval([0.1, math.nan]), "run 1"),
        (lambda: interval([0.1, 0.2], level=95.0), "level"),
        (lambda: improvement(X, [0.1, 0.2]), "same tasks"),
        (lambda: paired_difference([0.1, 0.2], [0.1]), "same runs"),
    ],
)
def test_misuse_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_an_estimate_prints_its_interval():
    assert str(Estimate(point=0.5, low=0.25, high=0.75, runs=4)) == "0.500 [0.250, 0.750]"
