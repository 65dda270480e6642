"""Trained models from their artifacts, which may come from outside: settings, facts and weights have to agree."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from calm_core.config import AutoencoderConfig, CalmConfig, TrainingConfig, TransformerConfig, parse_section
from calm_core.data.tokenizers.stored import tokenizer_of
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, ConfigError, first_line
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import without_storage
from calm_core.models.transformer import Transformer
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts, TransformerFacts
from calm_core.weights.lineage import require_own_autoencoder

WEIGHTS_NAME = "weights.safetensors"

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
ModelT = TypeVar("ModelT", bound=nn.Module)


def load_autoencoder(artifact: Artifact[AutoencoderFacts]) -> Autoencoder:
    """The model of an `autoencoder` artifact, on CPU, in evaluation mode.

    Raises:
        ArtifactError: Its weights are damaged, or others than its settings and facts say.
    """
    return _with_weights(
        artifact, lambda: make_autoencoder(settings_of(artifact, AutoencoderConfig).model, artifact.facts.vocab_size)
    )


def new_calm(artifact: Artifact[CalmFacts]) -> Calm:
    """A model of a `calm` artifact's shape with new weights, from torch's seed."""
    facts, config = artifact.facts, settings_of(artifact, CalmConfig)
    return Calm(config.model, facts.vocab_size, facts.chunk_size, facts.latent_size).eval()


def load_calm(artifact: Artifact[CalmFacts], autoencoder: Artifact[AutoencoderFacts]) -> Calm:
    """The model of a `calm` artifact, on CPU, in evaluation mode.

    Raises:
        ArtifactError: It was trained on another autoencoder, or its weights are damaged, or others than its settings
            and facts say.
    """
    require_own_autoencoder(artifact, autoencoder)
    shape, facts = settings_of(autoencoder, AutoencoderConfig).model, artifact.facts
    of_autoencoder = (shape.chunk_size, shape.latent_size, autoencoder.facts.vocab_size)
    if (facts.chunk_size, facts.latent_size, facts.vocab_size) != of_autoencoder:
        raise ArtifactError(f"{artifact.uri}: has other chunks, latents or tokens than its autoencoder; train it again")
    return _with_weights(artifact, lambda: new_calm(artifact))


def new_transformer(artifact: Artifact[TransformerFacts]) -> Transformer:
    """A model of a `transformer` artifact's shape with new weights, from torch's seed."""
    return Transformer(settings_of(artifact, TransformerConfig).model, artifact.facts.vocab_size).eval()


def load_transformer(artifact: Artifact[TransformerFacts]) -> Transformer:
    """The model of a `transformer` artifact, on CPU, in evaluation mode.

    Raises:
        ArtifactError: Its weights are damaged, or others than its settings and facts say.
    """
    return _with_weights(artifact, lambda: new_transformer(artifact))


def load_weights(artifact: Artifact[ModelFacts]) -> dict[str, Tensor]:
    """The weights of a model's artifact, by parameter name.

    Raises:
        ArtifactError: One of the artifact's files is missing or damaged: all are checked, so a model is taken whole. Or
            the weights hold something else than finite numbers.
    """
    artifact.check_files(entry.path for entry in artifact.manifest.files if entry.path != WEIGHTS_NAME)
    try:
        weights = dict(safetensors.torch.load(artifact.read(WEIGHTS_NAME)))
    except ArtifactError:
        raise
    except Exception as error:  # the library has several kinds for what is no such file
        raise artifact.damaged(WEIGHTS_NAME, f"no safetensors: {first_line(error):.200}") from None
    for name, value in weights.items():
        if not value.is_floating_point() or (value.numel() and not torch.stack(value.aminmax()).isfinite().all()):
            raise artifact.damaged(WEIGHTS_NAME, f"{name:.200} holds something else than finite numbers")
    return weights


def _with_weights(artifact: Artifact[ModelFacts], make: Callable[[], ModelT]) -> ModelT:
    """A model with the artifact's weights; memory is taken once these are known to fit it."""
    weights = load_weights(artifact)
    layers = max(_numbers_of_layers(artifact.manifest.config), default=0)
    if layers > len(weights):
        raise artifact.damaged(WEIGHTS_NAME, f"{len(weights)} tensors for {layers} layers")
    try:
        with without_storage():
            expected = make()
    except ArtifactError:
        raise
    except Exception as error:  # torch has several kinds for what is too large
        raise ArtifactError(
            f"{artifact.uri}: its settings are those of no model ({first_line(error):.200}); train it again"
        ) from None
    shapes = {name: value.shape for name, value in expected.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if shapes != found:
        wrong = min(name for name in shapes | found if shapes.get(name) != found.get(name))
        raise artifact.damaged(WEIGHTS_NAME, f"{wrong:.200} is not as the settings say")
    parameters = sum(parameter.numel() for parameter in expected.parameters())
    if artifact.facts.parameters not in (0, parameters):
        raise artifact.damaged(WEIGHTS_NAME, f"{parameters:,} parameters, not {artifact.facts.parameters:,}")
    model = make()
    model.load_state_dict(weights)
    return model.eval()


def _numbers_of_layers(settings: Mapping[str, Any]) -> Iterator[int]:
    """All settings that count layers; each one becomes an object, also of a model without storage."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers_of_layers(value)
        elif name.endswith("layers") and isinstance(value, int):
            yield value


def load_tokenizer(artifact: Artifact[ModelFacts]) -> Tokenizer:
    """The tokenizer inside a model's artifact.

    Raises:
        ArtifactError: It is damaged, or has tokens that the model does not know.
    """
    return tokenizer_of(artifact, artifact.facts)


def settings_of(artifact: Artifact[ModelFacts], config_type: type[ConfigT]) -> ConfigT:
    """The settings that a model was trained with.

    Raises:
        ArtifactError: They are not understood.
    """
    settings = {key: value for key, value in artifact.manifest.config.items() if key != "seed"}
    try:
        return parse_section(config_type, settings)
    except ConfigError as error:
        raise ArtifactError(
            f"{artifact.uri}: its settings are not understood ({error!s:.500}); train it again"
        ) from None
