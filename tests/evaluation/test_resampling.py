"""Intervals by resampling whole sequences."""

import numpy as np

from calm_core.evaluation.resampling import resampled_means, with_interval


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """90 % intervals of a known mean, 200 times: 180 expected, and fewer than 160 or all 200 are 5 deviations off."""
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        sums = (0.3 + generator.standard_normal((60, 5, 1))).sum(1)  # 60 sequences of 5 positions
        means = resampled_means(sums, np.full(60, 5.0), resamples=200, seed=trial)
        score = with_interval(sums.sum() / 300, means[:, 0], confidence=0.9)
        covered += score.low <= 0.3 <= score.high
    assert 160 <= covered < 200


def test_more_positions_that_say_the_same_narrow_no_interval() -> None:
    """Each sequence is one observation, however many equal positions it has."""
    sums = np.random.default_rng(0).standard_normal((30, 4))
    once = resampled_means(sums, np.ones(30), resamples=50, seed=1)
    eightfold = resampled_means(8 * sums, np.full(30, 8.0), resamples=50, seed=1)
    np.testing.assert_allclose(eightfold, once)
    assert once.std() > 0.1  # of 30 sequences with deviation 1: about 0.18


def test_a_longer_sequence_weighs_more() -> None:
    """The mean is over positions: a sequence of three at 1 and one of one at 0 give 3/4 where both are drawn once."""
    means = resampled_means(np.array([[3.0], [0.0]]), np.array([3.0, 1.0]), resamples=100, seed=0)
    assert set(means[:, 0]) == {0.0, 0.75, 1.0}
