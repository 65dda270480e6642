"""What every sampler is; suffixes of names as in `calm_core.models`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from calm_core.generation.sampling import Sampling
from calm_core.generation.temperature import TextSoFar, first_that_fits
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.calm import Calm
from calm_core.models.heads.base import Head
from calm_core.models.noise import SequenceNoise

PREFIX_ROUNDS = (16, 48, 192)  # chunks that are drawn to continue a prompt that ends inside a chunk, until one fits
_SAMPLES_AT_ONCE = {"cpu": 2**11}  # whose states stay in a processor's cache; measured, a quarter less time than all
_SAMPLES_AT_ONCE_ELSEWHERE = 2**17


class Sampler(ABC):
    """A way to the next chunks of a CALM model. Every row draws its own noise, as its own state alone asks for.

    Args:
        calm: Draws latents.
        autoencoder: Its decoder.
    """

    def __init__(self, calm: Calm, autoencoder: Autoencoder) -> None:
        self.calm = calm
        self.autoencoder = autoencoder

    @classmethod
    def unfit(cls, head: Head) -> str:
        """Why it does not go with a head, in words; empty if it does."""
        return ""

    @abstractmethod
    def draw(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        """A whole chunk after each state, int64 [B, K].

        Raises:
            BudgetExceeded: The exact sampler found none.
        """

    @abstractmethod
    def finish(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        """A chunk that begins with the prompt's tokens, int64 [B, K]."""

    def plain_latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int) -> Tensor:
        """Latents [B, S, L] of the model's own distribution."""
        return self.calm.sample(hidden_BD, self.calm.sampling_noise(noise, number))

    def blocks(self, rows: Sequence[int], number: int) -> Iterator[list[int]]:
        """Rows in groups whose samples are worked on at once."""
        device = next(self.calm.parameters()).device.type
        size = max(1, _SAMPLES_AT_ONCE.get(device, _SAMPLES_AT_ONCE_ELSEWHERE) // number)
        for start in range(0, len(rows), size):
            yield list(rows[start : start + size])


class OneLatent(Sampler):
    """Decodes one latent for each chunk; here the model's own, which is temperature 1."""

    def latents(self, hidden_BD: Tensor, noise: SequenceNoise, number: int, temperature: float) -> Tensor:
        """Latents [B, S, L] after each state."""
        return self.plain_latents(hidden_BD, noise, number)

    def draw(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        latents_BL = self.latents(hidden_BD, noise, 1, sampling.temperature).squeeze(1)
        return self.autoencoder.decode(latents_BL, text.before_BW)

    def finish(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        # Those that fit come as likely as they are: the first one is as good as any, and none after it need be drawn.
        chunk_BK = torch.empty_like(text.begun_BK)
        missing = list(range(len(chunk_BK)))
        for number in PREFIX_ROUNDS:
            still = []
            for rows in self.blocks(missing, number):
                # A prompt that the likeliest chunks do not continue needs the unlikely ones too.
                temperature = sampling.temperature if number == PREFIX_ROUNDS[0] else 1.0
                latents_RSL = self.latents(hidden_BD[rows], noise.rows(rows), number, temperature)
                chunk_RK, found_R = first_that_fits(self.autoencoder, latents_RSL, text.rows(rows))
                for row, chunk_K, found in zip(rows, chunk_RK, found_R.tolist(), strict=True):
                    if found or number == PREFIX_ROUNDS[0]:
                        chunk_BK[row] = chunk_K
                    if not found:
                        still.append(row)
            missing = still
        return chunk_BK
