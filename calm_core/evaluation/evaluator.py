"""Scores of models on the same held-out positions, by the same protocol."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calm_core.config import EvaluationConfig
from calm_core.data.reading.dataset import Dataset
from calm_core.errors import ArtifactError
from calm_core.evaluation import fidelity
from calm_core.evaluation.brier import MAX_N, next_tokens
from calm_core.evaluation.documents import DocumentNumbers, DocumentScores, Places, Stretches
from calm_core.evaluation.language_model_quality import (
    LATENTS,
    Counted,
    agreement,
    distances,
    known_text,
    quality,
    target_latents,
)
from calm_core.evaluation.resampling import FloatArray, resampled_means, with_interval
from calm_core.evaluation.samplers import BrierModel, DrawingModel, Draws
from calm_core.evaluation.training_text import TrainingText
from calm_core.evaluation.unfinished import Arrays, Unfinished
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.store.facts import AutoencoderQuality, BrierScores, LanguageModelQuality, Perplexity
from calm_core.store.protocol import NO_START
from calm_core.telemetry.stage import Stage

_MOST_NATS = 700.0  # of a token: exp of more is no number
_PIECES = 64  # of a purpose, that are kept of an unfinished evaluation; each is of one batch or several


class Batch(NamedTuple):
    """Sequences int64 [B, T], their numbers in the split, their places in documents, and their noise."""

    indices: list[int]
    tokens_BT: Tensor
    places: Places
    noise: SequenceNoise


class Studied(NamedTuple):
    """What is found of a language model.

    Attributes:
        documents: Its Brier terms.
        quality: Where and how it is right.
        seconds: That the terms have taken.
    """

    documents: DocumentScores
    quality: LanguageModelQuality
    seconds: float


@dataclass
class Evaluator:
    """Scores models on the same held-out positions with the same protocol.

    Attributes:
        config: Samples, number of sequences, confidence.
        dataset: The held-out split.
        interval: Tokens between two scored positions.
        chunk_size: K of the model; the positions are the same for every K up to 4 that divides the interval.
        seed: Of all noise.
        device: Where the models compute.
        stage: To which progress is reported.
        unfinished: Where what has been measured is kept until all is.
    """

    config: EvaluationConfig
    dataset: Dataset
    interval: int
    chunk_size: int
    seed: int
    device: torch.device
    stage: Stage
    unfinished: Unfinished = field(default_factory=Unfinished)

    @property
    def sequences(self) -> int:
        """Sequences that are scored."""
        return min(self.config.max_sequences, self.dataset.num_sequences)

    def _batches(self, purpose: str, first: int, end: int, numbers: DocumentNumbers) -> Iterator[Batch]:
        """The sequences [first, end), and their noise, which depends on the purpose and not on the batch."""
        for start in range(first, end, self.config.batch_size):
            indices = np.arange(start, min(start + self.config.batch_size, end))
            rows = self.dataset.rows(indices)
            noise = self._noise(purpose, indices.tolist())
            yield Batch(indices.tolist(), torch.from_numpy(rows).to(self.device), numbers.of(rows), noise)

    def _told(self, purpose: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of which it is told when each is done, how fast that was, and how long the rest takes."""
        for batch in batches:
            started = time.monotonic()
            yield batch
            seconds = max(time.monotonic() - started, 1e-9) / len(batch.indices)
            done = batch.indices[-1] + 1
            self.stage.report(
                done=done,
                total=self.sequences,
                rate=self.dataset.sequence_length / seconds,
                eta=(self.sequences - done) * seconds,
                note=purpose,
            )

    def _noise(self, purpose: str, indices: list[int]) -> SequenceNoise:
        return SequenceNoise([derive_seed(self.seed, purpose, i) for i in indices], self.device)

    def _measured(self, purpose: str, measure: Callable[[Batch], Arrays]) -> Arrays:
        """Arrays of all batches, joined along their first dimension; those of an interrupted evaluation are kept."""
        numbers, pieces = DocumentNumbers(self.dataset), []
        batches = math.ceil(self.sequences / self.config.batch_size)
        step = self.config.batch_size * math.ceil(batches / _PIECES)
        for first in range(0, self.sequences, step):
            piece = self._batches(purpose, first, min(first + step, self.sequences), numbers)
            name = f"{purpose.lower().replace(' ', '-')}-{first}"
            measured = map(measure, self._told(purpose, piece))  # nothing is, before it is asked for
            pieces.append(self.unfinished.arrays(name, partial(_joined, measured)))
            for _ in piece:  # it was kept, and its documents are numbered all the same
                pass
        return _joined(pieces)

    def require_positions(self) -> None:
        """Refuse held-out text with nothing to score, before the work.

        Raises:
            ArtifactError: No position counts.
        """
        for start in range(0, self.sequences, self.config.batch_size):
            indices = np.arange(start, min(start + self.config.batch_size, self.sequences))
            tokens_BT = torch.from_numpy(self.dataset.rows(indices))
            if next_tokens(tokens_BT, self.interval, self.chunk_size, tokens_BT != self.dataset.pad_id)[1].any():
                return
        raise ArtifactError(
            f"{self.dataset.uri}: none of the first {self.sequences:,} of {self.dataset.num_sequences:,} held-out "
            f"sequences has a position with {MAX_N} tokens of text after it, so nothing can be scored; raise "
            "evaluation.max_sequences or data.validation_fraction, or prepare longer documents"
        )

    def autoencoder(self, autoencoder: Autoencoder, text: TrainingText) -> AutoencoderQuality:
        """How well an autoencoder's latents carry the held-out text."""
        purpose = "autoencoder accuracy"
        batches = self._batches(purpose, 0, self.sequences, DocumentNumbers(self.dataset))
        return self.unfinished.record(
            "autoencoder",
            AutoencoderQuality,
            lambda: fidelity.measure(
                autoencoder,
                ((batch.tokens_BT, batch.noise) for batch in self._told(purpose, batches)),
                pad_id=self.dataset.pad_id,
                train_counts_V=text.counts_V,
            ),
        )

    def score(self, model: BrierModel, purpose: str) -> DocumentScores:
        """Brier terms of a model, by document.

        Args:
            model: Any kind of model.
            purpose: What is scored, for whoever watches; other noise for each.

        Raises:
            CalmError: No position counts.
        """

        def measure(batch: Batch) -> Arrays:
            targets_BPT, counted_BP = self._positions(batch.tokens_BT)
            terms_BPT = model.terms(batch.tokens_BT, targets_BPT, batch.noise, self.config.samples)
            return self._counted(batch, counted_BP, terms_BPT).stretches().arrays("document")

        return DocumentScores.of(Stretches.from_arrays(self._measured(purpose, measure), "document"))

    def study(
        self, model: DrawingModel, purpose: str, text: TrainingText, autoencoder: Autoencoder | None = None
    ) -> Studied:
        """Brier terms of a model as `score` gives them, and all that its samples tell beside.

        Args:
            model: Any kind of trained model.
            purpose: As that of `score`.
            text: What is known of training text.
            autoencoder: Of a model over chunks.
        """

        def measure(batch: Batch) -> Arrays:
            started = time.monotonic()
            targets_BPT, counted_BP = self._positions(batch.tokens_BT)
            draws = model.draw(batch.tokens_BT, targets_BPT, batch.noise, self.config.samples)
            counted = self._counted(batch, counted_BP, draws.terms_BPT)
            seconds = time.monotonic() - started
            arrays = counted.stretches().arrays("document") | {"seconds": np.array([seconds])}
            nats_N1 = draws.nats_BP[counted_BP].unsqueeze(1).cpu().numpy()
            arrays |= Stretches.of(counted.row_N, counted.document_N, nats_N1).arrays("nats")
            arrays |= counted.by_range(counted.offset_N).arrays("offset")
            arrays |= counted.by_range(counted.context_N).arrays("context")
            arrays |= agreement(draws.samples_BPST[counted_BP], targets_BPT[counted_BP][:, 0])
            arrays |= known_text(draws, targets_BPT, counted_BP, text)
            if autoencoder is not None:
                arrays["distances"] = self._distances(batch, draws, counted_BP, autoencoder)
            return arrays

        arrays = self._measured(purpose, measure)
        documents = DocumentScores.of(Stretches.from_arrays(arrays, "document"))
        perplexity = self._perplexity(DocumentScores.of(Stretches.from_arrays(arrays, "nats")), autoencoder)
        return Studied(documents, quality(arrays, self.scores, text, perplexity), float(arrays["seconds"].sum()))

    def _positions(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The true tokens after each scored position, and whether it counts."""
        return next_tokens(tokens_BT, self.interval, self.chunk_size, tokens_BT != self.dataset.pad_id)

    def _counted(self, batch: Batch, counted_BP: Tensor, terms_BPT: Tensor) -> Counted:
        row_N, place_N = np.nonzero(counted_BP.cpu().numpy())
        context_N = self.interval * (place_N + 1)
        document_N, offset_N = (places_RT[row_N, context_N] for places_RT in batch.places)
        return Counted(row_N, document_N, offset_N, context_N, terms_BPT[counted_BP].cpu().numpy())

    def _distances(self, batch: Batch, draws: Draws, counted_BP: Tensor, autoencoder: Autoencoder) -> FloatArray:
        """Sums over the positions of each sequence that count, fp64 [B, 3]."""
        assert draws.latents_BPSL is not None
        samples_BPSL = draws.latents_BPSL[:, :, :LATENTS]
        positions, samples = samples_BPSL.shape[1:3]
        noise = self._noise("target latents", batch.indices)
        targets_BPML = target_latents(autoencoder, batch.tokens_BT, self.interval, positions, samples, noise)
        sums_B3 = np.zeros((len(batch.indices), 3))
        found_N3 = distances(samples_BPSL[counted_BP], targets_BPML[counted_BP])
        np.add.at(sums_B3, np.nonzero(counted_BP.cpu().numpy())[0], found_N3.cpu().numpy())
        return sums_B3

    def scores(self, documents: DocumentScores) -> BrierScores:
        """Brier-1..4 and BrierLM, each with its interval."""
        return documents.scores(self.config.bootstrap_resamples, self.config.confidence, self.seed)

    def _perplexity(self, nats: DocumentScores, autoencoder: Autoencoder | None) -> Perplexity:
        """Of sums of nats by document (`Draws.nats_BP`); of a model over chunks it is a bound."""
        tokens, samples = (MAX_N, None) if autoencoder is None else (min(self.chunk_size, MAX_N), self.config.samples)
        resampled_X1 = resampled_means(nats.sums_DT, nats.counts_D, self.config.bootstrap_resamples, self.seed)
        means = np.concatenate([nats.mean_T, resampled_X1[:, 0]]) / tokens
        mean, *resampled_X = np.exp(np.minimum(means, _MOST_NATS))
        score = with_interval(float(mean), np.array(resampled_X), self.config.confidence, nats.counts_D)
        return Perplexity(**dict(score), tokens=tokens, samples=samples)

    def protocol(self, documents: DocumentScores) -> dict[str, str | int]:
        """All that two scores must share to be compared."""
        return {
            "metric": "BrierLM",
            "split": "validation",
            "dataset": self.dataset.digest,
            "tokenizer": self.dataset.tokenizer_sha256,
            "vocab_size": self.dataset.vocab_size,
            "sequence_length": self.dataset.sequence_length,
            "stride": self.dataset.sequence_length,
            "position_interval": self.interval,
            "packing": self.dataset.packing,
            "start_of_text": NO_START if self.dataset.bos_id is None else self.dataset.bos_id,
            "document_boundaries": "packed; attention crosses them; a position counts if its next 4 tokens are real",
            "samples": self.config.samples,
            "sequences": self.sequences,
            "documents": len(documents.documents_D),
            "positions": documents.positions,
            "interval": f"{100 * self.config.confidence:g}% bootstrap over documents",
            "resamples": self.config.bootstrap_resamples,
        }


def _joined(arrays: Iterable[Arrays]) -> Arrays:
    parts = list(arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
