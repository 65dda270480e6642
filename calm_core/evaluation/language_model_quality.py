"""Where and how a language model is right: from what is drawn for BrierLM anyway, nothing is sampled a second time.

Suffixes of names as in `calm_core.evaluation.samplers` and `documents`, and M samples of the true next chunk's latent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calm_core.data.reading.order import Numbers
from calm_core.evaluation.documents import DocumentScores, Stretches
from calm_core.evaluation.resampling import FloatArray
from calm_core.evaluation.samplers import Draws
from calm_core.evaluation.training_text import TrainingText
from calm_core.evaluation.unfinished import Arrays
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.noise import SequenceNoise
from calm_core.store.facts import (
    BrierScores,
    Calibration,
    CalibrationBin,
    KnownText,
    LanguageModelQuality,
    Perplexity,
    PlaceScores,
    SampleDistances,
)

LATENTS = 8
"""Samples at a position whose distances are taken, at most: of each two, so the work grows with the square."""

_RANGES = 64  # more than powers of two of tokens that anything is long
_BINS = 10  # of confidence


@dataclass(frozen=True)
class Counted:
    """What was drawn at the positions of a batch that count, in order.

    Attributes:
        row_N: Sequence of each position in its batch.
        document_N: Its document.
        offset_N: Tokens of the document before it.
        context_N: Tokens of the sequence before it.
        terms_NT: Its Brier-1..4, float64.
    """

    row_N: Numbers
    document_N: Numbers
    offset_N: Numbers
    context_N: Numbers
    terms_NT: FloatArray

    def stretches(self) -> Stretches:
        """Sums by document."""
        return Stretches.of(self.row_N, self.document_N, self.terms_NT)

    def by_range(self, place_N: Numbers) -> Stretches:
        """Sums by document and by range of places: 0, 1, 2 to 3, 4 to 7, ..."""
        range_N = np.frexp(place_N.astype(np.float64))[1]  # how many bits a place has
        return Stretches.of(self.row_N, self.document_N * _RANGES + range_N, self.terms_NT)


def place_scores(stretches: Stretches, scores: Callable[[DocumentScores], BrierScores]) -> list[PlaceScores]:
    """Scores of each range of places that a position lies in.

    Args:
        stretches: Of `Counted.by_range`.
        scores: Of documents, with intervals.
    """
    document_G, range_G = np.divmod(stretches.document_G, _RANGES)
    found = []
    for number in np.unique(range_G).tolist():
        here_G = range_G == number
        documents = DocumentScores.of(
            Stretches(document_G[here_G], stretches.counts_G[here_G], stretches.sums_GT[here_G])
        )
        begin = 2 ** (number - 1) if number else 0
        found.append(PlaceScores(begin=begin, end=2**number, positions=documents.positions, scores=scores(documents)))
    return found


def agreement(samples_NST: Tensor, true_N: Tensor) -> Arrays:
    """How often a position's most frequent first token has come how often, and is true.

    Of several that are the most frequent the one that was drawn first counts.

    Args:
        samples_NST: int64, S samples.
        true_N: int64, the true next tokens.

    Returns:
        `positions` and `hits`, int64 [1, S + 1]: by how many of S samples agree.
    """
    first_NS = samples_NST[..., 0]
    times_NS = torch.zeros_like(first_NS)
    for one_N in first_NS.unbind(1):  # as in `brier_terms`
        times_NS += first_NS == one_N.unsqueeze(1)
    most_N = times_NS.amax(1)
    place_N = (times_NS == most_N.unsqueeze(1)).int().argmax(1)  # the first one
    hits_N = first_NS.gather(1, place_N.unsqueeze(1)).squeeze(1) == true_N
    sizes = first_NS.shape[1] + 1
    counts = [torch.bincount(most_N, minlength=sizes), torch.bincount(most_N[hits_N], minlength=sizes)]
    return {name: count.cpu().numpy()[None] for name, count in zip(("positions", "hits"), counts, strict=True)}


def calibration(positions_C: Numbers, hits_C: Numbers) -> Calibration:
    """Ten bins of confidence, those without a position left out.

    Args:
        positions_C: int64 [S + 1], positions by how many of S samples agree.
        hits_C: Those of them where the samples that agree are true.
    """
    samples = len(positions_C) - 1
    bins, total, off = [], int(positions_C.sum()), 0.0
    for number in range(_BINS):
        agree = [c for c in range(1, samples + 1) if (c * _BINS - 1) // samples == number]  # begin < c / S <= end
        count = int(positions_C[agree].sum())
        if not count:
            continue
        confidence = float((positions_C[agree] * np.array(agree)).sum()) / samples / count
        accuracy = int(hits_C[agree].sum()) / count
        off += count / total * abs(confidence - accuracy)
        bins.append(
            CalibrationBin(
                begin=number / _BINS,
                end=(number + 1) / _BINS,
                positions=count,
                confidence=min(confidence, 1.0),
                accuracy=accuracy,
            )
        )
    return Calibration(bins=bins, expected_error=min(off, 1.0))


def distances(samples_NSL: Tensor, targets_NML: Tensor) -> Tensor:
    """Mean distances at each position, fp64 [N, 3]: sample to target, between samples, between targets.

    Args:
        samples_NSL: Latents of the model, two at least.
        targets_NML: Latents of the true next chunk, two at least.
    """
    within = [torch.cdist(one, one).double().sum((1, 2)) for one in (samples_NSL, targets_NML)]
    pairs = [one.shape[1] * (one.shape[1] - 1) for one in (samples_NSL, targets_NML)]
    across_N = torch.cdist(samples_NSL, targets_NML).double().mean((1, 2))
    return torch.stack([across_N, within[0] / pairs[0], within[1] / pairs[1]], dim=1)


@torch.no_grad()
def target_latents(
    autoencoder: Autoencoder, tokens_BT: Tensor, interval: int, positions: int, samples: int, noise: SequenceNoise
) -> Tensor:
    """Samples of the latent of the true next chunk after each scored position, [B, P, M, L]."""
    size = autoencoder.config.chunk_size
    chunks_BPK = tokens_BT[:, interval:].unfold(1, size, interval)[:, :positions]
    posterior = autoencoder.encode(chunks_BPK)
    normal = noise.normal(positions, samples, posterior.mean.shape[-1])
    return posterior.mean.unsqueeze(2) + posterior.std.unsqueeze(2) * normal


def known_text(draws: Draws, targets_BPT: Tensor, counted_BP: Tensor, text: TrainingText) -> Arrays:
    """How many 4-grams occur in training text: of each position's first sample, and of the true ones.

    Returns:
        `known`: int64 [1, 2].
    """
    both = (draws.samples_BPST[:, :, 0][counted_BP], targets_BPT[counted_BP])
    return {"known": np.array([[text.number_known(grams.cpu().numpy()) for grams in both]], np.int64)}


def quality(
    arrays: Arrays, scores: Callable[[DocumentScores], BrierScores], text: TrainingText, perplexity: Perplexity
) -> LanguageModelQuality:
    """All of it, of what all batches have counted.

    Args:
        arrays: Of `agreement`, `known_text` and `Stretches.arrays`, joined; of a model over chunks also of `distances`.
        scores: Of documents, with intervals.
        text: What is known of training text.
        perplexity: Of the true next tokens.
    """
    positions = int(arrays["positions"].sum())
    sampled, true = (int(number) / positions for number in arrays["known"].sum(0))
    measured = None
    if "distances" in arrays:
        to_target, between_samples, between_targets = (arrays["distances"].sum(0) / positions).tolist()
        measured = SampleDistances(
            to_target=to_target, between_samples=between_samples, between_targets=between_targets
        )
    return LanguageModelQuality(
        by_document_position=place_scores(Stretches.from_arrays(arrays, "offset"), scores),
        by_context_length=place_scores(Stretches.from_arrays(arrays, "context"), scores),
        known_4grams=None if text.known is None else KnownText(sampled=sampled, true=true),
        calibration=calibration(arrays["positions"].sum(0), arrays["hits"].sum(0)),
        distances=measured,
        perplexity=perplexity,
    )
