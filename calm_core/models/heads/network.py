"""The network of blocks that the heads here share (arXiv 2510.27688).

Parameter names are those of the public checkpoints' `mlp_generator`.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import HeadConfig
from calm_core.models.heads.base import Head

LAYER_NORM_EPS = 1e-6


class HeadBlock(nn.Module):
    """x + down(SiLU(gate) * up), with gate and up from an MLP of [LayerNorm(x), y]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
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
        # W [LayerNorm(x), y] = W_x LayerNorm(x) + W_y y: the second term is the same for all N samples of a position.
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
        self.in_ln = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
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


class NetworkHead(Head):
    """A head whose samples, or steps towards one, are the output of this network."""

    def __init__(self, config: HeadConfig, hidden_size: int, latent_size: int, noise_size: int) -> None:
        super().__init__(config, hidden_size, latent_size, noise_size)
        self.noise_embd = nn.Linear(noise_size, hidden_size)
        self.hidden_embd = nn.Linear(hidden_size, hidden_size)
        self.norm_hidden = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.norm_noise = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.mlp_blocks = nn.ModuleList(HeadBlock(hidden_size) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(hidden_size, latent_size)

    def finish_initialization(self) -> None:
        self.final_layer.start_at_zero()

    def network(self, x: Tensor, y: Tensor, branch: float = 1.0) -> Tensor:
        """[..., N, L] of what is transformed [..., N, U], times `branch` once it is normalised, and of its condition
        [..., 1 or N, D].
        """
        x = self.norm_noise(self.noise_embd(x))
        if branch != 1:
            x = x * branch
        for block in self.mlp_blocks:
            x = block(x, y)
        out: Tensor = self.final_layer(x)
        return out

    def condition(self, hidden: Tensor) -> Tensor:
        """[..., 1, D] of backbone states [..., D]."""
        out: Tensor = self.norm_hidden(self.hidden_embd(hidden)).unsqueeze(-2)
        return out
