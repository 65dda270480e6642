"""The energy score, CALM's likelihood-free training loss (Gneiting and Raftery 2007; arXiv 2510.27688)."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SMALLEST_SQUARE = 1e-24  # below it a distance counts as zero, with a zero gradient
_BLOCK_POSITIONS = {"cpu": 64, "cuda": 4096}  # computed at a time: they fill a CPU's cache, or a GPU


def energy_loss(samples_RNL: Tensor, mean_RL: Tensor, deviations_RML: Tensor, alpha: float) -> Tensor:
    """Energy loss per position, fp32 [R].

    2/(N M) sum_nm ||x_n - z_m||^alpha - 1/(N (N-1)) sum_{n != k} ||x_n - x_k||^alpha, with z_m = mean + deviation_m.
    Strictly proper for 0 < alpha < 2. The cross distances come from inner products, centred on the mean first: then
    the cancellation in |a|^2 + |b|^2 - 2 a.b is harmless, and no [N, M, R, L] tensor is made. The gradient is computed
    along with the loss, in blocks of positions, so that nothing is kept for the backward pass but itself.

    Args:
        samples_RNL: Model samples x_n, the only argument that gets a gradient.
        mean_RL: Mean of the encoder's posterior.
        deviations_RML: z_m - mean.
        alpha: Exponent.
    """
    with torch.autocast(samples_RNL.device.type, enabled=False):
        return cast(Tensor, _EnergyLoss.apply(samples_RNL, mean_RL, deviations_RML, alpha))  # type: ignore[no-untyped-call] # torch's own


class _EnergyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, samples_RNL: Tensor, mean_RL: Tensor, deviations_RML: Tensor, alpha: float) -> Tensor:
        loss_R = torch.empty(len(samples_RNL), device=samples_RNL.device)
        grad_RNL = torch.empty_like(samples_RNL) if ctx.needs_input_grad[0] else None
        block = _BLOCK_POSITIONS[samples_RNL.device.type]
        # Positions are independent, so a block's distances are made, used for loss and gradient, and forgotten.
        for start in range(0, len(samples_RNL), block):
            rows = slice(start, start + block)
            centred = samples_RNL[rows].float() - mean_RL[rows].float().unsqueeze(1)
            deviations = deviations_RML[rows].float()
            cross, cross_grad = _to_targets(centred, deviations, alpha)
            between, between_grad = _between(centred, alpha)
            loss_R[rows] = cross - between
            if grad_RNL is not None:
                grad_RNL[rows] = cross_grad.sub_(between_grad).to(grad_RNL.dtype)
        ctx.grad_RNL = grad_RNL
        return loss_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.grad_RNL * grad_R.view(-1, 1, 1).to(ctx.grad_RNL.dtype), None, None, None


def _to_targets(centred_RNL: Tensor, deviations_RML: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """2/(N M) sum ||x_n - z_m||^alpha, [R], and its gradient [R, N, L]."""
    scale = 2 / (centred_RNL.shape[1] * deviations_RML.shape[1])
    # |x - z|^2 = |x|^2 + |z|^2 - 2 x.z, all pairs of a position in one matrix product.
    squares_RNM = torch.baddbmm(
        torch.linalg.vecdot(centred_RNL, centred_RNL).unsqueeze(2)
        + torch.linalg.vecdot(deviations_RML, deviations_RML).unsqueeze(1),
        centred_RNL,
        deviations_RML.transpose(1, 2),
        alpha=-2,
    )
    power, slope = _power(squares_RNM, alpha)
    # d power / d x = 2 slope (x - z), slope = d power / d square; summed over the targets without their differences.
    grad = slope.sum(2, keepdim=True) * centred_RNL - slope @ deviations_RML
    return scale * power.sum((1, 2)), grad.mul_(2 * scale)


def _between(centred_RNL: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """1/(N (N-1)) sum_{n != k} ||x_n - x_k||^alpha, [R], and its gradient [R, N, L], from each pair's difference."""
    number = centred_RNL.shape[1]
    scale = 2 / (number * (number - 1))
    total_R, grad_RNL = torch.zeros(len(centred_RNL), device=centred_RNL.device), torch.zeros_like(centred_RNL)
    # Shifting by k pairs sample n with n + k: over all k each unordered pair comes once, hence the 2 in the scale.
    # Slices, not indices of pairs: gradients that are added through repeated indices add up in a varying order.
    for k in range(1, number):
        pair = centred_RNL[:, k:] - centred_RNL[:, :-k]
        power, slope = _power(torch.linalg.vecdot(pair, pair), alpha)
        total_R += power.sum(1)
        pair *= slope.unsqueeze(2)
        grad_RNL[:, k:] += pair
        grad_RNL[:, :-k] -= pair
    return scale * total_R, grad_RNL.mul_(2 * scale)


def _power(square: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """distance^alpha of a squared distance, and its derivative; at zero that is zero, instead of infinite."""
    # sqrt has an infinite slope at zero, and zero times that is NaN: equal samples get the slope zero instead.
    zero = square < _SMALLEST_SQUARE
    square = square.clamp_min(_SMALLEST_SQUARE)
    power = square.sqrt() if alpha == 1 else square.pow(alpha / 2)
    return power, (power / square).mul_(alpha / 2).masked_fill_(zero, 0)
