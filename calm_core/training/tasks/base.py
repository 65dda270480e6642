"""What a task is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from calm_core.config import LanguageModelTrainingConfig, TrainingConfig
from calm_core.data.reading.dataset import Dataset
from calm_core.models.backbone import Backbone
from calm_core.models.noise import SequenceNoise
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, ModelFacts

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


@dataclass(frozen=True)
class Loss:
    """One micro-batch's share of the global batch's loss and metrics: summed over all of them, they are the means."""

    value: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a task is made from.

    Attributes:
        dataset: The training split.
        autoencoder: The trained autoencoder that a CALM model predicts the vectors of.
        teacher: The model that a CALM model learns from; None where it learns from the text.
        seed: Of everything random.
        device, dtype: Where, and in which numbers, frozen models compute.
    """

    dataset: Dataset
    autoencoder: Artifact[AutoencoderFacts] | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    teacher: Artifact[ModelFacts] | None = None


class Task(ABC, Generic[ConfigT]):
    """A model and its loss.

    The loss of a global batch is a mean over tokens or positions that count. Their number differs between
    micro-batches, so the loop sums `counts` over the global batch first; then any split into ranks and micro-batches
    gives the same gradient.

    Attributes:
        facts: The kind of artifact that the trained model becomes.
        headline: The metric whose value on held-out text is shown.
        objective: The metric that is smallest where the model is best.
    """

    facts: ClassVar[type[ModelFacts]]
    model: nn.Module
    headline: str

    @property
    def objective(self) -> str:
        return self.headline

    @classmethod
    @abstractmethod
    def create(cls, config: ConfigT, inputs: Inputs) -> Self:
        """The task with a new model, from torch's seed."""

    @abstractmethod
    def counts(self, tokens_BT: Tensor) -> Tensor:
        """How much of a batch counts, fp64, one number for each kind of mean."""

    @abstractmethod
    def loss(self, forward: Callable[..., Any], tokens_BT: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        """Loss of a micro-batch, divided by the `counts` of its global batch; `forward` is the model or its engine."""

    def begin_step(self, step: int) -> None:  # most tasks do the same in each
        """Take note of the optimiser step (from 0) that `loss` is computed for next."""

    def own_facts(self, inputs: Inputs) -> dict[str, Any]:
        """What the artifact's facts hold beyond those of every model."""
        return {}


def set_up_backbone(backbone: Backbone, config: LanguageModelTrainingConfig) -> None:
    """Apply the settings of how a backbone computes."""
    backbone.activation_checkpointing = config.activation_checkpointing
    if config.compile:
        # Tells the compiler, too, which the worker has not imported for it.
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        for layer in backbone.layers:
            layer.compile()
