"""Less noise into the head: heuristics that cost as much as temperature 1."""

import math

import torch
from torch import Tensor

from calm_core.generation.samplers.base import OneLatent
from calm_core.models.heads.base import Head
from calm_core.models.noise import SequenceNoise


class NoiseScale(OneLatent):
    """Noise times sqrt(T) about its mean.

    Exact where latents are an affine map of normal noise: N(m, C) becomes N(m, T C), which is its power 1/T.
    """

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        drawn_BSU = self.calm.sampling_noise(noise, number)
        centre = self.calm.mlp_generator.noise_centre
        return self.calm.sample(hidden_BD, centre + (drawn_BSU - centre) * math.sqrt(temperature))


class Truncated(OneLatent):
    """Each normal number drawn from the middle share sqrt(T) of its distribution."""

    @classmethod
    def unfit(cls, head: Head) -> str:
        return "its noise is uniform, and a middle share of that is noise-scale" if head.noise_centre else ""

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        drawn_BSU = self.calm.sampling_noise(noise, number)
        if temperature < 1:
            drawn_BSU = truncated_normal(drawn_BSU, math.sqrt(temperature))
        return self.calm.sample(hidden_BD, drawn_BSU)


def truncated_normal(normal: Tensor, share: float) -> Tensor:
    """N(0, 1) numbers moved, in their order, into the middle share of that distribution."""
    moved: Tensor = torch.special.erfinv(share * torch.special.erf(normal / math.sqrt(2)))
    return math.sqrt(2) * moved
