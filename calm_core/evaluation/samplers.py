"""Brier terms of each kind of model; suffixes of names as in `calm_core.models`.

Scored positions are those after every `interval` tokens, the same for every model.
"""

from typing import Protocol

import torch
from torch import Tensor

from calm_core.evaluation.brier import MAX_N, brier_terms
from calm_core.evaluation.continuations import Continuations
from calm_core.models.autoencoders.mlp import Autoencoder, to_chunks
from calm_core.models.calm import Calm
from calm_core.models.noise import SequenceNoise
from calm_core.models.transformer import Transformer


class BrierModel(Protocol):
    """Whatever can be scored."""

    def terms(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        """Unbiased estimates of Brier-1 to Brier-4 of each position, fp64 [B, P, MAX_N].

        Args:
            tokens_BT: int64, whole sequences.
            targets_BPT: int64, the true next MAX_N tokens of each scored position (`next_tokens`).
            noise: One generator for each sequence.
            samples: S.
        """
        ...


class CalmSampler:
    """A CALM model at temperature 1: samples are compared with the truth and with each other.

    K >= 4: the first four tokens of one chunk. K < 4: several chunks in a row, each conditioned on the sampled ones.
    Then a sample that equals neither the truth nor another sample so far cannot change any term, and is drawn no
    further.
    """

    def __init__(self, calm: Calm, autoencoder: Autoencoder, interval: int) -> None:
        self.calm = calm
        self.autoencoder = autoencoder
        self.interval = interval

    @torch.no_grad()
    def terms(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        calm, size = self.calm, self.calm.chunk_size
        steps = -(-MAX_N // size)
        batch, positions, _ = targets_BPT.shape
        every = self.interval // size
        start_P = torch.arange(every - 1, every * positions, every, device=tokens_BT.device)
        hidden_BPD, prefix = calm.transformer(calm.embed(to_chunks(tokens_BT, size)[:, : every * positions]))
        hidden_BPD = hidden_BPD[:, start_P]

        drawn_BPSU = calm.sampling_noise(noise, positions, samples)
        first_BPSK = self.autoencoder.decode(calm.sample(hidden_BPD, drawn_BPSU))
        sampled_XT = tokens_BT.new_zeros(batch * positions * samples, steps * size)
        sampled_XT[:, :size] = first_BPSK.flatten(0, 2)
        truth_XT = targets_BPT.flatten(0, 1).repeat_interleave(samples, 0)
        tree = Continuations(calm.transformer, calm.vocab_size, prefix, start_P, batch=batch, samples=samples)
        for done in range(size, steps * size, size):
            drawn_XU = calm.sampling_noise(noise, positions * samples).flatten(0, 1)
            alive = tree.alive_A
            true_A = (sampled_XT[alive, :done] == truth_XT[alive, :done]).all(-1)
            hidden_UD = tree.advance(sampled_XT[alive, done - size : done], calm.embed, true_A)
            alive = tree.alive_A
            rank_A, most = _rank_in_group(tree.node_A)
            drawn_USN = drawn_XU.new_zeros(len(hidden_UD), most, drawn_XU.shape[-1])
            drawn_USN[tree.node_A, rank_A] = drawn_XU[alive]
            latents_AL = calm.sample(hidden_UD, drawn_USN)[tree.node_A, rank_A]
            sampled_XT[alive, done : done + size] = self.autoencoder.decode(latents_AL)
        sampled = sampled_XT[:, :MAX_N].unflatten(0, (batch * positions, samples))
        return brier_terms(sampled, targets_BPT.flatten(0, 1)).view(batch, positions, MAX_N)


class TransformerScorer:
    """A token-level Transformer at temperature 1, with exact probabilities where they can be had.

    Brier-n = 2 P(y) - sum_x P(x)^2. P(y) is exact, and so is the sum for n = 1. For n > 1 it is the expectation over
    a sampled prefix x' of n - 1 tokens of P(x') sum_v P(v | x')^2: only the prefix is sampled, the last sum is exact.
    """

    def __init__(self, transformer: Transformer, interval: int) -> None:
        self.transformer = transformer
        self.interval = interval

    @torch.no_grad()
    def terms(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        model = self.transformer
        batch, positions, _ = targets_BPT.shape
        last = self.interval * positions
        hidden_BTD, prefix = model.transformer(model.embed(tokens_BT[:, : last + MAX_N - 1]))
        read_BPTD = hidden_BTD[:, self.interval - 1 :].unfold(1, MAX_N, self.interval)[:, :positions].transpose(2, 3)
        true_BPT = model.probability(read_BPTD.flatten(0, 2), targets_BPT.flatten()).view_as(targets_BPT).cumprod(-1)

        start_P = torch.arange(self.interval - 1, last, self.interval, device=tokens_BT.device)
        tree = Continuations(model.transformer, model.vocab_size, prefix, start_P, batch=batch, samples=samples)
        hidden_UD = hidden_BTD[:, start_P].flatten(0, 1)
        weight_A = torch.ones(len(tree.alive_A), dtype=torch.float64, device=tokens_BT.device)
        collision_BPT = []
        for n in range(1, MAX_N + 1):
            uniform_A = noise.uniform(positions * samples).flatten()
            rank_A, most = _rank_in_group(tree.node_A)
            uniform_US = uniform_A.new_zeros(len(hidden_UD), most)
            uniform_US[tree.node_A, rank_A] = uniform_A
            drawn = model.next_token(hidden_UD, uniform_US)
            collision_A = weight_A * drawn.collision_R[tree.node_A]
            collision_BPT.append(collision_A.view(batch, positions, samples).mean(-1))
            if n < MAX_N:
                weight_A = weight_A * drawn.probability_RS[tree.node_A, rank_A]
                token_A = drawn.token_RS[tree.node_A, rank_A]
                hidden_UD = tree.advance(token_A.unsqueeze(-1), lambda token: model.embed(token.squeeze(-1)))
        return 2 * true_BPT - torch.stack(collision_BPT, dim=-1)


class UnigramSampler:
    """Draws tokens by their frequency and ignores the context; a floor for every model.

    Args:
        frequencies: Share of each token, [V].
    """

    def __init__(self, frequencies: Tensor) -> None:
        self._cumulative = frequencies.cumsum(0).float()
        self._last = len(frequencies) - 1

    def terms(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        batch, positions, _ = targets_BPT.shape
        uniform = noise.uniform(positions, samples, MAX_N)
        sampled = torch.searchsorted(self._cumulative, uniform, right=True).clamp_max(self._last)
        return brier_terms(sampled.flatten(0, 1), targets_BPT.flatten(0, 1)).view(batch, positions, MAX_N)


def _rank_in_group(group_A: Tensor) -> tuple[Tensor, int]:
    """The place of each element among those of its group, and the size of the largest group."""
    order = torch.argsort(group_A, stable=True)
    _, count = torch.unique_consecutive(group_A[order], return_counts=True)
    rank = torch.empty_like(group_A)
    rank[order] = torch.arange(len(group_A), device=group_A.device) - (count.cumsum(0) - count).repeat_interleave(count)
    return rank, int(count.max()) if len(count) else 0
