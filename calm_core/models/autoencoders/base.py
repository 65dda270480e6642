"""What every autoencoder of chunks is: an encoder to a Gaussian, a decoder to tokens, and their loss.

Suffixes of names as in `calm_core.models`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import AutoencoderModelConfig
from calm_core.models.cross_entropy import linear_cross_entropy, row_blocks
from calm_core.models.noise import SequenceNoise


@dataclass(frozen=True)
class Posterior:
    """The encoder's Gaussian q(z | chunk): mean and standard deviation, [..., L], fp32."""

    mean: Tensor
    std: Tensor

    def sample(self, normal: Tensor) -> Tensor:
        """mean + std * normal, for N(0, 1) numbers of any shape that broadcasts."""
        return self.mean + self.std * normal

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) per latent dimension, in nats, [..., L]."""
        return 0.5 * (self.mean.square() + self.std.square() - 1 - 2 * self.std.log())


class AutoencoderLoss(NamedTuple):
    """Sums over a batch; the caller divides by the counts of the whole global batch.

    Attributes:
        cross_entropy: Summed over real tokens, nats.
        kl: Clipped KL, summed over latent dimensions and chunks that hold a real token, nats.
        correct: Real tokens that were reconstructed.
        clipped: Latent dimensions whose KL is below the clip, over all chunks that count.
        std: Sum of the posterior's standard deviations, over latent dimensions and chunks that count.
    """

    cross_entropy: Tensor
    kl: Tensor
    correct: Tensor
    clipped: Tensor
    std: Tensor


class Autoencoder(nn.Module, ABC):
    """A variational autoencoder: K tokens to one latent vector and back (CALM paper, arXiv 2510.27688).

    The paper's decoder knows the latent alone. One that reads the text so far takes it from two arguments, which any
    other leaves aside: `before`, int64 [..., W], the tokens before the chunk, below zero where there is none; and
    `begun` or `chunks`, int64 [..., K], the chunk's own tokens, of which a token reads those before it.
    """

    reads: int = 0
    """W: how many tokens before a chunk its decoder reads."""

    def __init__(self, config: AutoencoderModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size

    @abstractmethod
    def posterior(self, tokens: Tensor, keep: Tensor | None = None) -> Posterior:
        """q(z | chunk) of int64 chunks [..., K]; `keep`, bool [..., K], is False where a token is hidden."""

    @abstractmethod
    def states(self, latents: Tensor, before: Tensor | None = None, chunks: Tensor | None = None) -> Tensor:
        """Decoder states [..., K, D] of latents [..., L]; logits are their inner products with `embedding`."""

    def states_in_training(self, latents_BPL: Tensor, chunks_BPK: Tensor, noise: SequenceNoise) -> Tensor:
        """Decoder states [B, P, K, D] of a batch that the autoencoder is trained on."""
        return self.states(latents_BPL, self.before(chunks_BPK), chunks_BPK)

    @property
    @abstractmethod
    def embedding(self) -> Tensor:
        """Output embedding [V, D]."""

    def trunk(self, latents: Tensor) -> Tensor:
        """What one token after another is decoded from [..., any], of latents [..., L]: work that they share."""
        return latents

    def token_state(self, trunk: Tensor, k: int, before: Tensor | None = None, begun: Tensor | None = None) -> Tensor:
        """The state [..., D] of the chunk's k-th token, of its `trunk`."""
        return self.states(trunk, before, begun)[..., k, :]

    def before(self, chunks_BPK: Tensor) -> Tensor:
        """What the decoder reads before each chunk of a sequence, int64 [B, P, W]; -1 where the sequence has begun."""
        text_BT = F.pad(chunks_BPK[:, :-1].flatten(1), (self.reads, 0), value=-1)
        return text_BT.unfold(1, self.reads, chunks_BPK.shape[2])

    def encode(self, chunks: Tensor) -> Posterior:
        """Posterior of int64 chunks [..., K]."""
        return self.posterior(chunks)

    def logits(self, latents: Tensor, before: Tensor | None = None, chunks: Tensor | None = None) -> Tensor:
        """Logits [..., K, V] of latents [..., L]."""
        return F.linear(self.states(latents, before, chunks), self.embedding)

    def decode(self, latents: Tensor, before: Tensor | None = None, begun: Tensor | None = None) -> Tensor:
        """Most likely tokens, int64 [..., K], of latents [..., L]; `begun` is below zero where a token is not known."""
        states = self.states(latents)
        return self._likeliest(states.flatten(0, -2)).view(states.shape[:-1])

    def token(
        self, trunk_RD: Tensor, k: int, before_RW: Tensor | None = None, begun_RK: Tensor | None = None
    ) -> Tensor:
        """Most likely k-th tokens, int64 [R], of their `trunk`."""
        return self._likeliest(self.token_state(trunk_RD, k, before_RW, begun_RK))

    def _likeliest(self, states_RD: Tensor) -> Tensor:
        # The same index as argmax's, which takes two to four times as long on a CPU.
        blocks = [
            F.linear(states_RD[rows], self.embedding).max(-1).indices
            for rows in row_blocks(len(states_RD), len(self.embedding))
        ]
        return torch.cat(blocks) if blocks else states_RD.new_zeros(0, dtype=torch.int64)

    def forward(self, chunks_BPK: Tensor, real_BPK: Tensor, noise: SequenceNoise) -> AutoencoderLoss:
        """The loss of a batch from sampled latents; the regularisers act while the module is in training mode.

        Args:
            chunks_BPK: int64 token ids.
            real_BPK: bool, False at padding, which counts nowhere.
            noise: One generator for each of the B sequences.
        """
        config = self.config
        # The order of draws is part of what a seed means: tokens, latents, dropout.
        keep_BPK = noise.uniform(*chunks_BPK.shape[1:]) >= config.token_dropout if self.training else None
        posterior = self.posterior(chunks_BPK, keep_BPK)
        latents_BPL = posterior.sample(noise.normal(*posterior.mean.shape[1:]))
        if self.training:
            kept_BPL = noise.uniform(*latents_BPL.shape[1:]) >= config.latent_dropout
            latents_BPL = latents_BPL * kept_BPL / (1 - config.latent_dropout)  # the expectation stays
            states_BPKD = self.states_in_training(latents_BPL, chunks_BPK, noise)
        else:
            states_BPKD = self.states(latents_BPL, self.before(chunks_BPK), chunks_BPK)

        cross_entropy, correct = linear_cross_entropy(states_BPKD[real_BPK], self.embedding, chunks_BPK[real_BPK])
        counted_BP = real_BPK.any(-1)
        kl_RL = posterior.kl()[counted_BP]
        return AutoencoderLoss(
            cross_entropy=cross_entropy,
            kl=kl_RL.clamp_min(config.kl_clip).sum(),
            correct=correct,
            clipped=(kl_RL < config.kl_clip).sum(),
            std=posterior.std[counted_BP].sum().detach(),
        )


def to_chunks(tokens_BT: Tensor, chunk_size: int) -> Tensor:
    """Sequences [B, T] as chunks [B, P, K].

    Raises:
        ValueError: T is no multiple of K.
    """
    if tokens_BT.shape[-1] % chunk_size:
        raise ValueError(f"sequence length {tokens_BT.shape[-1]} is no multiple of the chunk size {chunk_size}")
    chunks_BPK: Tensor = tokens_BT.unflatten(-1, (-1, chunk_size))
    return chunks_BPK


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, chunks_BPK: Tensor, noise: SequenceNoise) -> Tensor:
    """Tokens decoded from one sampled latent per chunk, int64 [B, P, K]."""
    posterior = autoencoder.encode(chunks_BPK)
    latents_BPL = posterior.sample(noise.normal(*posterior.mean.shape[1:]))
    return autoencoder.decode(latents_BPL, autoencoder.before(chunks_BPK))
