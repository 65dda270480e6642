"""Less noise into the head: heuristics that cost as much as temperature 1."""

import math

import torch
from torch import Tensor

from calm_core.generation.samplers.base import OneLatent
from calm_core.models.heads.base import Head
from calm_core.models.heads.denoising import DenoisingHead
from calm_core.models.heads.energy import EnergyHead
from calm_core.models.heads.mixture import MixtureHead
from calm_core.models.heads.residual import ResidualHead
from calm_core.models.noise import SequenceNoise


class NoiseScale(OneLatent):
    """Normal noise times sqrt(T).

    Exact where latents are an affine map of the noise: N(m, C) becomes N(m, T C), which is its power 1/T.
    """

    @classmethod
    def unfit(cls, head: Head) -> str:
        if isinstance(head, EnergyHead):
            return "its noise is normalised first, so that less of it is the same; take branch"
        return "" if isinstance(head, DenoisingHead) else "it is of normal noise that is undone in steps"

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        return self.calm.sample(hidden_BD, self.calm.sampling_noise(noise, number) * math.sqrt(temperature))


class Truncated(NoiseScale):
    """Each normal number drawn from the middle share sqrt(T) of its distribution."""

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        drawn_BSU = self.calm.sampling_noise(noise, number)
        if temperature < 1:
            drawn_BSU = truncated_normal(drawn_BSU, math.sqrt(temperature))
        return self.calm.sample(hidden_BD, drawn_BSU)


class Branch(OneLatent):
    """The noise's branch of a one-shot head times T: the energy head's after its norm, all that a residual head adds to
    its mean, all that a mixture adds to a component's, and the weights of those to the power 1/T."""

    @classmethod
    def unfit(cls, head: Head) -> str:
        if isinstance(head, EnergyHead | ResidualHead | MixtureHead):
            return ""
        return "it is of energy, residual and mixture heads, whose noise is a branch of its own"

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        head = self.calm.mlp_generator
        assert isinstance(head, EnergyHead | ResidualHead | MixtureHead)
        return head.sample(hidden_BD, self.calm.sampling_noise(noise, number), temperature)


def truncated_normal(normal: Tensor, share: float) -> Tensor:
    """N(0, 1) numbers moved, in their order, into the middle share of that distribution."""
    moved: Tensor = torch.special.erfinv(share * torch.special.erf(normal / math.sqrt(2)))
    return math.sqrt(2) * moved
