"""What the heads that undo noise share; the time embedding's parameter names are ours."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import HeadConfig
from calm_core.models.heads.base import Targets
from calm_core.models.heads.network import NetworkHead
from calm_core.models.noise import SequenceNoise


class DenoisingHead(NetworkHead):
    """A head that learns to undo noise, and samples in several evaluations of its network.

    The loss of a position is the mean squared error over `model_samples` draws of (latent, time, noise).
    """

    fits_data = True
    latent_scale: Tensor

    def __init__(self, config: HeadConfig, hidden_size: int, latent_size: int) -> None:
        super().__init__(config, hidden_size, latent_size, latent_size)
        self.time_embd = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self.register_buffer("latent_scale", torch.ones(()))

    def fit(self, latents: Tensor) -> None:
        """Set the root mean square of the data, which the network sees scaled to one."""
        self.latent_scale.copy_(latents.float().square().mean().sqrt())

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """N(0, 1), the latent at the noisy end."""
        return noise.normal(*shape, self.latent_size)

    def predict(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Network output, fp32 [..., N, L], at noisy latents [..., N, L] and times in [0, 1] [..., N or 1]."""
        dtype = condition.dtype
        time_embedding = self.time_embd(sinusoids(time, self.hidden_size).to(dtype))
        return self.network(x.to(dtype), condition + time_embedding).float()

    def training_pass(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        return self.predict(drawn, torch.zeros(1, device=drawn.device), self.condition(hidden))

    @abstractmethod
    def draw_time(self, uniform: Tensor) -> Tensor:
        """Times at which the network is trained, from numbers uniform in [0, 1)."""

    @abstractmethod
    def noisy(self, latent: Tensor, normal: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latent at `time` [..., 1], and what the network must predict there."""

    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        shape = (hidden_BPD.shape[1], self.config.model_samples)
        time_RN = self.draw_time(targets.rows(noise.uniform(*shape)))
        normal_RNL = targets.rows(self.sampling_noise(noise, *shape))
        latent_RNL = (targets.mean_RL.unsqueeze(1) + targets.deviations_RML).float() / self.latent_scale
        x_RNL, wanted_RNL = self.noisy(latent_RNL, normal_RNL, time_RN.unsqueeze(-1))
        predicted_RNL = self.predict(x_RNL, time_RN, self.condition(targets.rows(hidden_BPD)))
        return (predicted_RNL - wanted_RNL).square().mean((1, 2))


def sinusoids(time: Tensor, size: int) -> Tensor:
    """Features [..., size] of times in [0, 1]: cosines and sines of 1 to 10,000 radians."""
    half = size // 2
    angles = time.float().unsqueeze(-1) * torch.logspace(0, 4, half, device=time.device)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, size - 2 * half))
