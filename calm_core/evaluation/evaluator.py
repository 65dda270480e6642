"""Scores of models on the same held-out positions, by the same protocol."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calm_core.config import EvaluationConfig
from calm_core.data.reading.dataset import Dataset
from calm_core.errors import ArtifactError
from calm_core.evaluation.brier import MAX_N, next_tokens
from calm_core.evaluation.documents import DocumentNumbers, DocumentScores, Places, Stretches
from calm_core.evaluation.samplers import BrierModel
from calm_core.models.autoencoders.base import Autoencoder, reconstruct, to_chunks
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.store.facts import BrierScores
from calm_core.store.protocol import NO_START
from calm_core.telemetry.stage import Stage


class Batch(NamedTuple):
    """Sequences int64 [B, T], their places in documents, and their noise."""

    tokens_BT: Tensor
    places: Places
    noise: SequenceNoise


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
    """

    config: EvaluationConfig
    dataset: Dataset
    interval: int
    chunk_size: int
    seed: int
    device: torch.device
    stage: Stage

    @property
    def sequences(self) -> int:
        """Sequences that are scored."""
        return min(self.config.max_sequences, self.dataset.num_sequences)

    def _batches(self, purpose: str) -> Iterator[Batch]:
        """All sequences, and their noise, which depends on the purpose and not on the batch."""
        numbers = DocumentNumbers(self.dataset)
        for start in range(0, self.sequences, self.config.batch_size):
            indices = np.arange(start, min(start + self.config.batch_size, self.sequences))
            seeds = [derive_seed(self.seed, purpose, i) for i in indices.tolist()]
            rows = self.dataset.rows(indices)
            tokens_BT = torch.from_numpy(rows).to(self.device)
            yield Batch(tokens_BT, numbers.of(rows), SequenceNoise(seeds, self.device))
            self.stage.report(done=int(indices[-1]) + 1, total=self.sequences, note=purpose)

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

    def autoencoder_accuracy(self, autoencoder: Autoencoder) -> float:
        """Share of real tokens that come back from sampled latents."""
        correct, total = 0, 0
        for tokens_BT, _, noise in self._batches("autoencoder accuracy"):
            chunks_BPK = to_chunks(tokens_BT, self.chunk_size)
            real_BPK = chunks_BPK != self.dataset.pad_id
            correct += int(((reconstruct(autoencoder, chunks_BPK, noise) == chunks_BPK) & real_BPK).sum())
            total += int(real_BPK.sum())
        return correct / total

    def score(self, model: BrierModel, purpose: str) -> DocumentScores:
        """Brier terms of a model, by document.

        Args:
            model: Any kind of model.
            purpose: What is scored, for whoever watches; other noise for each.

        Raises:
            CalmError: No position counts.
        """
        stretches = []
        for tokens_BT, places, noise in self._batches(purpose):
            real_BT = tokens_BT != self.dataset.pad_id
            targets_BPT, counted_BP = next_tokens(tokens_BT, self.interval, self.chunk_size, real_BT)
            terms_NT = model.terms(tokens_BT, targets_BPT, noise, self.config.samples)[counted_BP]
            row_N, place_N = np.nonzero(counted_BP.cpu().numpy())
            document_N = places.document_RT[row_N, self.interval * (place_N + 1)]
            stretches.append(Stretches.of(row_N, document_N, terms_NT.cpu().numpy()))
        return DocumentScores.of(Stretches.joined(stretches))

    def scores(self, documents: DocumentScores) -> BrierScores:
        """Brier-1..4 and BrierLM, each with its interval."""
        return documents.scores(self.config.bootstrap_resamples, self.config.confidence, self.seed)

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
            "interval": f"{self.config.confidence:.0%} bootstrap over documents",
            "resamples": self.config.bootstrap_resamples,
        }
