"""The line that is drawn through scores at several budgets."""

import numpy as np
import pytest

from benchmarks.growth import fitted
from calm_core.evaluation.documents import DocumentScores

COUNTS = np.array([40.0, 60.0, 50.0, 80.0, 70.0])


def scores(terms: np.ndarray) -> DocumentScores:
    """Every document has the same Brier-1..4 in the mean."""
    return DocumentScores(np.arange(len(COUNTS)), COUNTS, COUNTS[:, None] * terms)


def test_a_straight_line_over_doublings_is_found_again() -> None:
    lines = [[scores(np.full(4, (5 + 3 * i + seed) / 100)) for seed in (0, 1)] for i in range(4)]
    points, slope = fitted([1e12, 2e12, 4e12, 8e12], lines)
    assert [point.value for point in points] == pytest.approx([5.5, 8.5, 11.5, 14.5])
    assert slope.value == pytest.approx(3)
    assert slope.low is not None and slope.high is not None
    assert slope.low < 3 < slope.high  # the seeds differ by one


def test_documents_that_differ_widen_the_intervals_of_points_more_than_that_of_the_slope() -> None:
    """The same documents are drawn for all budgets, so what they share does not move the line."""
    easy = np.linspace(0.05, 0.3, len(COUNTS))[:, None]
    lines = [[DocumentScores(np.arange(5), COUNTS, COUNTS[:, None] * (easy + 0.02 * i) * np.ones(4))] for i in range(3)]
    points, slope = fitted([1e12, 2e12, 4e12], lines)
    assert slope.value == pytest.approx(2)
    assert points[0].high - points[0].low > 1  # type: ignore[operator]  # both are there
    assert slope.high == pytest.approx(slope.low)
