"""Noise paired with what a teacher makes of it: an implicit model then learns by plain regression.

All noise here is numbers uniform in [0, 1), U for each draw; a head of normal noise gets their normal quantiles.
Suffixes as in `calm_core.models`.
"""

import torch
from torch import Tensor

_LOWEST, _HIGHEST = 2.0**-25, 1 - 2.0**-24  # fp32; quantiles of 0 and 1 are infinite
_MOST_DIGITS = 24  # of an fp32 number


def normal_quantiles(uniform: Tensor) -> Tensor:
    """N(0, 1) numbers, fp32, of numbers uniform in [0, 1): the same map for a teacher and its student."""
    quantiles: Tensor = torch.special.ndtri(uniform.float().clamp(_LOWEST, _HIGHEST))
    return quantiles


def with_digits(uniform_RNU: Tensor, numbers_RNK: Tensor) -> Tensor:
    """Noise whose halves spell the binary digits of some numbers.

    Number k owns U // K of the noise's numbers (24 at most); its j-th digit says in which half of [0, 1) the j-th of
    them lies, and the old number where in that half. So for uniform numbers the noise is uniform as before, and a
    network reads each number at all scales at once.

    Args:
        uniform_RNU: Uniform in [0, 1).
        numbers_RNK: Uniform in [0, 1), fp64.
    """
    count = numbers_RNK.shape[-1]
    digits = min(uniform_RNU.shape[-1] // count, _MOST_DIGITS)
    powers = 2.0 ** torch.arange(1, digits + 1, dtype=torch.float64, device=numbers_RNK.device)
    digit_RNV = (numbers_RNK.double().unsqueeze(-1) * powers).floor().remainder(2).flatten(-2).float()
    own = (digit_RNV + uniform_RNU[..., : count * digits]) / 2
    return torch.cat([own, uniform_RNU[..., count * digits :]], dim=-1).clamp_max(_HIGHEST)


def numbers_of(uniform_RNU: Tensor, count: int) -> Tensor:
    """The numbers that noise spells, [..., count], fp64: `with_digits` the other way, as far as its digits go."""
    digits = min(uniform_RNU.shape[-1] // count, _MOST_DIGITS)
    halves = (uniform_RNU[..., : count * digits] >= 0.5).double().unflatten(-1, (count, digits))
    powers = 2.0 ** -torch.arange(1, digits + 1, dtype=torch.float64, device=uniform_RNU.device)
    numbers: Tensor = (halves * powers).sum(-1)
    return numbers
