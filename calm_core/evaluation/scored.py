"""How each kind of model is scored. Another kind needs one function here, and one line in `SCORED`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from calm_core.evaluation.costs import costs, inference_flops_per_token
from calm_core.evaluation.samplers import BrierModel, CalmSampler, DrawingModel, TransformerScorer
from calm_core.generation.text import CalmChunks, NextChunk, TextGenerator, TransformerTokens
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.layers import freeze
from calm_core.models.noise import derive_seed
from calm_core.store.artifact import Artifact
from calm_core.store.facts import CalmFacts, ModelFacts, TrainingCost, TransformerFacts
from calm_core.weights.curves import Curve, curve_of
from calm_core.weights.lineage import autoencoder_of
from calm_core.weights.load import (
    load_autoencoder,
    load_calm,
    load_tokenizer,
    load_transformer,
    new_calm,
    new_transformer,
)


@dataclass(frozen=True)
class Scored:
    """A trained model of any kind, as the evaluation needs it.

    Attributes:
        label: What it is, for people.
        parents: Digests of what the evaluation is made from, beside the dataset.
        trained: What is scored, given the interval of the positions.
        new: The same with new weights, from torch's seed.
        generator: What writes text.
        curves: Points of training curves, by the picture's title and the curve's name.
        settings: Of each model and its training, by its name.
        costs: What the training of each model has taken, by its kind.
        flops_per_token: What a token takes that is written in a context of so many.
        autoencoder: Of a model over chunks.
    """

    label: str
    chunk_size: int
    parents: dict[str, str]
    trained: Callable[[int], DrawingModel]
    new: Callable[[int], BrierModel]
    generator: TextGenerator
    curves: dict[tuple[str, str], Curve]
    settings: dict[str, dict[str, Any]]
    costs: dict[str, TrainingCost]
    flops_per_token: Callable[[int], float]
    autoencoder: Autoencoder | None = None

    def untrained(self, interval: int, seed: int) -> BrierModel:
        """The model before its training.

        The seed is set right before its weights are drawn: they depend on no model that was built earlier.
        """
        torch.manual_seed(derive_seed(seed, "untrained"))
        return self.new(interval)


def _calm(artifact: Artifact[CalmFacts], autoencoder_uri: str, device: torch.device) -> Scored:
    autoencoder_artifact = autoencoder_of(artifact, autoencoder_uri)
    autoencoder = freeze(load_autoencoder(autoencoder_artifact).to(device))
    calm = freeze(load_calm(artifact, autoencoder_artifact).to(device))
    return Scored(
        label=f"CALM, K = {calm.chunk_size}, {calm.config.head.kind} head",
        chunk_size=calm.chunk_size,
        parents={"autoencoder": autoencoder_artifact.digest, "calm": artifact.digest},
        trained=lambda interval: CalmSampler(calm, autoencoder, interval),
        new=lambda interval: CalmSampler(freeze(new_calm(artifact).to(device)), autoencoder, interval),
        generator=_generator(CalmChunks(calm, autoencoder), artifact),
        curves={
            ("Autoencoder: token accuracy", "accuracy"): curve_of(autoencoder_artifact),
            ("CALM: loss of the head", calm.mlp_generator.loss_name): curve_of(artifact),
        },
        settings={"autoencoder": autoencoder_artifact.manifest.config, "CALM": artifact.manifest.config},
        costs=costs(artifact, autoencoder_artifact),
        flops_per_token=partial(inference_flops_per_token, artifact, autoencoder_artifact),
        autoencoder=autoencoder,
    )


def _transformer(artifact: Artifact[TransformerFacts], autoencoder_uri: str, device: torch.device) -> Scored:
    model = freeze(load_transformer(artifact).to(device))
    return Scored(
        label="Transformer over tokens",
        chunk_size=1,
        parents={"transformer": artifact.digest},
        trained=lambda interval: TransformerScorer(model, interval),
        new=lambda interval: TransformerScorer(freeze(new_transformer(artifact).to(device)), interval),
        generator=_generator(TransformerTokens(model), artifact),
        curves={("Transformer: cross-entropy, nats a token", "cross_entropy"): curve_of(artifact)},
        settings={"Transformer": artifact.manifest.config},
        costs=costs(artifact),
        flops_per_token=partial(inference_flops_per_token, artifact, None),
    )


# Of a model's artifact, the URI of its autoencoder ("": where it lay in training), and the device.
SCORED: Mapping[type[ModelFacts], Callable[[Artifact[Any], str, torch.device], Scored]] = {
    CalmFacts: _calm,
    TransformerFacts: _transformer,
}


def _generator(model: NextChunk, artifact: Artifact[Any]) -> TextGenerator:
    return TextGenerator(model, load_tokenizer(artifact), artifact.facts.packing)
