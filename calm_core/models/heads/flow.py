"""A head that predicts velocities."""

import torch
from torch import Tensor

from calm_core.config import FlowHeadConfig
from calm_core.models.heads.denoising import DenoisingHead


class FlowHead(DenoisingHead):
    """Flow matching on the straight path x_t = (1 - t) noise + t latent (Lipman et al. 2023), sampled by midpoints."""

    loss_name = "flow_loss"
    config: FlowHeadConfig

    def draw_time(self, uniform: Tensor) -> Tensor:
        return uniform

    def noisy(self, latent: Tensor, normal: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - time) * normal + time * latent, latent - normal

    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        """Midpoint steps of two evaluations each; an odd `sampling_steps` begins with one Euler step."""
        evaluations, condition, x = self.config.sampling_steps, self.condition(hidden), drawn
        steps = -(-evaluations // 2)
        size = 1 / steps
        for i in range(steps):
            start = torch.full((1,), i * size, device=drawn.device)
            velocity = self.predict(x, start, condition)
            if i > 0 or evaluations % 2 == 0:
                velocity = self.predict(x + velocity * size / 2, start + size / 2, condition)
            x = x + velocity * size
        return x * self.latent_scale
