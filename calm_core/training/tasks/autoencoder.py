"""Training an autoencoder."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from calm_core.config import AutoencoderConfig
from calm_core.models.autoencoders.base import Autoencoder, AutoencoderLoss, to_chunks
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.noise import SequenceNoise
from calm_core.store.facts import AutoencoderFacts
from calm_core.training.memory import made
from calm_core.training.tasks.base import Inputs, Loss, Task


class AutoencoderTask(Task[AutoencoderConfig]):
    """Reconstruction and clipped KL (arXiv 2510.27688)."""

    facts = AutoencoderFacts
    headline = "accuracy"
    objective = "loss"

    def __init__(self, model: Autoencoder, pad_id: int) -> None:
        self.model = model
        self.config = model.config
        self.pad_id = pad_id

    @classmethod
    def create(cls, config: AutoencoderConfig, inputs: Inputs) -> Self:
        model = made(lambda: make_autoencoder(config.model, inputs.dataset.vocab_size), config, inputs.device)
        return cls(model, inputs.dataset.pad_id)

    def _chunks(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        chunks_BPK = to_chunks(tokens_BT, self.config.chunk_size)
        return chunks_BPK, chunks_BPK != self.pad_id

    def counts(self, tokens_BT: Tensor) -> Tensor:
        """Real tokens, and chunks that hold one."""
        _, real_BPK = self._chunks(tokens_BT)
        return torch.stack([real_BPK.sum(), real_BPK.any(-1).sum()]).double()

    def loss(self, forward: Callable[..., Any], tokens_BT: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        sums: AutoencoderLoss = forward(*self._chunks(tokens_BT), noise)
        tokens, chunks = counts.float()
        dimensions = chunks * self.config.latent_size
        cross_entropy, kl = sums.cross_entropy / tokens, sums.kl / chunks
        loss = self.config.chunk_size * cross_entropy + self.config.kl_weight * kl
        return Loss(
            loss,
            {
                "loss": loss,
                "cross_entropy": cross_entropy,
                "kl": kl,
                "accuracy": sums.correct / tokens,
                "clipped_dimensions": sums.clipped / dimensions,
                "latent_std": sums.std / dimensions,
            },
        )
