"""Training a CALM language model."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from calm_core.config import CalmConfig
from calm_core.models.autoencoders.base import Autoencoder, to_chunks
from calm_core.models.calm import Calm, make_targets, next_chunk_counts
from calm_core.models.decoder_losses.base import DecoderLoss
from calm_core.models.decoder_losses.make import make_decoder_loss
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.store import storage
from calm_core.store.facts import CalmFacts
from calm_core.training.memory import made
from calm_core.training.tasks.base import Inputs, Loss, Task, set_up_backbone
from calm_core.weights.load import load_autoencoder

_FITTED_SEQUENCES = 64  # training sequences that a head takes its constants from


class CalmTask(Task[CalmConfig]):
    """The head's loss on the next chunk's latent, on a frozen autoencoder, and a loss of decoded samples beside it."""

    facts = CalmFacts
    model: Calm

    def __init__(
        self,
        model: Calm,
        autoencoder: Autoencoder,
        pad_id: int,
        decoder_loss: DecoderLoss | None = None,
        steps: int = 1,
    ) -> None:
        self.model = model
        self.autoencoder = autoencoder
        self.target_samples = model.mlp_generator.target_samples()
        self.headline = model.mlp_generator.loss_name
        self.pad_id = pad_id
        self.decoder_loss = decoder_loss
        self.steps = steps
        self.begin_step(0)

    @classmethod
    def create(cls, config: CalmConfig, inputs: Inputs) -> Self:
        assert inputs.autoencoder is not None  # refused before the ranks
        autoencoder = load_autoencoder(inputs.autoencoder).to(inputs.device, inputs.dtype)
        freeze(autoencoder)
        dataset, shape = inputs.dataset, autoencoder.config
        model = made(
            lambda: Calm(config.model, dataset.vocab_size, shape.chunk_size, shape.latent_size), config, inputs.device
        )
        set_up_backbone(model.transformer, config)
        decoder_loss = None if config.decoder_loss is None else make_decoder_loss(config.decoder_loss, autoencoder)
        task = cls(model, autoencoder, dataset.pad_id, decoder_loss, config.steps)
        if model.mlp_generator.fits_data:
            rows = dataset.rows(np.arange(min(_FITTED_SEQUENCES, dataset.num_sequences)))
            seeds = [derive_seed(inputs.seed, "latent scale", i) for i in range(len(rows))]
            tokens_BT = torch.from_numpy(rows).to(inputs.device)
            model.mlp_generator.fit(task.latents(tokens_BT, SequenceNoise(seeds, inputs.device)))
        return task

    def begin_step(self, step: int) -> None:
        decoder_loss = self.decoder_loss
        self.decoder_weight = decoder_loss.config.weight_at(step, self.steps) if decoder_loss else 0.0

    def own_facts(self, inputs: Inputs) -> dict[str, Any]:
        assert inputs.autoencoder is not None
        shape = {"chunk_size": self.model.chunk_size, "latent_size": self.model.latent_size}
        return shape | {"autoencoder_uri": storage.absolute(inputs.autoencoder.uri)}

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
        positions = counts[0].float()
        # What is left of it once its weight is 0 is told by validation, and costs no more steps.
        if self.decoder_loss is None or (self.model.training and not self.decoder_weight):
            loss = forward(chunks_BPK, targets, noise) / positions
            return Loss(loss, {self.headline: loss})
        beside = partial(
            self.decoder_loss.of_head,
            chunks_BPK=chunks_BPK[:, 1:],
            real_BPK=real_BPK[:, 1:],
            before_BPW=self.autoencoder.before(chunks_BPK)[:, 1:],
        )
        loss, decoded = (one / positions for one in forward(chunks_BPK, targets, noise, beside))
        return Loss(loss + self.decoder_weight * decoded, {self.headline: loss, self.decoder_loss.name: decoded})
