"""The best of some latents, of which one is decoded."""

import torch
from torch import Tensor

from calm_core.generation.samplers.base import OneLatent
from calm_core.models.noise import SequenceNoise

MOST = 64
"""Latents, however low the temperature."""


class Densest(OneLatent):
    """Of 2 / T^2 latents, at most MOST, the one with the least mean distance to the others."""

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        candidates = latents_at(temperature)
        latents_BSCL = self.plain_latents(hidden_BD, noise, number * candidates).unflatten(1, (number, candidates))
        return medoid(latents_BSCL)


def latents_at(temperature: float) -> int:
    """How many latents are drawn for each chunk."""
    return 1 if temperature == 1 else min(MOST, round(2 / temperature**2))


def medoid(latents: Tensor) -> Tensor:
    """Of latents [..., C, L] the one [..., L] with the least mean distance to the others."""
    latents = latents.float()
    place = torch.cdist(latents, latents).sum(-1).argmin(-1)
    return latents.take_along_dim(place[..., None, None], -2).squeeze(-2)
