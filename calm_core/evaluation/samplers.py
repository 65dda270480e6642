"""Black-box samplers of the next tokens, which BrierLM compares; suffixes of names as in `calm_core.models`."""

from typing import Protocol

import torch
from torch import Tensor

from calm_core.evaluation.brier import MAX_N
from calm_core.models.autoencoder import Autoencoder, to_chunks
from calm_core.models.backbone import Branches
from calm_core.models.calm import Calm
from calm_core.noise import SequenceNoise


class Sampler(Protocol):
    """Draws S independent continuations after every chunk of every sequence."""

    def __call__(self, tokens_BT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        """int64 [B, P, S, MAX_N] for int64 [B, T]."""
        ...


class CalmSampler:
    """Samples of a CALM model at temperature 1.

    K >= 4: the first four tokens of one chunk. K < 4: several chunks in a row, each conditioned on the sampled ones;
    all start positions of a sequence advance together and share the prefix's keys and values.
    """

    def __init__(self, calm: Calm, autoencoder: Autoencoder) -> None:
        self.calm = calm
        self.autoencoder = autoencoder

    @torch.no_grad()
    def __call__(self, tokens_BT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        chunk_size = self.calm.chunk_size
        steps = -(-MAX_N // chunk_size)
        chunks_BPK = to_chunks(tokens_BT, chunk_size)[:, :-steps]
        positions = chunks_BPK.shape[1]
        hidden_BPD, prefix = self.calm.transformer(self.calm.embed(chunks_BPK))
        drawn = self.calm.sampling_noise(noise, positions, samples)
        sampled = [self.autoencoder.decode(self.calm.sample(hidden_BPD, drawn)).flatten(1, 2)]  # [B, P * S, K]

        start = torch.arange(positions, device=tokens_BT.device).repeat_interleave(samples)
        branches = Branches(start, prefix)
        for _ in range(steps - 1):
            hidden_BQD, branches = self.calm.transformer.branch(self.calm.embed(sampled[-1]), branches)
            drawn = self.calm.sampling_noise(noise, positions * samples, 1)
            sampled.append(self.autoencoder.decode(self.calm.sample(hidden_BQD, drawn)).squeeze(2))
        drawn_BPST: Tensor = torch.cat(sampled, dim=-1)[..., :MAX_N].unflatten(1, (positions, samples))
        return drawn_BPST


class UnigramSampler:
    """Draws tokens by their frequency and ignores the context; a floor for every model.

    Args:
        frequencies: Share of each token, [V].
        chunk_size: Start positions are those of a CALM model with this K.
    """

    def __init__(self, frequencies: Tensor, chunk_size: int) -> None:
        self._cumulative = frequencies.cumsum(0).float()
        self._last = len(frequencies) - 1
        self._chunk_size = chunk_size

    def __call__(self, tokens_BT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        steps = -(-MAX_N // self._chunk_size)
        positions = tokens_BT.shape[1] // self._chunk_size - steps
        uniform = noise.uniform(positions, samples, MAX_N)
        return torch.searchsorted(self._cumulative, uniform, right=True).clamp_max(self._last)
