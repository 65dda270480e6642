"""Loading a model that writes, registered or not; MLflow calls `_load_pyfunc`.

Needs the bare library; no pickle is read, and no code but this library's is run.
Registered models name this module, so it stays here.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from calm_core.generation.text import CalmChunks, Sampling, TextGenerator, TransformerTokens
from calm_core.models.layers import freeze
from calm_core.registry.files import AUTOENCODER_FOLDER, CALM_FOLDER, registered_artifacts
from calm_core.store import storage
from calm_core.store.artifact import Artifact, Manifest
from calm_core.store.facts import AutoencoderFacts, CalmFacts, TransformerFacts
from calm_core.telemetry.mlflow_run import REGISTERED
from calm_core.weights.lineage import autoencoder_of
from calm_core.weights.load import load_autoencoder, load_calm, load_tokenizer, load_transformer

if TYPE_CHECKING:
    import pandas as pd

ModuleT = TypeVar("ModuleT", bound=nn.Module)

DEFAULT_PARAMETERS: dict[str, int | float] = {"max_new_tokens": 64, "temperature": 1.0, "seed": 0}


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


class CalmTextModel:
    """What `mlflow.pyfunc.load_model` wraps: a column `prompt` in, one continuation for each row out."""

    def __init__(self, generator: TextGenerator) -> None:
        self.generator = generator

    def get_raw_model(self) -> TextGenerator:
        """The generator itself, for callers that know it."""
        return self.generator

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> list[str]:
        """Continue each prompt; `params` may hold max_new_tokens, temperature and seed."""
        settings = DEFAULT_PARAMETERS | dict(params or {})
        return self.generator.generate(
            [str(prompt) for prompt in model_input["prompt"]],
            max_new_tokens=int(settings["max_new_tokens"]),
            sampling=Sampling(float(settings["temperature"])),
            seed=int(settings["seed"]),
        )


def _load_pyfunc(path: str) -> CalmTextModel:
    autoencoder = Artifact(storage.join(path, AUTOENCODER_FOLDER), AutoencoderFacts)
    calm = Artifact(storage.join(path, CALM_FOLDER), CalmFacts)
    return CalmTextModel(calm_generator(calm, autoencoder))
