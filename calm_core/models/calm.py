"""The CALM language model: predicts the next chunk's latent (arXiv 2510.27688; suffixes in `models`).

Parameter names are those of the public checkpoints.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calm_core.config import CalmModelConfig
from calm_core.models.autoencoder import Autoencoder
from calm_core.models.backbone import Backbone
from calm_core.models.energy_head import EnergyHead
from calm_core.models.energy_score import energy_loss
from calm_core.models.layers import initialize
from calm_core.noise import SequenceNoise

_LAYER_NORM_EPS = 1e-6


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


def next_chunk_counts(real_BPK: Tensor) -> Tensor:
    """bool [B, P - 1]: whether the chunk after each position holds a real token."""
    return real_BPK[:, 1:].any(-1)


@torch.no_grad()
def make_targets(
    autoencoder: Autoencoder, chunks_BPK: Tensor, real_BPK: Tensor, noise: SequenceNoise, samples: int
) -> Targets:
    """Sample the frozen encoder's posterior of each next chunk, only where it counts."""
    counted_BP = next_chunk_counts(real_BPK)
    posterior = autoencoder.encode(chunks_BPK[:, 1:][counted_BP])
    normal_RML = noise.normal(counted_BP.shape[1], samples, posterior.mean.shape[-1])[counted_BP]
    return Targets(counted_BP, posterior.mean, normal_RML.mul_(posterior.std.unsqueeze(1)))


class Calm(nn.Module):
    """Backbone over chunks with an energy head; the autoencoder is no part of it, so training cannot change it."""

    def __init__(self, config: CalmModelConfig, vocab_size: int, chunk_size: int, latent_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.chunk_size = chunk_size
        self.latent_size = latent_size
        hidden = config.hidden_size
        self.transformer = Backbone(config, vocab_size)
        self.embed_proj = nn.Sequential(
            nn.Linear(chunk_size * hidden, 2 * hidden),
            nn.SiLU(),
            nn.Linear(2 * hidden, hidden),
            nn.LayerNorm(hidden, eps=_LAYER_NORM_EPS),
        )
        self.mlp_generator = EnergyHead(config, latent_size)
        self.apply(initialize)
        self.mlp_generator.final_layer.start_at_zero()

    def embed(self, chunks: Tensor) -> Tensor:
        """Backbone inputs [..., D] of int64 chunks [..., K]."""
        out: Tensor = self.embed_proj(self.transformer.embed_tokens(chunks).flatten(-2))
        return out

    def sample(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Latent samples [..., S, L] of the next chunk from states [..., D] and uniform noise [..., S, noise_size]."""
        out: Tensor = self.mlp_generator(hidden, uniform)
        return out

    def forward(self, chunks_BPK: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        """Energy loss summed over the positions that count (fp32 scalar); the caller divides by their number."""
        hidden_BPD, _ = self.transformer(self.embed(chunks_BPK[:, :-1]))
        uniform_BPNU = noise.uniform(hidden_BPD.shape[1], self.config.model_samples, self.config.noise_size)
        samples_RNL = self.sample(hidden_BPD[targets.counted_BP], uniform_BPNU[targets.counted_BP])
        return energy_loss(samples_RNL, targets.mean_RL, targets.deviations_RML, self.config.energy_alpha).sum()
