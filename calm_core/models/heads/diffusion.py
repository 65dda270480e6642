"""A head that predicts noise."""

import math

import torch
from torch import Tensor

from calm_core.config import DiffusionHeadConfig
from calm_core.models.heads.denoising import DenoisingHead


class DiffusionHead(DenoisingHead):
    """Noise prediction (DDPM, Ho et al. 2020) with the cosine schedule (Nichol and Dhariwal 2021).

    Sampled by DDIM (Song et al. 2021, eta 0): given the first noise no more is drawn, so one sample needs L numbers.
    """

    loss_name = "diffusion_loss"
    config: DiffusionHeadConfig

    def signal(self, time: Tensor) -> Tensor:
        """Share of the variance that is data at `time`, from almost 1 at 0 to almost 0 at 1."""
        offset = 0.008
        return (torch.cos((time + offset) / (1 + offset) * math.pi / 2).square()).clamp(1e-4, 1 - 1e-4)

    def draw_time(self, uniform: Tensor) -> Tensor:
        steps = self.config.diffusion_steps
        return (uniform * steps).floor() / (steps - 1)

    def noisy(self, latent: Tensor, normal: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        signal = self.signal(time)
        return signal.sqrt() * latent + (1 - signal).sqrt() * normal, normal

    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        levels, steps = self.config.diffusion_steps, self.config.sampling_steps
        grid = torch.linspace(levels - 1, 0, steps, dtype=torch.float64).round().float().to(hidden.device)
        times = grid / (levels - 1)
        condition, x = self.condition(hidden), drawn
        for i in range(steps):
            signal = self.signal(times[i])
            normal = self.predict(x, times[i].expand(1), condition)
            latent = (x - (1 - signal).sqrt() * normal) / signal.sqrt()
            if i + 1 == steps:
                return latent * self.latent_scale
            next_signal = self.signal(times[i + 1])
            x = next_signal.sqrt() * latent + (1 - next_signal).sqrt() * normal
        raise AssertionError("sampling_steps is at least 1")
