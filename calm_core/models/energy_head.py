"""The energy head: noise and a hidden state to a sample of the next chunk's latent (arXiv 2510.27688).

Parameter names are those of the public checkpoints' `mlp_generator`.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import CalmModelConfig

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
        """x [..., N, D] and y [..., 1, D] -> [..., N, D]; y's half of the first layer is computed once, not N times."""
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


class EnergyHead(nn.Module):
    """An implicit model: uniform noise in, one latent sample out, without a density."""

    def __init__(self, config: CalmModelConfig, latent_size: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.noise_size = config.noise_size
        self.noise_embd = nn.Linear(config.noise_size, hidden)
        self.hidden_embd = nn.Linear(hidden, hidden)
        self.norm_hidden = nn.LayerNorm(hidden, eps=_LAYER_NORM_EPS)
        self.norm_noise = nn.LayerNorm(hidden, eps=_LAYER_NORM_EPS)
        self.mlp_blocks = nn.ModuleList(HeadBlock(hidden) for _ in range(config.num_head_layers))
        self.final_layer = FinalLayer(hidden, latent_size)

    def forward(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Latent samples.

        Args:
            hidden: Backbone states [..., D].
            uniform: Noise uniform in [0, 1), [..., N, noise_size]; shifted to [-0.5, 0.5) here.

        Returns:
            [..., N, L].
        """
        x = self.norm_noise(self.noise_embd((uniform - 0.5).to(hidden.dtype)))
        y = self.norm_hidden(self.hidden_embd(hidden)).unsqueeze(-2)
        for block in self.mlp_blocks:
            x = block(x, y)
        out: Tensor = self.final_layer(x)
        return out
