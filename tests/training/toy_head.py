"""A head that is one file: its settings and its class. What it takes to add one to the library, for test_new_head."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from calm_core.config import HeadConfig
from calm_core.models.heads.base import Head, Targets
from calm_core.models.noise import SequenceNoise


class GaussianHeadConfig(HeadConfig):
    """A normal distribution for each latent, trained by its likelihood."""

    kind: Literal["gaussian"] = "gaussian"
    smallest_std: float = Field(1e-2, gt=0)


class GaussianHead(Head):
    """Mean and standard deviation from the hidden state."""

    loss_name = "gaussian_loss"
    config: GaussianHeadConfig

    def __init__(self, config: GaussianHeadConfig, hidden_size: int, latent_size: int) -> None:
        super().__init__(config, hidden_size, latent_size, latent_size)
        self.moments = nn.Linear(hidden_size, 2 * latent_size)

    def _moments(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.moments(hidden).unsqueeze(-2).chunk(2, dim=-1)
        return mean, nn.functional.softplus(spread) + self.config.smallest_std

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        return noise.normal(*shape, self.latent_size)

    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        mean, std = self._moments(hidden)
        return mean + std * drawn

    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        mean, std = self._moments(hidden_BPD[targets.counted_BP])
        latents_RML = targets.mean_RL.unsqueeze(1) + targets.deviations_RML
        return -torch.distributions.Normal(mean, std).log_prob(latents_RML).mean((1, 2))
