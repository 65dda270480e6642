"""Metrics on held-out text while training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calm_core.config import TrainingConfig
from calm_core.data.reading.dataset import Dataset
from calm_core.data.reading.loader import Batch
from calm_core.errors import ArtifactError
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.training.tasks.base import Task


class Validator:
    """Computes a task's metrics on the first held-out sequences, with the same noise each time.

    Args:
        task: Model and loss.
        engine: DeepSpeed's engine around the model.
        dataset: The held-out split.
        config: How many sequences, and how many at a time.
        seed: Of the noise.

    Raises:
        ArtifactError: Nothing in those sequences counts, so no metric would say anything.
    """

    def __init__(self, task: Task[Any], engine: Any, dataset: Dataset, config: TrainingConfig, seed: int) -> None:
        self._task, self._engine, self._dataset, self._seed = task, engine, dataset, seed
        number = min(config.validation_sequences, dataset.num_sequences)
        self._parts = np.array_split(np.arange(number), max(-(-number // config.micro_batch_size), 1))
        self._counts = torch.stack([task.counts(batch.tokens) for batch in self._batches()]).sum(0)
        if not self._counts.all():
            raise ArtifactError(
                f"{dataset.uri}: in the {number:,} held-out sequences that validate, no token counts; prepare longer "
                "documents, or raise data.validation_fraction"
            )

    def _batches(self) -> Iterator[Batch]:
        for indices in self._parts:
            yield Batch(torch.from_numpy(self._dataset.rows(indices)), indices.tolist())

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """The metrics by name. Every rank computes all of them: they are few, and ZeRO-3 needs ranks in step."""
        device = self._engine.device
        sums: dict[str, Tensor] = {}
        self._task.model.eval()
        for batch in self._batches():
            noise = SequenceNoise([derive_seed(self._seed, "validation", 0, p) for p in batch.positions], device)
            loss = self._task.loss(self._engine, batch.tokens.to(device), noise, self._counts.to(device))
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value
        self._task.model.train()
        return {name: float(value) for name, value in sums.items()}
