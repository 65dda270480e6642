"""The paper's autoencoder: residual blocks within each chunk, no attention (arXiv 2510.27688).

Parameter names are those of the public checkpoints.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import ResidualAutoencoderConfig
from calm_core.models.autoencoders.base import Autoencoder, Posterior
from calm_core.models.layers import RMSNorm, SwiGLU, initialize

_MIN_LOG_STD, _MAX_LOG_STD = -12.0, 6.0  # keeps exp() finite in any precision; trained values lie near -1.2


class ResidualBlock(nn.Module):
    """h + SwiGLU(RMSNorm(h)). [..., D] -> [..., D]."""

    def __init__(self, config: ResidualAutoencoderConfig) -> None:
        super().__init__()
        self.layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.layernorm(x))
        return out


class Encoder(nn.Module):
    """Chunks of token ids to the posterior of their latent; chunks are independent of each other."""

    def __init__(self, config: ResidualAutoencoderConfig, vocab_size: int) -> None:
        super().__init__()
        hidden, chunk = config.hidden_size, config.chunk_size
        self.layers_before = (config.num_encoder_layers + 1) // 2
        self.embed_tokens = nn.Embedding(vocab_size, hidden)
        self.encoder_layers = nn.ModuleList(ResidualBlock(config) for _ in range(config.num_encoder_layers))
        self.squeeze_layer = nn.Linear(chunk * hidden, hidden)
        self.norm = RMSNorm(hidden, eps=config.rms_norm_eps)
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

    def __init__(self, config: ResidualAutoencoderConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.chunk_size = config.chunk_size
        self.layers_before = config.num_decoder_layers // 2
        self.latent_to_hidden = nn.Linear(config.latent_size, hidden)
        self.decoder_layers = nn.ModuleList(ResidualBlock(config) for _ in range(config.num_decoder_layers))
        self.expand_layer = nn.Linear(hidden, config.chunk_size * hidden)
        self.norm = RMSNorm(hidden, eps=config.rms_norm_eps)

    def trunk(self, latents: Tensor) -> Tensor:
        """What all tokens of a chunk are expanded from, [..., D], of latents [..., L]."""
        h: Tensor = self.latent_to_hidden(latents.to(self.latent_to_hidden.weight.dtype))
        for layer in self.decoder_layers[: self.layers_before]:
            h = layer(h)
        return h

    def forward(self, latents: Tensor) -> Tensor:
        """States [..., K, D] of latents [..., L]; their logits are inner products with the encoder's embedding."""
        return self.finish(self.expand(latents))

    def token_state(self, trunk: Tensor, k: int) -> Tensor:
        """The state [..., D] of the chunk's k-th token alone, of `trunk` [..., D]."""
        return self.finish(self.expand_token(trunk, k))

    def expand(self, latents: Tensor) -> Tensor:
        """What each token's state is finished from, [..., K, D]."""
        expanded: Tensor = self.expand_layer(self.trunk(latents)).unflatten(-1, (self.chunk_size, -1))
        return expanded

    def expand_token(self, trunk: Tensor, k: int) -> Tensor:
        """`expand` of the chunk's k-th token alone, [..., D]."""
        hidden = trunk.shape[-1]
        rows = slice(k * hidden, (k + 1) * hidden)
        return F.linear(trunk, self.expand_layer.weight[rows], self.expand_layer.bias[rows])

    def finish(self, h: Tensor) -> Tensor:
        """The states of what is expanded, each on its own, [..., D]."""
        for layer in self.decoder_layers[self.layers_before :]:
            h = layer(h)
        out: Tensor = self.norm(h)
        return out


class MlpAutoencoder(Autoencoder):
    """Encoder and decoder of residual blocks; the output embedding is the encoder's."""

    def __init__(self, config: ResidualAutoencoderConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.encoder = Encoder(config, vocab_size)
        self.decoder = Decoder(config)
        self.apply(initialize)

    @property
    def embedding(self) -> Tensor:
        return self.encoder.embed_tokens.weight

    def posterior(self, tokens: Tensor, keep: Tensor | None = None) -> Posterior:
        posterior: Posterior = self.encoder(tokens, keep)
        return posterior

    def states(self, latents: Tensor, before: Tensor | None = None, chunks: Tensor | None = None) -> Tensor:
        states: Tensor = self.decoder(latents)
        return states

    def trunk(self, latents: Tensor) -> Tensor:
        return self.decoder.trunk(latents)

    def token_state(self, trunk: Tensor, k: int, before: Tensor | None = None, begun: Tensor | None = None) -> Tensor:
        return self.decoder.token_state(trunk, k)
