"""A head that predicts velocities."""

import torch
from torch import Tensor, nn

from calm_core.config import FlowHeadConfig
from calm_core.models.heads.denoising import DenoisingHead


class FlowHead(DenoisingHead):
    """Flow matching on the straight path x_t = (1 - t) noise + t latent (Lipman et al. 2023), sampled by midpoints.

    Attributes:
        linear_path: With the setting of that name: of the velocity E[latent | x_t, hidden] - E[noise | x_t, hidden], at
            the noisy end, the first term depends on the hidden state alone. In the blocks the state acts by gates only,
            which pass little gradient to it while they are new; this map passes it from the first step on.
    """

    loss_name = "flow_loss"
    config: FlowHeadConfig

    def __init__(self, config: FlowHeadConfig, hidden_size: int, latent_size: int) -> None:
        super().__init__(config, hidden_size, latent_size)
        self.linear_path = nn.Linear(hidden_size, latent_size, bias=False) if config.linear_path else None

    def finish_initialization(self) -> None:
        super().finish_initialization()
        if self.linear_path is not None:
            nn.init.zeros_(self.linear_path.weight)

    def predict(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        velocity = super().predict(x, time, condition)
        return velocity if self.linear_path is None else velocity + self.linear_path(condition).float()

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
