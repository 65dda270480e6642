"""The energy score, CALM's likelihood-free training loss (Gneiting and Raftery 2007; arXiv 2510.27688)."""

import torch
from torch import Tensor

_SMALLEST_SQUARE = 1e-24  # below it a distance counts as zero, with a zero gradient


def energy_loss(samples_RNL: Tensor, mean_RL: Tensor, deviations_RML: Tensor, alpha: float) -> Tensor:
    """Energy loss per position, fp32 [R].

    2/(N M) sum_nm ||x_n - z_m||^alpha - 1/(N (N-1)) sum_{n != k} ||x_n - x_k||^alpha, with z_m = mean + deviation_m.
    Strictly proper for 0 < alpha < 2. The cross distances come from inner products, centred on the mean first: then
    the cancellation in |a|^2 + |b|^2 - 2 a.b is harmless, and no [N, M, R, L] tensor is made.

    Args:
        samples_RNL: Model samples x_n, the only argument that needs a gradient.
        mean_RL: Mean of the encoder's posterior.
        deviations_RML: z_m - mean.
        alpha: Exponent.
    """
    centred_RNL = samples_RNL.float() - mean_RL.float().unsqueeze(1)
    deviations_RML = deviations_RML.float()
    squares_RNM = torch.baddbmm(
        centred_RNL.square().sum(-1, keepdim=True) + deviations_RML.square().sum(-1).unsqueeze(1),
        centred_RNL,
        deviations_RML.transpose(1, 2),
        alpha=-2,
    )
    to_target_R = _power(squares_RNM, alpha).mean((1, 2))

    # Every pair once, as slices: indexing with repeated indices would add up gradients in an order that varies.
    pairs = [centred_RNL[:, k:] - centred_RNL[:, :-k] for k in range(1, samples_RNL.shape[1])]
    between_R = torch.cat([_power(pair.square().sum(-1), alpha) for pair in pairs], dim=1).mean(1)
    return 2 * to_target_R - between_R


def _power(squared_distance: Tensor, alpha: float) -> Tensor:
    """distance^alpha of a squared distance, whose gradient at zero is zero instead of NaN."""
    if alpha == 1:
        return squared_distance.clamp_min(_SMALLEST_SQUARE).sqrt()
    return squared_distance.clamp_min(_SMALLEST_SQUARE).pow(alpha / 2)
