"""Validation says something, or is refused."""

from typing import Any

import numpy as np
import pytest

from calm_core.config import MlpAutoencoderConfig, TrainingConfig
from calm_core.errors import ArtifactError
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.training.tasks.autoencoder import AutoencoderTask
from calm_core.training.validation import Validator

PAD = 0


class HeldOut:
    """Sequences in memory, as a dataset."""

    uri = "held-out"

    def __init__(self, rows: list[list[int]]) -> None:
        self._rows = np.array(rows, dtype=np.int64).reshape(len(rows), 8)
        self.num_sequences = len(rows)

    def rows(self, indices: Any) -> Any:
        return self._rows[indices]


def validator(rows: list[list[int]]) -> Validator:
    shape = MlpAutoencoderConfig(chunk_size=4, latent_size=2, hidden_size=8, intermediate_size=8)
    task = AutoencoderTask(MlpAutoencoder(shape, 5), PAD)
    config = TrainingConfig(
        steps=1, warmup_steps=0, validation_sequences=2, micro_batch_size=1, global_batch_size=1, precision="fp32"
    )
    return Validator(task, None, HeldOut(rows), config, seed=0)  # type: ignore[arg-type]  # as much as it reads


@pytest.mark.parametrize("rows", [[], [[PAD] * 8], [[PAD] * 8, [PAD] * 8, [1] * 8]])
def test_held_out_text_of_which_nothing_counts_is_refused_before_the_training(rows: list[list[int]]) -> None:
    """The third sequence takes no part in validation."""
    with pytest.raises(ArtifactError, match=r"^held-out: in the \d held-out sequences that validate, no token counts"):
        validator(rows)


def test_one_token_that_counts_is_enough() -> None:
    validator([[PAD] * 8, [1] + [PAD] * 7])
