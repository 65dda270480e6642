"""Confidence intervals by the bootstrap over sequences (Efron 1979).

A sequence is drawn as a whole: its positions overlap and share a text, so they are no independent observations.
"""

import numpy as np
import numpy.typing as npt

from calm_core.store.facts import Score

FloatArray = npt.NDArray[np.float64]


def resampled_means(sums_RT: FloatArray, counts_R: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Means over all positions, each of as many sequences as there are, drawn with replacement.

    Args:
        sums_RT: Sums of T numbers over the positions of each of R sequences.
        counts_R: How many positions those are, at least one.
        resamples: How often R sequences are drawn.
        seed: Of the draws.

    Returns:
        fp64 [resamples, T].
    """
    sequences = len(counts_R)
    # A draw is how often each sequence is in it, so a mean is a product of matrices instead of a gather.
    draws = np.random.default_rng(seed).multinomial(sequences, np.full(sequences, 1 / sequences), size=resamples)
    means: FloatArray = (draws @ sums_RT) / (draws @ counts_R)[:, None]
    return means


def with_interval(value: float, resampled: FloatArray, confidence: float) -> Score:
    """A number, and the interval that holds this share of its resampled values; both tails are of one size."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Score(value=value, low=float(low), high=float(high))
