"""The CALM language model: predicts the next chunk's latent (arXiv 2510.27688; suffixes in `models`).

Parameter names are those of the public checkpoints.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from calm_core.config import CalmModelConfig
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.backbone import Backbone
from calm_core.models.heads.base import Head, Targets
from calm_core.models.heads.make import make_head
from calm_core.models.layers import initialize, rows_of
from calm_core.models.noise import SequenceNoise

_LAYER_NORM_EPS = 1e-6


def next_chunk_counts(real_BPK: Tensor) -> Tensor:
    """bool [B, P - 1]: whether the chunk after each position holds a real token."""
    return real_BPK[:, 1:].any(-1)


@torch.no_grad()
def make_targets(
    autoencoder: Autoencoder, chunks_BPK: Tensor, real_BPK: Tensor, noise: SequenceNoise, samples: int
) -> Targets:
    """Sample the frozen encoder's posterior of each next chunk, only where it counts."""
    counted_BP = next_chunk_counts(real_BPK)
    posterior = autoencoder.encode(rows_of(chunks_BPK[:, 1:], counted_BP))
    # Drawn for all positions, also those that do not count: else a sequence's draws would depend on its padding.
    normal_RML = rows_of(noise.normal(counted_BP.shape[1], samples, posterior.mean.shape[-1]), counted_BP)
    return Targets(counted_BP, posterior.mean, normal_RML.mul_(posterior.std.unsqueeze(1)))


class Calm(nn.Module):
    """Backbone over chunks with a generative head; the autoencoder is no part of it, so training cannot change it."""

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
        self.mlp_generator: Head = make_head(config.head, hidden, latent_size)
        self.apply(initialize)
        self.mlp_generator.finish_initialization()

    def embed(self, chunks: Tensor) -> Tensor:
        """Backbone inputs [..., D] of int64 chunks [..., K]."""
        out: Tensor = self.embed_proj(self.transformer.embed_tokens(chunks).flatten(-2))
        return out

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """What `sample` turns into latents: [B, *shape, U], U of the head's own."""
        return self.mlp_generator.sampling_noise(noise, *shape)

    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        """Latent samples [..., S, L] of the next chunk from states [..., D] and `sampling_noise` [..., S, U]."""
        return self.mlp_generator.sample(hidden, drawn)

    def forward(
        self,
        chunks_BPK: Tensor,
        targets: Targets,
        noise: SequenceNoise,
        beside: Callable[[Head, Tensor, SequenceNoise], Tensor] | None = None,
        has_loss: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The head's loss summed over the positions that count (fp32 scalar); the caller divides by their number.

        Args:
            chunks_BPK: int64, whole sequences.
            targets: What the positions must predict.
            noise: One generator for each sequence.
            beside: What else is wanted of the head and the states [B, P - 1, D]; it is returned too. It draws last.
            has_loss: Whether the loss is asked for; else it is zero.
        """
        hidden_BPD, _ = self.transformer(self.embed(chunks_BPK[:, :-1]))
        loss = self.mlp_generator.loss(hidden_BPD, targets, noise).sum() if has_loss else hidden_BPD.new_zeros(())
        return loss if beside is None else (loss, beside(self.mlp_generator, hidden_BPD, noise))
