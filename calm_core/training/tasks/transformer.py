"""Training the token-level Transformer baseline."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from calm_core.config import TransformerConfig
from calm_core.models.noise import SequenceNoise
from calm_core.models.transformer import Transformer
from calm_core.store.facts import TransformerFacts
from calm_core.training.memory import made
from calm_core.training.tasks.base import Inputs, Loss, Task, set_up_backbone


class TransformerTask(Task[TransformerConfig]):
    """Cross-entropy of the next token."""

    facts = TransformerFacts
    headline = "cross_entropy"

    def __init__(self, model: Transformer, pad_id: int) -> None:
        self.model = model
        self.pad_id = pad_id

    @classmethod
    def create(cls, config: TransformerConfig, inputs: Inputs) -> Self:
        model = made(lambda: Transformer(config.model, inputs.dataset.vocab_size), config, inputs.device)
        set_up_backbone(model.transformer, config)
        return cls(model, inputs.dataset.pad_id)

    def counts(self, tokens_BT: Tensor) -> Tensor:
        """Real tokens after the first of each sequence."""
        return (tokens_BT[:, 1:] != self.pad_id).sum().double().unsqueeze(0)

    def loss(self, forward: Callable[..., Any], tokens_BT: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        cross_entropy, correct = forward(tokens_BT, tokens_BT != self.pad_id)
        loss = cross_entropy / counts[0].float()
        return Loss(loss, {"cross_entropy": loss, "accuracy": correct / counts[0].float()})
