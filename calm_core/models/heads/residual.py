"""A one-shot head with a mean of its own; its form and parameter names are ours."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from calm_core.config import ResidualHeadConfig
from calm_core.models.energy_score import energy_loss
from calm_core.models.heads.base import Targets
from calm_core.models.heads.network import LAYER_NORM_EPS, NetworkHead
from calm_core.models.noise import SequenceNoise


class ResidualHead(NetworkHead):
    """An implicit model, scale * (mean(h) + u + network(u, h)) with u ~ N(0, 1), trained by the energy score.

    The mean needs no noise, and comes straight from the backbone's state: through the network alone, whose stream
    carries the noise, it is learned very slowly. With new weights both terms are zero, and samples have the data's
    spread already.

    The loss is the energy score over scale * sqrt(L): root mean squares instead of norms, so that the gradient is about
    one in size for any latent, and is seldom clipped.
    """

    loss_name = "residual_loss"
    fits_data = True

    config: ResidualHeadConfig
    latent_scale: Tensor

    def __init__(self, config: ResidualHeadConfig, hidden_size: int, latent_size: int) -> None:
        super().__init__(config, hidden_size, latent_size, latent_size)
        self.mean = nn.Sequential(
            nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS),
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.SiLU(),
            nn.Linear(2 * hidden_size, latent_size),
        )
        self.register_buffer("latent_scale", torch.ones(()))

    def finish_initialization(self) -> None:
        super().finish_initialization()
        nn.init.zeros_(cast(nn.Linear, self.mean[-1]).weight)

    def fit(self, latents: Tensor) -> None:
        """Set the root mean square of the data, which is the scale of the samples."""
        self.latent_scale.copy_(latents.float().square().mean().sqrt())

    def target_samples(self) -> int:
        return self.config.target_samples

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """N(0, 1), which samples are made of even before training."""
        return noise.normal(*shape, self.latent_size)

    def sample(self, hidden: Tensor, drawn: Tensor, branch: float = 1.0) -> Tensor:
        """As of every head; `branch` scales what the noise adds to the mean."""
        return self._scaled(hidden, drawn, branch) * self.latent_scale

    def _scaled(self, hidden: Tensor, drawn: Tensor, branch: float = 1.0) -> Tensor:
        """Samples in units of `latent_scale`, fp32."""
        correction = self.network(drawn.to(hidden.dtype), self.condition(hidden)).float()
        mean: Tensor = self.mean(hidden).float().unsqueeze(-2)
        return mean + branch * (drawn + correction)

    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        drawn_RNL = targets.rows(self.sampling_noise(noise, hidden_BPD.shape[1], self.config.model_samples))
        samples_RNL = self._scaled(targets.rows(hidden_BPD), drawn_RNL)
        mean_RL, deviations_RML = targets.mean_RL / self.latent_scale, targets.deviations_RML / self.latent_scale
        return energy_loss(samples_RNL, mean_RL, deviations_RML, alpha=1.0) / math.sqrt(self.latent_size)
