"""Brier terms of each kind of model; suffixes of names as in `calm_core.models` and `continuations`, and

    T tokens of a sequence, or the MAX_N tokens after a position    X all B * P * S continuations, alive or not
    E numbers of noise that one sample is made from

Scored positions are those after every `interval` tokens, the same for every model.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_core.config import DecoderCrossEntropyConfig
from calm_core.evaluation.brier import MAX_N, brier_terms
from calm_core.evaluation.continuations import Continuations
from calm_core.models.autoencoders.base import Autoencoder, to_chunks
from calm_core.models.calm import Calm
from calm_core.models.decoder_losses.cross_entropy import DecoderCrossEntropy
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


class Draws(NamedTuple):
    """What was drawn to score positions.

    Attributes:
        terms_BPT: As `BrierModel.terms`.
        samples_BPST: int64, the samples: the first token of each, and all tokens of the first one. Of the others the
            rest may be missing, where it can no longer change a term.
        nats_BP: fp64, -log P of the true next tokens, MAX_N of a model over tokens. Of one over chunks it is of the
            first min(K, MAX_N) tokens of the next chunk, and an upper bound on average.
        latents_BPSL: Of a model over chunks: what the first chunks were decoded from.
    """

    terms_BPT: Tensor
    samples_BPST: Tensor
    nats_BP: Tensor
    latents_BPSL: Tensor | None = None


class DrawingModel(BrierModel, Protocol):
    """A model that shows what it has drawn."""

    def draw(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Draws:
        """What `terms` is computed from, and the terms; arguments as there."""
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

    def terms(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        return self._draw(tokens_BT, targets_BPT, noise, samples, whole_first=False)[0]

    @torch.no_grad()
    def draw(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Draws:
        terms, sampled, latents = self._draw(tokens_BT, targets_BPT, noise, samples, whole_first=True)
        return Draws(terms, sampled, self._nats(latents, targets_BPT, self._before(tokens_BT, targets_BPT)), latents)

    def _before(self, tokens_BT: Tensor, targets_BPT: Tensor) -> Tensor:
        """What a decoder reads before each scored position, int64 [B, P, W]."""
        every = self.interval // self.calm.chunk_size
        before_BPW = self.autoencoder.before(to_chunks(tokens_BT, self.calm.chunk_size))
        return before_BPW[:, every : every * targets_BPT.shape[1] + 1 : every]

    def _nats(self, latents_BPSL: Tensor, targets_BPT: Tensor, before_BPW: Tensor) -> Tensor:
        """`Draws.nats_BP`, from the same samples as the terms, by the decoder's distributions over tokens."""
        size = self.calm.chunk_size
        known = min(size, MAX_N)  # of a longer chunk's tokens not all need be real
        chunks_RK = F.pad(targets_BPT.flatten(0, 1)[:, :known], (0, size - known))
        real_RK = (torch.arange(size, device=chunks_RK.device) < known).expand_as(chunks_RK)
        bound = DecoderCrossEntropy(DecoderCrossEntropyConfig(), self.autoencoder)
        bound_R = bound(latents_BPSL.flatten(0, 1), chunks_RK, real_RK, before_BPW.flatten(0, 1))
        return bound_R.double().view(targets_BPT.shape[:2])

    @torch.no_grad()
    def _draw(
        self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int, *, whole_first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Terms, samples and latents of `Draws`.

        `whole_first`: the first sample of each position is drawn to its end, whatever it is.
        """
        calm, size = self.calm, self.calm.chunk_size
        batch, positions, _ = targets_BPT.shape
        # A position lies between two chunks, and is predicted from the state after the chunk that ends there.
        every = self.interval // size
        start_P = torch.arange(every - 1, every * positions, every, device=tokens_BT.device)
        hidden_BPD, prefix = calm.transformer(calm.embed(to_chunks(tokens_BT, size)[:, : every * positions]))

        steps = -(-MAX_N // size)
        sampled_XT = tokens_BT.new_zeros(batch * positions * samples, steps * size)
        drawn_BPSE = calm.sampling_noise(noise, positions, samples)
        latents_BPSL = calm.sample(hidden_BPD[:, start_P], drawn_BPSE)
        before_BPW = self._before(tokens_BT, targets_BPT)
        sampled_XT[:, :size] = self.autoencoder.decode(latents_BPSL, before_BPW.unsqueeze(2)).flatten(0, 2)
        before_XW = before_BPW.flatten(0, 1).repeat_interleave(samples, 0)

        truth_XT = targets_BPT.flatten(0, 1).repeat_interleave(samples, 0)
        needed_X = sampled_XT.new_zeros(len(sampled_XT), dtype=torch.bool)
        needed_X[::samples] = whole_first
        tree = Continuations(calm.transformer, calm.vocab_size, prefix, start_P, batch=batch, samples=samples)
        for done in range(size, steps * size, size):
            drawn_XE = calm.sampling_noise(noise, positions * samples).flatten(0, 1)
            self._draw_next_chunk(tree, before_XW, sampled_XT, truth_XT, done, drawn_XE, needed_X)
        sampled = sampled_XT[:, :MAX_N].unflatten(0, (batch * positions, samples))
        terms = brier_terms(sampled, targets_BPT.flatten(0, 1)).view(batch, positions, MAX_N)
        return terms, sampled.view(batch, positions, samples, MAX_N), latents_BPSL

    def _draw_next_chunk(
        self,
        tree: Continuations,
        before_XW: Tensor,
        sampled_XT: Tensor,
        truth_XT: Tensor,
        done: int,
        drawn_XE: Tensor,
        needed_X: Tensor,
    ) -> None:
        """Write the chunk after the first `done` tokens into the rows of `sampled_XT` whose continuation can matter.

        And into those that are needed all the same. The rows of the others stay zero from here on: they differ already,
        and a term asks for equality of all tokens so far. Their noise is drawn all the same, so that what a
        continuation draws does not depend on which are alive.
        """
        size, alive_A = self.calm.chunk_size, tree.alive_A
        true_A = (sampled_XT[alive_A, :done] == truth_XT[alive_A, :done]).all(-1)
        hidden_UD = tree.advance(sampled_XT[alive_A, done - size : done], self.calm.embed, true_A | needed_X[alive_A])
        latents_USL = self.calm.sample(hidden_UD, tree.by_node(drawn_XE[tree.alive_A]))
        # The last W of what is read before the position and of what has been sampled since.
        before_AW = torch.cat([before_XW[tree.alive_A], sampled_XT[tree.alive_A, :done]], dim=1)[:, done:]
        chunks_AK = self.autoencoder.decode(tree.by_continuation(latents_USL), before_AW)
        sampled_XT[tree.alive_A, done : done + size] = chunks_AK


class TransformerScorer:
    """A token-level Transformer at temperature 1, with exact probabilities where they can be had.

    Brier-n = 2 P(y) - sum_x P(x)^2. P(y) is exact, and so is the sum for n = 1. For n > 1 it is the expectation over
    a sampled prefix x' of n - 1 tokens of P(x') sum_v P(v | x')^2: only the prefix is sampled, the last sum is exact.
    """

    def __init__(self, transformer: Transformer, interval: int) -> None:
        self.transformer = transformer
        self.interval = interval

    def terms(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Tensor:
        return self.draw(tokens_BT, targets_BPT, noise, samples).terms_BPT

    @torch.no_grad()
    def draw(self, tokens_BT: Tensor, targets_BPT: Tensor, noise: SequenceNoise, samples: int) -> Draws:
        model, positions = self.transformer, targets_BPT.shape[1]
        last = self.interval * positions  # the last scored position; its true tokens, but the fourth, are read too
        hidden_BTD, prefix = model.transformer(model.embed(tokens_BT[:, : last + MAX_N - 1]))
        start_P = torch.arange(self.interval - 1, last, self.interval, device=tokens_BT.device)
        tree = Continuations(
            model.transformer, model.vocab_size, prefix, start_P, batch=len(tokens_BT), samples=samples
        )
        collision_BPT, samples_BPST = self._collisions(tree, hidden_BTD[:, start_P], noise, samples)
        true_BPT = self._true_probabilities(hidden_BTD, targets_BPT)
        nats_BP = -true_BPT[..., -1].clamp_min(torch.finfo(torch.float64).tiny).log()
        return Draws(2 * true_BPT - collision_BPT, samples_BPST, nats_BP)

    def _true_probabilities(self, hidden_BTD: Tensor, targets_BPT: Tensor) -> Tensor:
        """P(y) of the first n true tokens after each position, for n = 1..4, fp64 [B, P, MAX_N].

        The states that predict them overlap where positions are less than four tokens apart, so they are windows of
        four over the sequence, one each interval; `unfold` gives [B, P, D, MAX_N].
        """
        positions = targets_BPT.shape[1]
        read_BPTD = hidden_BTD[:, self.interval - 1 :].unfold(1, MAX_N, self.interval)[:, :positions].transpose(2, 3)
        true_R = self.transformer.probability(read_BPTD.flatten(0, 2), targets_BPT.flatten())
        return true_R.view_as(targets_BPT).cumprod(-1)

    def _collisions(
        self, tree: Continuations, hidden_BPD: Tensor, noise: SequenceNoise, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Estimates of sum_x P(x)^2 over all x of n tokens, for n = 1..4, fp64 [B, P, MAX_N]: a mean over prefixes.

        And the samples that the prefixes are of, int64 [B, P, S, MAX_N].

        No continuation is dropped: each is a prefix whose own probability is its weight, true or not. So A is
        B * P * S throughout.
        """
        model = self.transformer
        batch, positions, _ = hidden_BPD.shape
        hidden_UD = hidden_BPD.flatten(0, 1)
        weight_A = torch.ones(len(tree.alive_A), dtype=torch.float64, device=hidden_UD.device)  # P(x')
        collision_BPT, samples_BPST = [], []
        for n in range(1, MAX_N + 1):
            uniform_A = noise.uniform(positions * samples).flatten()
            drawn = model.next_token(hidden_UD, tree.by_node(uniform_A))
            collision_A = weight_A * drawn.collision_R[tree.node_A]
            collision_BPT.append(collision_A.view(batch, positions, samples).mean(-1))
            token_A = tree.by_continuation(drawn.token_RS)
            samples_BPST.append(token_A.view(batch, positions, samples))
            if n < MAX_N:
                weight_A = weight_A * tree.by_continuation(drawn.probability_RS)
                hidden_UD = tree.advance(token_A.unsqueeze(-1), lambda token: model.embed(token.squeeze(-1)))
        return torch.stack(collision_BPT, dim=-1), torch.stack(samples_BPST, dim=-1)


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
