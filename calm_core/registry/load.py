"""Loading a model that writes, registered or not; MLflow calls `_load_pyfunc`.

Needs the bare library; no pickle is read, and no code but this library's is run.
Registered models name this module, so it stays here.
"""

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from calm_core.generation.text import CalmChunks, TextGenerator, TransformerTokens
from calm_core.models.layers import freeze
from calm_core.store import storage
from calm_core.store.artifact import Artifact, Manifest
from calm_core.store.facts import AutoencoderFacts, CalmFacts, TransformerFacts
from calm_core.telemetry.mlflow_run import REGISTERED
from calm_core.weights.lineage import autoencoder_of
from calm_core.weights.load import load_autoencoder, load_calm, load_tokenizer, load_transformer
from calm_core.weights.registered import AUTOENCODER_FOLDER, CALM_FOLDER, registered_artifacts

if TYPE_CHECKING:
    from calm_core.registry.served import CalmTextModel

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def load_generator(uri: str, autoencoder_uri: str = "") -> TextGenerator:
    """The text generator of a model.

    Args:
        uri: A registered model, e.g. models:/calm@champion, or a `calm` or `transformer` artifact.
        autoencoder_uri: Of a `calm` artifact; unset, where it was when the model was trained.

    Raises:
        CalmError: There is no such model, or it is none of ours.
    """
    if uri.startswith(REGISTERED):
        with registered_artifacts(uri) as (autoencoder, calm):
            return calm_generator(calm, autoencoder)
    if Manifest.read(uri).kind == TransformerFacts.kind:
        transformer = Artifact(uri, TransformerFacts)
        return TextGenerator(
            TransformerTokens(_ready(load_transformer(transformer))),
            load_tokenizer(transformer),
            transformer.facts.packing,
        )
    calm = Artifact(uri, CalmFacts)
    return calm_generator(calm, autoencoder_of(calm, autoencoder_uri))


def calm_generator(calm: Artifact[CalmFacts], autoencoder: Artifact[AutoencoderFacts]) -> TextGenerator:
    """The text generator of a CALM model, whose files are checked while they are read."""
    chunks = CalmChunks(_ready(load_calm(calm, autoencoder)), _ready(load_autoencoder(autoencoder)))
    return TextGenerator(chunks, load_tokenizer(calm), calm.facts.packing)


def _ready(model: ModuleT) -> ModuleT:
    return freeze(model.to("cuda" if torch.cuda.is_available() else "cpu"))


def _load_pyfunc(path: str) -> "CalmTextModel":
    from calm_core.registry.served import CalmTextModel  # needs MLflow, whose import costs seconds

    autoencoder = Artifact(storage.join(path, AUTOENCODER_FOLDER), AutoencoderFacts)
    calm = Artifact(storage.join(path, CALM_FOLDER), CalmFacts)
    return CalmTextModel(calm_generator(calm, autoencoder))
