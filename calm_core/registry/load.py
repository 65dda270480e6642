"""Loading a registered model; MLflow calls `_load_pyfunc`. Needs calm_core alone; no pickle is read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from calm_core.errors import CalmError
from calm_core.models.layers import freeze
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.weights.load import load_autoencoder, load_calm

if TYPE_CHECKING:
    import pandas as pd

    from calm_core.generation.text import TextGenerator

DEFAULT_PARAMETERS: dict[str, int | float] = {"max_new_tokens": 64, "temperature": 1.0, "seed": 0}


def text_generator(autoencoder: Artifact, calm: Artifact) -> "TextGenerator":
    """A text generator from the two trained artifacts."""
    from calm_core.data.tokenizers.tokenizer import Tokenizer
    from calm_core.generation.text import CalmChunks, TextGenerator

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = load_calm(calm, autoencoder).to(device), load_autoencoder(autoencoder).to(device)
    for model in models:
        freeze(model)
    special = autoencoder.manifest.results
    tokenizer = Tokenizer.from_bytes(autoencoder.read("tokenizer.json"), special["pad_id"], special["eos_id"])
    return TextGenerator(CalmChunks(*models), tokenizer)


class CalmTextModel:
    """What `mlflow.pyfunc.load_model` wraps: a column `prompt` in, one continuation for each row out."""

    def __init__(self, generator: "TextGenerator") -> None:
        self.generator = generator

    def get_raw_model(self) -> "TextGenerator":
        """The generator itself, for callers that know it."""
        return self.generator

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> list[str]:
        """Continue each prompt; `params` may hold max_new_tokens, temperature and seed."""
        from calm_core.generation.text import Sampling

        settings = DEFAULT_PARAMETERS | dict(params or {})
        return self.generator.generate(
            [str(prompt) for prompt in model_input["prompt"]],
            max_new_tokens=int(settings["max_new_tokens"]),
            sampling=Sampling(float(settings["temperature"])),
            seed=int(settings["seed"]),
        )


def _load_pyfunc(path: str) -> CalmTextModel:
    autoencoder = Artifact(storage.join(path, "autoencoder"), "autoencoder")
    return CalmTextModel(text_generator(autoencoder, Artifact(storage.join(path, "calm"), "calm")))


def load_generator(model_uri: str) -> "TextGenerator":
    """The text generator of an MLflow model URI, e.g. models:/calm@champion.

    Raises:
        CalmError: There is no such model, or it is none of ours.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        model = mlflow.pyfunc.load_model(model_uri)
        generator: TextGenerator = model.get_raw_model()
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CalmError(
            f"{model_uri}: cannot be loaded from {mlflow.get_tracking_uri()} ({reason}); `calm run` registers one"
        ) from None
    except NotImplementedError:
        raise CalmError(f"{model_uri}: is not a CALM model") from None
    return generator
