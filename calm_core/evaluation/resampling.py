"""All resampling: confidence intervals by the bootstrap, and p-values by randomisation, over whole documents.

A document is drawn, or exchanged, as a whole: its positions overlap and share a text, so they are no independent
observations. Documents have unequal lengths; a mean is over all positions, so it is a ratio of two sums.

The ends of an interval are percentiles of the resampled values (Efron 1979), further out the fewer documents there are:
the bootstrap's spread is too small by sqrt((n - 1) / n), and the normal distribution's tails are too short for a spread
that is estimated, so the tail of Student's t with n - 1 degrees of freedom, times sqrt(n / (n - 1)), says where to cut
(Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). Of documents of unequal lengths
n = (sum of lengths)^2 / (sum of their squares) count (Kish 1965): a few long ones are most of the evidence.
`python -m benchmarks.resampling` measures how often such intervals hold the truth.

Suffixes of names: D documents, T numbers of each, X resamples.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from calm_core.store.facts import Score

FloatArray = npt.NDArray[np.float64]

_BLOCK = 2**21  # numbers that are drawn at a time: 100,000 documents and 10,000 resamples are a thousand million
_LEAST_FREEDOM = 0.1  # degrees of freedom below which the percentile is that of the most extreme resample anyway
_ROUNDING = 1e-9  # statistics that differ by less, as a share of the largest one, are equal


def resampled_means(sums_DT: FloatArray, counts_D: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Means over all positions, each of as many documents as there are, drawn with replacement.

    Args:
        sums_DT: Sums of T numbers over the positions of each of D documents.
        counts_D: How many positions those are, at least one.
        resamples: X, how often D documents are drawn.
        seed: Of the draws.

    Returns:
        fp64 [X, T]. Numbers of several models side by side are resampled together, so differences are paired.
    """
    documents, generator = len(counts_D), np.random.default_rng(seed)
    both = np.column_stack([sums_DT, counts_D])
    means = []
    for rows in _blocks(documents, resamples):
        drawn = generator.integers(documents, size=(rows, documents)) + documents * np.arange(rows)[:, None]
        # A draw is how often each document is in it, so a mean is a product of matrices instead of a gather.
        times = np.bincount(drawn.ravel(), minlength=rows * documents).reshape(rows, documents)
        total = times @ both
        means.append(total[:, :-1] / total[:, -1:])
    return np.concatenate(means)


def with_interval(value: float, resampled_X: FloatArray, confidence: float, counts_D: FloatArray) -> Score:
    """A number and its interval, of which both tails are of one size.

    Args:
        value: The number.
        resampled_X: Its values in resamples of the documents.
        confidence: How often an interval shall hold the truth.
        counts_D: Positions of each document; of a single document the interval is unknown, since nothing tells how
            another one would have done.
    """
    if len(counts_D) == 1:
        return Score(value=value)
    effective = counts_D.sum() ** 2 / (counts_D**2).sum()
    freedom = max(effective - 1, _LEAST_FREEDOM)
    tail = 100 * ndtr(stdtrit(freedom, (1 - confidence) / 2) * np.sqrt((freedom + 1) / freedom))
    low, high = np.percentile(resampled_X, [tail, 100 - tail])
    return Score(value=value, low=float(low), high=float(high))


def exchanged_means(
    first_DT: FloatArray, second_DT: FloatArray, counts_D: FloatArray, resamples: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Means over all positions of two models that change places on each document with probability 1/2.

    So they would be if nothing but chance had told which of the two is which (Fisher 1935).

    Args:
        first_DT, second_DT: Sums of T numbers over the positions of each of D documents.
        counts_D: How many positions those are, at least one.
        resamples: X, how often places are drawn.
        seed: Of the draws.

    Returns:
        fp64 [X, T] of each.
    """
    documents, generator = len(counts_D), np.random.default_rng(seed)
    middle_T, half_DT = (first_DT + second_DT).sum(0) / 2, (first_DT - second_DT) / 2
    blocks = [
        (2.0 * generator.integers(2, size=(rows, documents)) - 1) @ half_DT for rows in _blocks(documents, resamples)
    ]
    shift_XT = np.concatenate(blocks)
    return (middle_T + shift_XT) / counts_D.sum(), (middle_T - shift_XT) / counts_D.sum()


def p_value(difference: float, exchanged_X: FloatArray) -> float:
    """Two-sided p-value of a difference: (1 + as extreme ones) / (1 + all) (Davison and Hinkley 1997, section 4.2).

    Args:
        difference: Of the models as they are.
        exchanged_X: Of models that change places.
    """
    sizes_X = np.abs(exchanged_X)
    margin = _ROUNDING * max(abs(difference), sizes_X.max())
    return float((1 + (sizes_X >= abs(difference) - margin).sum()) / (1 + len(sizes_X)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, corrected: one below 5 % is wrong in 5 % of all cases at most (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return [min(float(p), 1.0) for p in corrected]


def _blocks(documents: int, resamples: int) -> Iterator[int]:
    """How many resamples are drawn at a time: memory is bounded, and depends on nothing but the two numbers."""
    rows = max(_BLOCK // documents, 1)
    for done in range(0, resamples, rows):
        yield min(rows, resamples - done)
