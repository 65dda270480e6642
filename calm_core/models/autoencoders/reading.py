"""The paper's autoencoder with a decoder that reads the text so far; the decoder is ours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import ReadingAutoencoderConfig
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.layers import initialize
from calm_core.models.noise import SequenceNoise

_NOISY = 0.5  # share of the chunks, while training, whose latents are shrunk and get noise


class ReadingAutoencoder(MlpAutoencoder):
    """Tokens are decoded one after another, each from the latent and the `context_size` tokens before it.

    So a latent that lies between those of several chunks, as a model that is not sure gives them, becomes one of these
    chunks, and not the first token of one and the second of another; and it goes on from the text before. While
    training, the latents of half of the chunks are shrunk and get noise, and no gradient reaches the encoder through
    them: the decoder learns what text such ones may be, and the encoder is not drawn to latents that bear it.
    """

    config: ReadingAutoencoderConfig

    def __init__(self, config: ReadingAutoencoderConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.reads = config.context_size
        self.read = nn.Linear(self.reads * config.hidden_size, config.hidden_size, bias=False)
        initialize(self.read)

    def states(self, latents: Tensor, before: Tensor | None = None, chunks: Tensor | None = None) -> Tensor:
        return self.decoder.finish(self.decoder.expand(latents) + self._read(_given(before), _given(chunks)))

    def states_in_training(self, latents_BPL: Tensor, chunks_BPK: Tensor, noise: SequenceNoise) -> Tensor:
        noisy_BP1 = noise.uniform(chunks_BPK.shape[1], 1) < _NOISY
        kept_BP1 = noise.uniform(chunks_BPK.shape[1], 1)  # a mean of many latents lies near zero
        size_BP1 = noise.uniform(chunks_BPK.shape[1], 1) * self.config.reading_noise
        # In units of each latent's own size: that of a batch would differ with its split into micro-batches.
        size_BP1 = size_BP1 * latents_BPL.detach().square().mean(-1, keepdim=True).sqrt()
        noisy_BPL = kept_BP1 * latents_BPL.detach() + size_BP1 * noise.normal(*latents_BPL.shape[1:])
        return self.states(torch.where(noisy_BP1, noisy_BPL, latents_BPL), self.before(chunks_BPK), chunks_BPK)

    def token_state(self, trunk: Tensor, k: int, before: Tensor | None = None, begun: Tensor | None = None) -> Tensor:
        window = torch.cat([_given(before), _given(begun)[..., :k]], dim=-1)[..., k:]
        read = self.read(self._embed(window).flatten(-2))
        return self.decoder.finish(self.decoder.expand_token(trunk, k) + read)

    def _read(self, before: Tensor, chunks: Tensor) -> Tensor:
        """What the tokens before each of a chunk's say for it, [..., K, D]."""
        shape = torch.broadcast_shapes(before.shape[:-1], chunks.shape[:-1])
        text = torch.cat([before.expand(*shape, -1), chunks[..., :-1].expand(*shape, -1)], dim=-1)
        windows = self._embed(text).unfold(-2, self.reads, 1)  # [..., K, D, W]
        out: Tensor = self.read(windows.transpose(-1, -2).flatten(-2))
        return out

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens.clamp_min(0), self.embedding) * (tokens >= 0).unsqueeze(-1)

    def decode(self, latents: Tensor, before: Tensor | None = None, begun: Tensor | None = None) -> Tensor:
        shape = (*latents.shape[:-1], self.config.chunk_size)
        before, trunk = _given(before), self.trunk(latents)
        # Samples of one state share the text before, which says the same for all of them.
        said = self._read(before, before.new_full((shape[-1],), -1))
        known = (before.new_full((1,), -1) if begun is None else begun).expand(shape).clone()
        for k in range(shape[-1]):
            # And the chunk's own tokens what the last columns say, as many as there are of them.
            own = known[..., max(k - self.reads, 0) : k]
            weight = self.read.weight[:, (self.reads - own.shape[-1]) * self.config.hidden_size :]
            h = self.decoder.expand_token(trunk, k) + said[..., k, :] + F.linear(self._embed(own).flatten(-2), weight)
            decoded = self._likeliest(self.decoder.finish(h).flatten(0, -2)).view(shape[:-1])
            known[..., k] = torch.where(known[..., k] < 0, decoded, known[..., k])
        return known


def _given(tokens: Tensor | None) -> Tensor:
    if tokens is None:
        raise ValueError("this decoder reads the text so far: give the tokens before the chunk, and those of its own")
    return tokens
