"""BrierLM: a likelihood-free, strictly proper score of language models (arXiv 2510.27688).

Brier-n of a position = 1{x1 = y} + 1{x2 = y} - 1{x1 = x2} for two n-token samples x of the model and the true tokens y;
its expectation is 1 minus the Brier score's squared error, so a perfect model has the highest. Positions are averaged
first, then BrierLM = 100 * (product over n = 1..4 of max(Brier-n, 0))^(1/4).
"""

import numpy as np
import torch
from torch import Tensor

from calm_core.config.evaluation import SCORED_TOKENS
from calm_core.evaluation.resampling import FloatArray

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
    collisions_RT = torch.full_like(target_RT, -number)  # less each sample with itself
    for one_RT in samples_RST.unbind(1):  # all pairs at once would take S times the memory of the samples
        collisions_RT += (samples_RST == one_RT.unsqueeze(1)).cumprod(-1).sum(1)
    return 2 * hits_RST.double().mean(1) - collisions_RT.double() / (number * (number - 1))


def brierlm(brier_n: FloatArray) -> FloatArray:
    """BrierLM of mean Brier-1..4 [..., 4]; each is clamped at zero alone, so two negative ones cannot cancel."""
    result: FloatArray = 100 * np.prod(np.maximum(brier_n, 0), axis=-1) ** (1 / brier_n.shape[-1])
    return result


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
