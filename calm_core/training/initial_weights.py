"""Starting from the weights of another model: whether they fit, and their way to all ranks."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from calm_core.config import AutoencoderConfig, CalmConfig, TrainingConfig, TransformerConfig
from calm_core.config.base import as_written
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import CalmError, ConfigError
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import without_storage
from calm_core.models.transformer import Transformer
from calm_core.shown import by_dotted_name
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, DatasetFacts, Facts, MixtureFacts, ModelFacts
from calm_core.weights.initial import INITIAL_WEIGHTS, initial_model
from calm_core.weights.load import WEIGHTS_NAME, load_weights, settings_of

_NAMED = 4


def checked_digest(config: TrainingConfig, dataset_uri: str, autoencoder_uri: str) -> str:
    """The digest of the model that a training starts from, which fits as far as manifests tell.

    Args:
        config: Of the training.
        dataset_uri, autoencoder_uri: Its inputs.

    Raises:
        ConfigError: It is of another kind or shape, or has another tokenizer than the dataset.
        CalmError: It is missing or damaged, or MLflow does not answer.
    """
    dataset = plain_dataset(dataset_uri)
    autoencoder = Artifact(autoencoder_uri, AutoencoderFacts) if autoencoder_uri else None
    with initial_model(config, files=False) as initial:
        if initial.entry(TOKENIZER_NAME).sha256 != dataset.entry(TOKENIZER_NAME).sha256:
            raise ConfigError(
                f"{config.kind}.{INITIAL_WEIGHTS}: {config.initial_weights} has another tokenizer than {dataset.uri}; "
                "prepare the text with its tokenizer (data.extends, tokenizer.source), or start from other weights"
            )
        shape = settings_of(autoencoder, AutoencoderConfig) if autoencoder else None
        require_fitting(config, initial, dataset.facts.vocab_size, shape)
        return initial.digest


def require_fitting(
    config: TrainingConfig, initial: Artifact[ModelFacts], vocab_size: int, autoencoder: AutoencoderConfig | None
) -> None:
    """Refuse weights of another shape.

    Args:
        config: Of the training.
        initial: The model to start from.
        vocab_size: Of the text.
        autoencoder: Of a CALM model.

    Raises:
        ConfigError: They are.
    """
    here: dict[str, Any] = {"vocab_size": vocab_size}
    there: dict[str, Any] = {"vocab_size": initial.facts.vocab_size}
    if autoencoder and isinstance(initial.facts, CalmFacts):
        here |= {"chunk_size": autoencoder.model.chunk_size, "latent_size": autoencoder.model.latent_size}
        there |= {"chunk_size": initial.facts.chunk_size, "latent_size": initial.facts.latent_size}
    own = settings_of(initial, type(config))
    if _shapes(config, here) == _shapes(own, there):
        return
    for settings, values in ((config, here), (own, there)):
        values |= by_dotted_name(settings.model_dump(mode="json")["model"])
    differing = [
        f"{name} {as_written(there.get(name))} there, {as_written(here.get(name))} here"
        for name in sorted(here | there)
        if here.get(name) != there.get(name)
    ]
    raise ConfigError(
        f"{config.kind}.{INITIAL_WEIGHTS}: {config.initial_weights} has another shape ({', '.join(differing[:_NAMED])}"
        f"{' ...' * (len(differing) > _NAMED)}); set it so, or leave the setting out"
    )


def start_from(model: nn.Module, config: TrainingConfig, digest: str, device: torch.device) -> None:
    """Give a new model the weights that a training starts from. Rank 0 reads them, for all.

    Args:
        model: The same on every rank, on CPU or a device.
        config: Of the training.
        digest: Of what was checked before the ranks.
        device: Over which ranks send.

    Raises:
        CalmError: They are missing, damaged, or others than were checked.
    """
    weights = {}
    if dist.get_rank() == 0:
        with initial_model(config) as initial:
            if initial.digest != digest:
                raise CalmError(
                    f"{config.kind}.{INITIAL_WEIGHTS}: {config.initial_weights} has been replaced since the job was "
                    "made; run again",
                    can_pass=True,
                )
            weights = load_weights(initial)
            if {name: value.shape for name, value in weights.items()} != _shapes_of(model):
                raise initial.damaged(WEIGHTS_NAME, "its tensors are not as its settings say")
    for name, own in model.state_dict().items():
        value = weights[name].to(device, own.dtype) if weights else torch.empty_like(own, device=device)
        dist.broadcast(value, 0)
        own.copy_(value)


def _shapes_of(model: nn.Module) -> Mapping[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def _shapes(config: TrainingConfig, facts: Mapping[str, int]) -> Mapping[str, torch.Size]:
    """Shapes of all tensors of a model."""
    with without_storage():
        match config:
            case AutoencoderConfig():
                return _shapes_of(make_autoencoder(config.model, facts["vocab_size"]))
            case CalmConfig():
                sizes = facts["vocab_size"], facts["chunk_size"], facts["latent_size"]
                return _shapes_of(Calm(config.model, *sizes))
            case TransformerConfig():
                return _shapes_of(Transformer(config.model, facts["vocab_size"]))
    raise TypeError(config)


def plain_dataset(dataset_uri: str) -> Artifact[DatasetFacts]:
    """A dataset, or one of those of a mixture, which share their tokenizer."""
    found = Artifact[Facts](dataset_uri, DatasetFacts, MixtureFacts)
    return plain_dataset(found.facts.datasets[0]) if isinstance(found.facts, MixtureFacts) else cast(Any, found)
