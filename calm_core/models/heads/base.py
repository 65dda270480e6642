"""What every generative head is, and the network of blocks that the heads here share.

Parameter names are those of the public checkpoints' `mlp_generator`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import CalmModelConfig
from calm_core.models.noise import SequenceNoise

_LAYER_NORM_EPS = 1e-6


class HeadBlock(nn.Module):
    """x + down(SiLU(gate) * up), with gate and up from an MLP of [LayerNorm(x), y]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(hidden_size, eps=_LAYER_NORM_EPS)
        self.linears = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, 2 * hidden_size),
        )
        self.down_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [..., N, D], y [..., 1 or N, D] -> [..., N, D]; y's half of the first layer is computed once a position."""
        first = cast(nn.Linear, self.linears[0])
        weight_x, weight_y = first.weight.chunk(2, dim=1)
        h = self.linears[1:](F.linear(self.in_ln(x), weight_x) + F.linear(y, weight_y, first.bias))
        gate, up = h.chunk(2, dim=-1)
        out: Tensor = x + self.down_proj(F.silu(gate) * up)
        return out


class FinalLayer(nn.Module):
    """LayerNorm, Linear, SiLU, and a Linear to the latent that starts at zero."""

    def __init__(self, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(hidden_size, eps=_LAYER_NORM_EPS)
        self.linears = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, latent_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linears(self.in_ln(x))
        return out

    def start_at_zero(self) -> None:
        last = cast(nn.Linear, self.linears[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


@dataclass(frozen=True)
class Targets:
    """What the positions that count must predict, computed by the frozen autoencoder.

    Attributes:
        counted_BP: bool [B, P - 1], positions whose next chunk holds a real token; R of them.
        mean_RL: Mean of the next chunk's posterior.
        deviations_RML: M samples of that posterior, less the mean.
    """

    counted_BP: Tensor
    mean_RL: Tensor
    deviations_RML: Tensor


class Head(nn.Module, ABC):
    """A conditional sampler of latents, trained without or with a density of its own."""

    loss_name: str

    def __init__(self, config: CalmModelConfig, latent_size: int, noise_size: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.latent_size = latent_size
        self.noise_embd = nn.Linear(noise_size, hidden)
        self.hidden_embd = nn.Linear(hidden, hidden)
        self.norm_hidden = nn.LayerNorm(hidden, eps=_LAYER_NORM_EPS)
        self.norm_noise = nn.LayerNorm(hidden, eps=_LAYER_NORM_EPS)
        self.mlp_blocks = nn.ModuleList(HeadBlock(hidden) for _ in range(config.num_head_layers))
        self.final_layer = FinalLayer(hidden, latent_size)

    def network(self, x: Tensor, y: Tensor) -> Tensor:
        """[..., N, L] of what is transformed [..., N, noise_size] and its condition [..., 1 or N, D]."""
        x = self.norm_noise(self.noise_embd(x))
        for block in self.mlp_blocks:
            x = block(x, y)
        out: Tensor = self.final_layer(x)
        return out

    def condition(self, hidden: Tensor) -> Tensor:
        """[..., 1, D] of backbone states [..., D]."""
        out: Tensor = self.norm_hidden(self.hidden_embd(hidden)).unsqueeze(-2)
        return out

    def target_samples(self) -> int:
        """Samples of the posterior that `loss` needs for each position."""
        return self.config.model_samples

    @abstractmethod
    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """What `sample` turns into latents, [B, *shape, U]."""

    @abstractmethod
    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        """Latents [..., N, L] of backbone states [..., D] and `sampling_noise` [..., N, U]."""

    @abstractmethod
    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        """The loss of each position that counts, fp32 [R]."""
