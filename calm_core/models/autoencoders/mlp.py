"""The autoencoder: K tokens to one latent vector and back (CALM paper, arXiv 2510.27688; suffixes in `models`).

Parameter names are those of the public checkpoints.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import AutoencoderModelConfig
from calm_core.models.cross_entropy import linear_cross_entropy, row_blocks
from calm_core.models.layers import SwiGLU, initialize
from calm_core.models.noise import SequenceNoise

_MIN_LOG_STD, _MAX_LOG_STD = -12.0, 6.0  # keeps exp() finite in any precision; trained values lie near -1.2


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


@dataclass(frozen=True)
class AutoencoderLoss:
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


class ResidualBlock(nn.Module):
    """h + SwiGLU(RMSNorm(h)). [..., D] -> [..., D]."""

    def __init__(self, config: AutoencoderModelConfig) -> None:
        super().__init__()
        self.layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.layernorm(x))
        return out


class Encoder(nn.Module):
    """Chunks of token ids to the posterior of their latent; chunks are independent of each other."""

    def __init__(self, config: AutoencoderModelConfig, vocab_size: int) -> None:
        super().__init__()
        hidden, chunk = config.hidden_size, config.chunk_size
        self.layers_before = (config.num_encoder_layers + 1) // 2
        self.embed_tokens = nn.Embedding(vocab_size, hidden)
        self.encoder_layers = nn.ModuleList(ResidualBlock(config) for _ in range(config.num_encoder_layers))
        self.squeeze_layer = nn.Linear(chunk * hidden, hidden)
        self.norm = nn.RMSNorm(hidden, eps=config.rms_norm_eps)
        self.hidden_to_latent = nn.Linear(hidden, 2 * config.latent_size)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Posterior:
        """Encode chunks.

        Args:
            tokens: int64 [..., K].
            keep: bool [..., K], False where the token is hidden from the encoder (its embedding is zeroed: no
                token id stands for "masked").
        """
        h = self.embed_tokens(tokens)
        if keep is not None:
            h = h * keep.unsqueeze(-1)
        for layer in self.encoder_layers[: self.layers_before]:
            h = layer(h)
        h = self.squeeze_layer(h.flatten(-2))
        for layer in self.encoder_layers[self.layers_before :]:
            h = layer(h)
        mean, log_std = self.hidden_to_latent(self.norm(h)).float().chunk(2, dim=-1)
        return Posterior(mean, log_std.clamp(_MIN_LOG_STD, _MAX_LOG_STD).exp())


class Decoder(nn.Module):
    """Latents to logits over the tokens of their chunk; mirrors the encoder."""

    def __init__(self, config: AutoencoderModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.chunk_size = config.chunk_size
        self.layers_before = config.num_decoder_layers // 2
        self.latent_to_hidden = nn.Linear(config.latent_size, hidden)
        self.decoder_layers = nn.ModuleList(ResidualBlock(config) for _ in range(config.num_decoder_layers))
        self.expand_layer = nn.Linear(hidden, config.chunk_size * hidden)
        self.norm = nn.RMSNorm(hidden, eps=config.rms_norm_eps)

    def trunk(self, latents: Tensor) -> Tensor:
        """What all tokens of a chunk are expanded from, [..., D], of latents [..., L]."""
        h: Tensor = self.latent_to_hidden(latents.to(self.latent_to_hidden.weight.dtype))
        for layer in self.decoder_layers[: self.layers_before]:
            h = layer(h)
        return h

    def forward(self, latents: Tensor) -> Tensor:
        """States [..., K, D] of latents [..., L]; their logits are inner products with the encoder's embedding."""
        return self._finish(self.expand_layer(self.trunk(latents)).unflatten(-1, (self.chunk_size, -1)))

    def token_state(self, trunk: Tensor, k: int) -> Tensor:
        """The state [..., D] of the chunk's k-th token alone, of `trunk` [..., D]."""
        hidden = trunk.shape[-1]
        rows = slice(k * hidden, (k + 1) * hidden)
        return self._finish(F.linear(trunk, self.expand_layer.weight[rows], self.expand_layer.bias[rows]))

    def _finish(self, h: Tensor) -> Tensor:
        for layer in self.decoder_layers[self.layers_before :]:
            h = layer(h)
        out: Tensor = self.norm(h)
        return out


class Autoencoder(nn.Module):
    """Variational autoencoder of token chunks."""

    def __init__(self, config: AutoencoderModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.encoder = Encoder(config, vocab_size)
        self.decoder = Decoder(config)
        self.apply(initialize)

    def encode(self, chunks: Tensor) -> Posterior:
        """Posterior of int64 chunks [..., K]."""
        posterior: Posterior = self.encoder(chunks)
        return posterior

    def logits(self, latents: Tensor) -> Tensor:
        """Logits [..., K, V] of latents [..., L]."""
        return F.linear(self.decoder(latents), self.encoder.embed_tokens.weight)

    def decode(self, latents: Tensor) -> Tensor:
        """Most likely tokens, int64 [..., K], of latents [..., L]."""
        states: Tensor = self.decoder(latents)
        return self._likeliest(states.flatten(0, -2)).view(states.shape[:-1])

    def token(self, trunk_RD: Tensor, k: int) -> Tensor:
        """Most likely k-th tokens, int64 [R], of the decoder's `trunk`."""
        return self._likeliest(self.decoder.token_state(trunk_RD, k))

    def _likeliest(self, states_RD: Tensor) -> Tensor:
        embedding = self.encoder.embed_tokens.weight
        blocks = [
            F.linear(states_RD[rows], embedding).argmax(-1) for rows in row_blocks(len(states_RD), len(embedding))
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
        keep_BPK = noise.uniform(*chunks_BPK.shape[1:]) >= config.token_dropout if self.training else None
        posterior = self.encoder(chunks_BPK, keep_BPK)
        latents_BPL = posterior.sample(noise.normal(*posterior.mean.shape[1:]))
        if self.training:
            kept_BPL = noise.uniform(*latents_BPL.shape[1:]) >= config.latent_dropout
            latents_BPL = latents_BPL * kept_BPL / (1 - config.latent_dropout)

        embedding_VD = self.encoder.embed_tokens.weight
        cross_entropy, correct = linear_cross_entropy(
            self.decoder(latents_BPL)[real_BPK], embedding_VD, chunks_BPK[real_BPK]
        )
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
    return autoencoder.decode(posterior.sample(noise.normal(*posterior.mean.shape[1:])))
