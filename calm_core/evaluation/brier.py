"""BrierLM: a likelihood-free, strictly proper score of language models (arXiv 2510.27688).

Brier-n of a position = 1{x1 = y} + 1{x2 = y} - 1{x1 = x2} for two n-token samples x of the model and the true tokens y;
its expectation is 1 minus the Brier score's squared error, so a perfect model has the highest. Positions are averaged
first, then BrierLM = 100 * (product over n = 1..4 of max(Brier-n, 0))^(1/4).
"""

import numpy as np
import torch
from torch import Tensor

from calm_core.config.evaluation import SCORED_TOKENS
from calm_core.errors import CalmError
from calm_core.evaluation.resampling import FloatArray, resampled_means, with_interval
from calm_core.store.facts import BrierScores, Score

MAX_N = SCORED_TOKENS


def brier_terms(samples_RST: Tensor, target_RT: Tensor) -> Tensor:
    """Unbiased estimate of each position's Brier-n, n = 1..T, from S independent samples.

    (2 / S) sum_s 1{x_s = y} - 1 / (S (S - 1)) sum_{s != t} 1{x_s = x_t}, over the first n tokens.

    Args:
        samples_RST: int64, S >= 2 samples of T tokens for R positions.
        target_RT: int64, the true tokens.

    Returns:
        fp64 [R, T].
    """
    number = samples_RST.shape[1]
    hits_RST = (samples_RST == target_RT.unsqueeze(1)).cumprod(-1)
    same_RSST = (samples_RST.unsqueeze(1) == samples_RST.unsqueeze(2)).cumprod(-1)
    collisions_RT = same_RSST.sum((1, 2)) - number  # less each sample with itself
    return 2 * hits_RST.double().mean(1) - collisions_RT.double() / (number * (number - 1))


def brierlm(brier_n: FloatArray) -> FloatArray:
    """BrierLM of mean Brier-1..4 [..., 4]; each is clamped at zero alone, so two negative ones cannot cancel."""
    result: FloatArray = 100 * np.prod(np.maximum(brier_n, 0), axis=-1) ** (1 / brier_n.shape[-1])
    return result


class BrierAccumulator:
    """Sums Brier terms by sequence; memory is a few numbers for each sequence, whatever its length."""

    def __init__(self) -> None:
        self._sums: list[FloatArray] = []
        self._counts: list[FloatArray] = []

    def add(self, terms_BPT: Tensor, counted_BP: Tensor) -> None:
        """Terms of every position [B, P, T], and which of them count."""
        self._sums.append((terms_BPT * counted_BP.unsqueeze(-1)).sum(1).cpu().numpy())
        self._counts.append(counted_BP.sum(1).double().cpu().numpy())

    @property
    def positions(self) -> int:
        """Positions that counted."""
        return int(sum(counts.sum() for counts in self._counts))

    def scores(self, resamples: int, confidence: float, seed: int) -> BrierScores:
        """Brier-1..4 and BrierLM, with bootstrap intervals over the sequences in which a position counts.

        Of one such sequence the numbers have no interval: nothing tells how another one would have done.

        Raises:
            CalmError: No position counts.
        """
        if not self.positions:
            raise CalmError("no position counts, so there is nothing to score")
        sums_RT, counts_R = np.concatenate(self._sums), np.concatenate(self._counts)
        sums_RT, counts_R = sums_RT[counts_R > 0], counts_R[counts_R > 0]
        mean_T = sums_RT.sum(0) / counts_R.sum()
        if len(counts_R) == 1:
            return BrierScores(
                brierlm=Score(value=float(brierlm(mean_T))),
                brier={str(n): Score(value=mean) for n, mean in enumerate(mean_T.tolist(), start=1)},
            )
        resampled_XT = resampled_means(sums_RT, counts_R, resamples, seed)
        return BrierScores(
            brierlm=with_interval(float(brierlm(mean_T)), brierlm(resampled_XT), confidence),
            brier={
                str(n): with_interval(mean, resampled_XT[:, n - 1], confidence)
                for n, mean in enumerate(mean_T.tolist(), start=1)
            },
        )


def next_tokens(tokens_BT: Tensor, interval: int, chunk_size: int, real_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The true next `MAX_N` tokens after every `interval` tokens, and where all of them are real.

    The last position is the last one with `MAX_N` tokens' worth of whole chunks after it.

    Returns:
        int64 [B, P, MAX_N] and bool [B, P].
    """
    whole = chunk_size * -(-MAX_N // chunk_size)
    targets = tokens_BT[:, interval:].unfold(1, whole, interval)[..., :MAX_N]
    real = real_BT[:, interval:].unfold(1, whole, interval)[..., :MAX_N].all(-1)
    return targets, real


def frequencies(tokens: Tensor, vocab_size: int, pad_id: int) -> Tensor:
    """Share of each token among the real ones, fp64 [V]; the model that ignores all context."""
    counts = torch.bincount(tokens.flatten(), minlength=vocab_size).double()
    counts[pad_id] = 0
    return counts / counts.sum()
