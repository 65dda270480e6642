"""Sampling chunks at a temperature when only samples can be had, no probabilities (arXiv 2510.27688).

The target is P_T(x), proportional to P(x)^(1/T), of decoded chunks x. `power_sample` is exact; `choose_chunks` is the
batch approximation, which decodes no more of its samples than the choice needs. Suffixes as in `calm_core.models`, and
X for the B * S samples of a batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from calm_core.models.autoencoders.base import Autoencoder

Chunk = TypeVar("Chunk")

FREE = -1  # a token of a begun chunk that is not there yet


class TextSoFar(NamedTuple):
    """The tokens right before those that are to be chosen, as far as a decoder can read them.

    Attributes:
        before_BW: int64, before the chunk; below zero where there is none.
        begun_BK: int64, the tokens that the chunk itself has already, then FREE.
    """

    before_BW: Tensor
    begun_BK: Tensor

    def rows(self, index: Sequence[int] | Tensor) -> "TextSoFar":
        return TextSoFar(self.before_BW[index], self.begun_BK[index])


class BudgetExceeded(Exception):
    """No chunk was accepted within the budget of draws."""


def power_sample(
    draw: Callable[[], Chunk], uniform: Callable[[], float], temperature: float, budget: int
) -> tuple[Chunk, int]:
    """A sample of exactly P^(1/T), from a sampler of P.

    1/T = n + a with an integer n and 0 <= a < 1. n samples that are all equal, which has probability P(x)^n, make a
    candidate. It is kept with probability P(x)^a by a Bernoulli factory: in its round i a further sample that equals
    the candidate accepts it; otherwise it is rejected with probability a / i. A rejection starts all over.

    Why P(x)^a: with p = P(x), the chance to be accepted in round i is p (1 - p)^(i - 1) times the product of 1 - a / j
    over j < i. Summed over i it is p times the binomial series of (1 - (1 - p))^(a - 1), and so p^a.

    Args:
        draw: Draws a sample; equal samples compare equal.
        uniform: A number uniform in [0, 1).
        temperature: T in (0, 1].
        budget: Draws at most.

    Returns:
        The sample, and the number of draws that it took.

    Raises:
        BudgetExceeded: The budget ran out.
    """
    whole, part = integer_and_fraction(temperature)
    used = 0

    def next_draw() -> Chunk:
        nonlocal used
        if used == budget:
            raise BudgetExceeded
        used += 1
        return draw()

    def kept(candidate: Chunk) -> bool:
        """True with probability P(candidate)^a."""
        round_number = 1
        while next_draw() != candidate:
            if uniform() < part / round_number:
                return False
            round_number += 1
        return True

    while True:
        candidate = next_draw()
        if all(next_draw() == candidate for _ in range(whole - 1)) and (part == 0 or kept(candidate)):
            return candidate, used


def integer_and_fraction(temperature: float) -> tuple[int, float]:
    """1/T as n + a; a fraction that is only the rounding of 1/T counts as none."""
    inverse = 1 / temperature
    if math.isclose(inverse, round(inverse), rel_tol=1e-9):
        return round(inverse), 0.0
    return math.floor(inverse), inverse - math.floor(inverse)


def temperature_weights(count_BS: Tensor, temperature: float) -> Tensor:
    """Probability of choosing each sample, so that a chunk seen c times has weight C(c, 1/T) (arXiv 2510.27688).

    C is the binomial coefficient; for a 1/T that is no integer it is continued by Gamma functions, the one smooth
    continuation that keeps C(c, c) = 1 and grows with c. A chunk seen less than 1/T times does not qualify; if none
    does, 1/T is lowered by one until one does, down to 1.

    Args:
        count_BS: How many samples of the row are the same chunk as this one, itself included; 0 for one that is
            excluded.
        temperature: In (0, 1].

    Returns:
        fp64 [B, S], rows sum to one; rows without any sample are zero.
    """
    count_BS = count_BS.double()
    whole, part = integer_and_fraction(temperature)
    # The first of 1/T, 1/T - 1, ... that the most frequent chunk reaches: lowered by the whole steps it lacks.
    most_B1 = count_BS.amax(-1, keepdim=True)
    n_B1 = (whole + part) - ((whole + part) - most_B1).ceil().clamp_min(0)
    n_B1 = n_B1.clamp_min(1.0)
    # C(c, n) = Gamma(c + 1) / (Gamma(n + 1) Gamma(c - n + 1)), in logarithms: C(200, 50) is about 1e47, and the
    # largest factorials are beyond fp64. The clamp keeps the Gamma function off its poles where c < n is masked anyway.
    log_weight = torch.lgamma(count_BS + 1) - torch.lgamma(n_B1 + 1) - torch.lgamma((count_BS - n_B1).clamp_min(0) + 1)
    # C(c, n) is the weight of the chunk; each of its c copies gets an equal share, so that any may stand for it.
    log_weight = (log_weight - count_BS.log()).masked_fill(count_BS < n_B1, -torch.inf)
    # A row where all are excluded is -inf - -inf = nan: no weight at all.
    weights = (log_weight - log_weight.amax(-1, keepdim=True)).exp().nan_to_num(0.0)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)


def choose_chunks(
    autoencoder: Autoencoder, latents_BSL: Tensor, uniform_B: Tensor, temperature: float, text: TextSoFar
) -> Tensor:
    """One chunk of each row by the batch approximation; the same one as if all samples were decoded whole.

    Most of the time goes into the decoder's projection to the vocabulary. So the samples are decoded token by token,
    and one goes on only while so many samples share its beginning that its chunk can still qualify. If nothing
    qualifies in the end, the threshold falls to what can, and the samples it lets in go on where they stopped. At a
    threshold of one all samples are equally likely, and only the chosen one is decoded to its end.

    Args:
        autoencoder: Its decoder.
        latents_BSL: S samples of each row.
        uniform_B: Numbers uniform in [0, 1) that make the choice.
        temperature: In (0, 1].
        text: Samples that begin otherwise than the chunk has are excluded; if all of them do, the first one is taken
            and its beginning replaced.

    Returns:
        int64 [B, K].
    """
    search = _Search(autoencoder, latents_BSL, text)
    threshold_B = _decode_what_can_win(search, temperature)
    chosen_B = _choose(search.counts(threshold_B), uniform_B, temperature)
    return search.whole_chunk(chosen_B)


def first_that_fits(autoencoder: Autoencoder, latents_BSL: Tensor, text: TextSoFar) -> tuple[Tensor, Tensor]:
    """One chunk of each row: of its samples, the first one that begins with the tokens that are there already.

    Returns:
        int64 [B, K], as `choose_chunks`; and bool [B], whether one does.
    """
    search = _Search(autoencoder, latents_BSL, text)
    search.decode_begun()
    fits_BS = (search.shared_X > 0).view(len(latents_BSL), -1)
    found_B = fits_BS.any(1)
    first_B = (fits_BS.cumsum(1) == 0).sum(1)
    return search.whole_chunk(torch.where(found_B, first_B, 0)), found_B


def _decode_what_can_win(search: "_Search", temperature: float) -> Tensor:
    """Decode until the chunks that qualify are known in every row.

    A beginning is shared by at least as many samples as any chunk that starts with it. So a beginning shared by fewer
    than the threshold holds no chunk that qualifies, and its samples need not be decoded further.

    Returns:
        int64 [B], how often a chunk must be seen: the smallest integer that is not below 1/T, or below it where no
        chunk is seen as often.
    """
    whole, part = integer_and_fraction(temperature)
    search.decode_begun()
    threshold_B = torch.full_like(search.begun_B, whole + (part > 0)).minimum(search.largest_B())
    while True:
        search.advance(threshold_B)
        missed_B = ~search.qualifies(threshold_B) & (threshold_B > 1)
        if not missed_B.any():
            return threshold_B
        # By one as `temperature_weights` lowers 1/T, or at once to what the most frequent beginning leaves possible.
        threshold_B = torch.where(missed_B, torch.minimum(threshold_B - 1, search.largest_B()), threshold_B)


def _choose(count_BS: Tensor, uniform_B: Tensor, temperature: float) -> Tensor:
    """One sample of each row by its weight, int64 [B]; the first one where all are excluded."""
    cumulative_BS = temperature_weights(count_BS, temperature).cumsum(-1)
    chosen_B1 = torch.searchsorted(cumulative_BS, uniform_B.double().unsqueeze(1), right=True)
    # The sum of all weights may round to less than one, and the number drawn lie above it.
    chosen_B = chosen_B1.squeeze(1).clamp_max(count_BS.shape[1] - 1)
    return torch.where(cumulative_BS[:, -1] > 0, chosen_B, 0)


class _Search:
    """Samples that are decoded as far as needed, all rows of the batch side by side.

    A sample is at level k when k of its tokens are known. Whether it goes on depends on its row and on how many samples
    share its beginning, which is the same for all that share it. So these are always at one level, and it is enough to
    count among the samples that are decoded together.

    Attributes:
        size: K.
        row_X: int64, the row of each sample.
        begun_B: int64, how many tokens each row's chunk has already.
        tokens_XK: int64, what is decoded so far.
        level_X: int64, how many tokens that are.
        shared_X: int64, how many samples of the row begin with the same tokens; 0 for one that is excluded.
    """

    def __init__(self, autoencoder: Autoencoder, latents_BSL: Tensor, text: TextSoFar) -> None:
        rows, samples, _ = latents_BSL.shape
        device = latents_BSL.device
        self.autoencoder = autoencoder
        self.size = text.begun_BK.shape[1]
        self.samples = samples
        self.before_BW, self.begun_BK = text
        self.begun_B = (self.begun_BK != FREE).sum(1)
        self.latents_XL = latents_BSL.flatten(0, 1)
        self.trunk_XD = autoencoder.trunk(self.latents_XL)
        self.row_X = torch.arange(rows, device=device).repeat_interleave(samples)
        self.tokens_XK = torch.zeros(rows * samples, self.size, dtype=torch.int64, device=device)
        self.level_X = torch.zeros_like(self.row_X)
        self.shared_X = torch.full_like(self.row_X, samples)  # nothing is decoded: all begin alike

    def _decode(self, index_A: Tensor, k: int) -> None:
        """The k-th token of some samples, which hold all that share their beginnings."""
        if not len(index_A):
            return
        before_AW = self.before_BW[self.row_X[index_A]]
        token_A = self.autoencoder.token(self.trunk_XD[index_A], k, before_AW, self.tokens_XK[index_A])
        self.tokens_XK[index_A, k] = token_A
        self.level_X[index_A] = k + 1
        # One number for each beginning within its row, numbered anew after each token: V^K would not fit 64 bits.
        code_A = self.row_X[index_A]
        for j in range(k + 1):
            code_A = code_A * self.autoencoder.vocab_size + self.tokens_XK[index_A, j]
            _, code_A, count_U = torch.unique(code_A, return_inverse=True, return_counts=True)
        begun_A = self.begun_BK[self.row_X[index_A], k]
        fits_A = (begun_A == FREE) | (begun_A == token_A)
        self.shared_X[index_A] = torch.where(fits_A, count_U[code_A], 0)

    def decode_begun(self) -> None:
        """Decode the tokens that are there already, to exclude the samples that differ."""
        for k in range(int(self.begun_B.max())):
            self._decode(((self.begun_B[self.row_X] > k) & (self.shared_X > 0)).nonzero().squeeze(1), k)

    def advance(self, threshold_B: Tensor) -> None:
        """Decode every sample whose beginning is shared often enough; none in rows where one is often enough."""
        wanted_X = threshold_B[self.row_X]
        for k in range(self.size):  # upwards, so that one pass takes each sample as far as it may go
            active_X = (self.level_X == k) & (self.shared_X >= wanted_X) & (wanted_X > 1)
            self._decode(active_X.nonzero().squeeze(1), k)

    def counts(self, threshold_B: Tensor) -> Tensor:
        """What `temperature_weights` takes, int64 [B, S]: how many samples of the row are the same chunk as this one.

        A sample that is not decoded to its end cannot win, and counts 0. At a threshold of one every sample may win:
        each has weight 1, whatever others equal it, so none needs to be decoded for that.
        """
        any_B = threshold_B <= 1
        known_X = (self.level_X == self.size) | any_B[self.row_X]
        count_BS = (self.shared_X * known_X).view(-1, self.samples)
        return torch.where(any_B.unsqueeze(1), count_BS.clamp_max(1), count_BS)

    def qualifies(self, threshold_B: Tensor) -> Tensor:
        """Whether a whole chunk of the row is seen often enough, bool [B]."""
        done_X = (self.level_X == self.size) & (self.shared_X >= threshold_B[self.row_X])
        return done_X.view(-1, self.samples).any(1)

    def largest_B(self) -> Tensor:
        """The largest number of samples that share a beginning, at least 1: no chunk can be seen more often."""
        return self.shared_X.view(-1, self.samples).amax(1).clamp_min(1)

    def whole_chunk(self, chosen_B: Tensor) -> Tensor:
        """The chosen sample of each row, decoded to its end, with the begun tokens in their places."""
        index_B = torch.arange(len(chosen_B), device=chosen_B.device) * self.samples + chosen_B
        chunk_BK = self.tokens_XK[index_B]
        unfinished = (self.level_X[index_B] < self.size).nonzero().squeeze(1)
        # All tokens at once: the vocabulary's projection is read once, which costs more than the tokens known already.
        latents_RL, read = self.latents_XL[index_B[unfinished]], (self.before_BW[unfinished], self.begun_BK[unfinished])
        chunk_BK[unfinished] = self.autoencoder.decode(latents_RL, *read)
        return torch.where(self.begun_BK == FREE, chunk_BK, self.begun_BK)
