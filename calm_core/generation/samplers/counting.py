"""The paper's samplers, which count equal chunks (arXiv 2510.27688)."""

import torch
from torch import Tensor

from calm_core.generation.samplers.base import PREFIX_ROUNDS, Sampler
from calm_core.generation.sampling import BUDGET, READING_SAMPLES, SAMPLES, Sampling
from calm_core.generation.temperature import TextSoFar, choose_chunks, power_sample
from calm_core.models.noise import SequenceNoise

_EXACT_BLOCK = 32  # chunks that the exact sampler draws at a time


class Batch(Sampler):
    """Chooses among S chunks by how often each is there; nears P^(1/T) with more of them."""

    def draw(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        number = self._number(sampling)
        if number == 1:  # there is nothing to choose
            return self.autoencoder.decode(self.plain_latents(hidden_BD, noise, 1).squeeze(1), text.before_BW)
        return self._choose(hidden_BD, text, noise, number, sampling.temperature)

    def finish(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        number = max(self._number(sampling), sum(PREFIX_ROUNDS))  # most may begin otherwise
        return self._choose(hidden_BD, text, noise, number, sampling.temperature)

    def _number(self, sampling: Sampling) -> int:
        return sampling.samples or (READING_SAMPLES if self.autoencoder.reads else SAMPLES)

    def _choose(
        self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, number: int, temperature: float
    ) -> Tensor:
        chunk_BK = torch.empty_like(text.begun_BK)
        for rows in self.blocks(range(len(hidden_BD)), number):
            own = noise.rows(rows)
            latents_RSL = self.plain_latents(hidden_BD[rows], own, number)
            uniform_R = own.uniform(1).squeeze(1)
            chunk_BK[rows] = choose_chunks(self.autoencoder, latents_RSL, uniform_R, temperature, text.rows(rows))
        return chunk_BK


class Exact(Batch):
    """P^(1/T) itself, by rejection within a budget; a chunk that the prompt has begun is drawn as by `Batch`."""

    def draw(self, hidden_BD: Tensor, text: TextSoFar, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        chunks = [
            self._draw(hidden_BD[[row]], text.before_BW[row], noise.rows([row]), sampling)
            for row in range(len(hidden_BD))
        ]
        return torch.stack(chunks)

    def _draw(self, hidden_1D: Tensor, before_W: Tensor, noise: SequenceNoise, sampling: Sampling) -> Tensor:
        """One chunk, int64 [K]."""
        drawn: list[tuple[int, ...]] = []

        def draw() -> tuple[int, ...]:
            if not drawn:  # many at a time: the model's cost for one is mostly that of being called
                latents_SL = self.plain_latents(hidden_1D, noise, _EXACT_BLOCK)[0]
                drawn.extend(tuple(chunk) for chunk in self.autoencoder.decode(latents_SL, before_W).tolist())
            return drawn.pop(0)

        budget = sampling.budget or BUDGET
        chunk, _ = power_sample(draw, lambda: noise.uniform(1).item(), sampling.temperature, budget)
        return torch.tensor(chunk, device=hidden_1D.device)
