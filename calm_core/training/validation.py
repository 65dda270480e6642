"""Metrics on held-out text while training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from calm_core.config import TrainingConfig
from calm_core.data.reading.dataset import Dataset
from calm_core.data.reading.loader import Batch
from calm_core.errors import ArtifactError
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.training.distributed import all_reduce_sum
from calm_core.training.engine import Engine
from calm_core.training.tasks.base import Task


class Validator:
    """Computes a task's metrics on the first held-out sequences, with the same noise each time.

    The ranks share the sequences, and compute equally many batches, as ZeRO 3 needs, which gathers weights for all.

    Args:
        task: Model and loss.
        engine: Steps the model.
        dataset: The held-out split.
        config: How many sequences, and how many at a time.
        seed: Of the noise.

    Raises:
        ArtifactError: Nothing in those sequences counts, so no metric would say anything.
    """

    def __init__(self, task: Task[Any], engine: Engine, dataset: Dataset, config: TrainingConfig, seed: int) -> None:
        self._task, self._engine, self._dataset, self._seed = task, engine, dataset, seed
        number = min(config.validation_sequences, dataset.num_sequences)
        self._parts = np.array_split(np.arange(number), max(-(-number // config.micro_batch_size), 1))
        self._counts = torch.stack([task.counts(batch.tokens) for batch in map(self._batch, self._parts)]).sum(0)
        if not self._counts.all():
            raise ArtifactError(
                f"{dataset.uri}: in the {number:,} held-out sequences that validate, no token counts; prepare longer "
                "documents, or raise data.validation_fraction"
            )

    def _batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        return Batch(torch.from_numpy(self._dataset.rows(indices)), indices.tolist())

    @torch.no_grad()
    def metrics(self, alive: Callable[[], object] = lambda: None) -> dict[str, float]:
        """The metrics by name, the same on every rank.

        Args:
            alive: Called after each batch, so that whoever watches sees progress.
        """
        device, rank, ranks = self._engine.device, dist.get_rank(), dist.get_world_size()
        counts = self._counts.to(device)
        sums: dict[str, Tensor] = {}
        self._task.model.eval()
        with self._engine.averaged():
            for first in range(0, len(self._parts), ranks):
                own = first + rank
                batch = self._batch(self._parts[min(own, len(self._parts) - 1)])
                noise = SequenceNoise([derive_seed(self._seed, "validation", 0, p) for p in batch.positions], device)
                loss = self._task.loss(self._engine, batch.tokens.to(device), noise, counts)
                share = float(own < len(self._parts))  # what another rank counts is computed for company
                for name, value in loss.metrics.items():
                    sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + share * value
                alive()
        self._task.model.train()
        names = sorted(sums)
        return dict(zip(names, all_reduce_sum(torch.stack([sums[n] for n in names]), device).tolist(), strict=True))
