"""Intervals and p-values by resampling whole documents."""

import itertools

import numpy as np
import pytest

from calm_core.evaluation import resampling
from calm_core.evaluation.resampling import exchanged_means, holm, p_value, resampled_means, with_interval


def test_more_positions_that_say_the_same_narrow_no_interval() -> None:
    """Each document is one observation, however many equal positions it has."""
    sums = np.random.default_rng(0).standard_normal((30, 4))
    once = resampled_means(sums, np.ones(30), resamples=50, seed=1)
    eightfold = resampled_means(8 * sums, np.full(30, 8.0), resamples=50, seed=1)
    np.testing.assert_allclose(eightfold, once)
    assert once.std() > 0.1  # of 30 documents with deviation 1: about 0.18


def test_a_longer_document_weighs_more() -> None:
    """The mean is over positions: a document of three at 1 and one of one at 0 give 3/4 where both are drawn once."""
    means = resampled_means(np.array([[3.0], [0.0]]), np.array([3.0, 1.0]), resamples=100, seed=0)
    assert set(means[:, 0]) == {0.0, 0.75, 1.0}


def test_each_document_is_drawn_as_often_as_any_other() -> None:
    """The mean of one indicator per document over many resamples is 1 / D; its deviation is below 0.4 %."""
    means = resampled_means(np.eye(5), np.ones(5), resamples=10_000, seed=0)
    np.testing.assert_allclose(means.mean(0), np.full(5, 0.2), atol=0.01)
    np.testing.assert_allclose(means.std(0), np.sqrt(0.2 * 0.8 / 5), rtol=0.05)


def test_blocks_bound_the_memory_and_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    sums, others, counts = generator.random((7, 4)), generator.random((7, 4)), np.arange(1.0, 8)
    drawn, exchanged = (
        resampled_means(sums, counts, resamples=50, seed=3),
        exchanged_means(sums, others, counts, resamples=50, seed=3),
    )
    monkeypatch.setattr(resampling, "_BLOCK", 25)  # three resamples at a time
    np.testing.assert_allclose(resampled_means(sums, counts, resamples=50, seed=3), drawn, rtol=1e-14)
    np.testing.assert_allclose(exchanged_means(sums, others, counts, resamples=50, seed=3), exchanged, rtol=1e-14)


def test_fewer_documents_give_wider_intervals_of_the_same_resamples() -> None:
    """With many documents the ends are the usual percentiles; one long document among short ones is hardly one more."""
    resampled = np.random.default_rng(0).standard_normal(100_000)
    many = with_interval(0.0, resampled, 0.95, np.ones(100_000))
    assert (many.low, many.high) == pytest.approx((-1.96, 1.96), abs=0.03)
    ten = with_interval(0.0, resampled, 0.95, np.ones(10))
    expected = 2.262 * np.sqrt(10 / 9)  # Student's quantile for 9 degrees of freedom
    assert (ten.low, ten.high) == pytest.approx((-expected, expected), abs=0.06)
    unequal = with_interval(0.0, resampled, 0.95, np.array([1.0] * 9 + [100.0]))
    assert unequal.low == resampled.min() and unequal.high == resampled.max()


def test_of_one_document_the_interval_is_unknown() -> None:
    score = with_interval(0.5, np.full(100, 0.5), 0.95, np.array([7.0]))
    assert (score.value, score.low, score.high) == (0.5, None, None)


def test_exchanged_models_keep_their_sum_and_take_every_place() -> None:
    """Of three documents there are eight ways; each is drawn, and each document's scores stay together."""
    generator = np.random.default_rng(0)
    first, second, counts = generator.random((3, 4)), generator.random((3, 4)), np.array([1.0, 2.0, 5.0])
    one, other = exchanged_means(first, second, counts, resamples=500, seed=0)
    np.testing.assert_allclose(one + other, np.broadcast_to((first + second).sum(0) / 8, (500, 4)))
    ways = {
        tuple(np.round(np.where(np.array(swapped)[:, None], second, first).sum(0) / 8, 12))
        for swapped in itertools.product([False, True], repeat=3)
    }
    assert {tuple(row) for row in np.round(one, 12)} == ways


def test_the_p_value_is_that_of_all_exchanges_counted_out() -> None:
    """Of nine documents all 512 exchanges can be listed; 10,000 drawn ones are within 5 deviations of those."""
    generator = np.random.default_rng(1)
    first, second = generator.random((9, 1)) + 0.2, generator.random((9, 1))
    difference = (first - second).sum()
    signs = np.array([*itertools.product([-1.0, 1.0], repeat=9)])
    exact = (np.abs(signs @ (first - second)) >= abs(difference) - 1e-12).mean()
    assert 0.02 < exact < 0.5
    one, other = exchanged_means(first, second, np.ones(9), resamples=10_000, seed=0)
    drawn = p_value(difference / 9, (one - other)[:, 0])
    assert drawn == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 10_000))


def test_equal_numbers_count_as_extreme_whatever_rounding_says() -> None:
    """Of two documents, one scored alike, all four exchanges are equally far apart: nothing can be concluded."""
    first, second = np.array([[0.1], [0.7]]), np.array([[0.4], [0.7]])
    one, other = exchanged_means(first, second, np.array([3.0, 3.0]), resamples=1000, seed=0)
    assert p_value((0.8 - 1.1) / 6, (one - other)[:, 0]) == 1
    assert p_value(0.0, np.zeros(99)) == 1
    assert p_value(2.0, np.zeros(99)) == 0.01  # the least that 99 resamples can say


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; and 0.04 is no smaller than that
        ([0.5, 0.001], [0.5, 0.002]),
        ([0.6, 0.7, 0.9], [1.0, 1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_corrects_the_least_most(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)
