"""What is trained: a task gives the loop its model, its loss and its metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calm_core.models.autoencoders.mlp import Autoencoder, AutoencoderLoss, to_chunks
from calm_core.models.calm import Calm, make_targets, next_chunk_counts
from calm_core.models.noise import SequenceNoise
from calm_core.models.transformer import Transformer


@dataclass(frozen=True)
class Loss:
    """One micro-batch's share of the global batch's loss and metrics: summed over all of them, they are the means."""

    value: Tensor
    metrics: dict[str, Tensor]


class Task(ABC):
    """A model and its loss.

    The loss of a global batch is a mean over tokens or positions that count. Their number differs between
    micro-batches, so the loop sums `counts` over the global batch first; then any split into ranks and micro-batches
    gives the same gradient.
    """

    model: nn.Module
    headline: str  # the metric whose value on held-out text is shown

    @abstractmethod
    def counts(self, tokens_BT: Tensor) -> Tensor:
        """How much of a batch counts, fp64, one number for each kind of mean."""

    @abstractmethod
    def loss(self, forward: Callable[..., Any], tokens_BT: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        """Loss of a micro-batch, divided by the `counts` of its global batch; `forward` is the model or its engine."""


class AutoencoderTask(Task):
    """Reconstruction and clipped KL (arXiv 2510.27688)."""

    headline = "accuracy"

    def __init__(self, model: Autoencoder, pad_id: int) -> None:
        self.model = model
        self.config = model.config
        self.pad_id = pad_id

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


class CalmTask(Task):
    """The head's loss on the next chunk's latent, on a frozen autoencoder."""

    model: Calm

    def __init__(self, model: Calm, autoencoder: Autoencoder, pad_id: int) -> None:
        self.model = model
        self.autoencoder = autoencoder
        self.target_samples = model.mlp_generator.target_samples()
        self.headline = model.mlp_generator.loss_name
        self.pad_id = pad_id

    def _chunks(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        chunks_BPK = to_chunks(tokens_BT, self.autoencoder.config.chunk_size)
        return chunks_BPK, chunks_BPK != self.pad_id

    def counts(self, tokens_BT: Tensor) -> Tensor:
        """Positions whose next chunk holds a real token."""
        _, real_BPK = self._chunks(tokens_BT)
        return next_chunk_counts(real_BPK).sum().double().unsqueeze(0)

    def latents(self, tokens_BT: Tensor, noise: SequenceNoise) -> Tensor:
        """One sample [R, L] of the posterior of each chunk that counts."""
        targets = make_targets(self.autoencoder, *self._chunks(tokens_BT), noise, samples=1)
        return targets.mean_RL + targets.deviations_RML.squeeze(1)

    def loss(self, forward: Callable[..., Any], tokens_BT: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        chunks_BPK, real_BPK = self._chunks(tokens_BT)
        targets = make_targets(self.autoencoder, chunks_BPK, real_BPK, noise, self.target_samples)
        loss = forward(chunks_BPK, targets, noise) / counts[0].float()
        return Loss(loss, {self.headline: loss})


class TransformerTask(Task):
    """Cross-entropy of the next token."""

    headline = "cross_entropy"

    def __init__(self, model: Transformer, pad_id: int) -> None:
        self.model = model
        self.pad_id = pad_id

    def counts(self, tokens_BT: Tensor) -> Tensor:
        """Real tokens after the first of each sequence."""
        return (tokens_BT[:, 1:] != self.pad_id).sum().double().unsqueeze(0)

    def loss(self, forward: Callable[..., Any], tokens_BT: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        cross_entropy, correct = forward(tokens_BT, tokens_BT != self.pad_id)
        loss = cross_entropy / counts[0].float()
        return Loss(loss, {"cross_entropy": loss, "accuracy": correct / counts[0].float()})
