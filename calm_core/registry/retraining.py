"""Whether there is text that no registered version has been trained on.

What is new is judged against the newest version that says where its dataset lies, champion or not: a challenger that
lost on the same text must not be trained again by each look.
"""

from dataclasses import dataclass, replace

from calm_core.config import DataConfig, RegistryConfig, RetrainingConfig
from calm_core.data.preparing.extension import Extension
from calm_core.data.sources.files import find_files
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import ArtifactError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts
from calm_core.telemetry.mlflow_store import mlflow_answers, reach_mlflow
from calm_core.weights.registered import registered_artifacts
from calm_core.weights.versions import versions_of

DATASET_TAG, DATASET_URI_TAG = "calm.dataset_digest", "calm.dataset_uri"
"""Tags of a version with what its dataset is, and where it lies; the latter is written last of all, so a registration
that was interrupted is one that has not been."""
_NAMED = 3


@dataclass(frozen=True)
class Look:
    """What a look at the sources has found.

    Attributes:
        is_new: Whether there is text to train on.
        told: What it is, and what is to be done, on one line.
        extends: URI of the dataset that it is added to; empty where a training takes all text.
        initial_weights: URI of the version, by its number, that autoencoder and language model go on from; empty for
            random weights.
    """

    is_new: bool
    told: str
    extends: str = ""
    initial_weights: str = ""


def look_for_new_data(data: DataConfig, registry: RegistryConfig, retraining: RetrainingConfig) -> Look:
    """Compare the sources as they are now with what the newest registered version has been trained on.

    No text is read but that of local files, for their digests.

    Args:
        data: Settings of the sources; what changed under its name is new with `replace_changed`, else refused.
        registry: Names of the model and its champion.
        retraining: Whose weights a training goes on from.

    Raises:
        SourceError: A source is missing, or has changed under its name.
        ConfigError: The settings ask for sequences or splits of another shape than the dataset has.
        CalmError: MLflow or a storage does not answer.
    """
    from mlflow import MlflowClient  # import costs seconds: only where it is used

    reach_mlflow(to_read=True)
    with mlflow_answers():
        client = MlflowClient()
        versions = versions_of(client, registry.model_name)
        aliases = client.get_registered_model(registry.model_name).aliases if versions else {}
    trained = [number for number, version in versions.items() if DATASET_URI_TAG in version.tags]
    if not trained:
        look = Look(True, f"no version of {registry.model_name} tells its dataset: all text is new")
    else:
        tags = versions[trained[-1]].tags
        look = _compared(data, f"{registry.model_name} version {trained[-1]}", tags[DATASET_URI_TAG], tags[DATASET_TAG])
    if not look.is_new or retraining.start != "champion":
        return look
    number = aliases.get(registry.alias)
    return _from_champion(look, f"models:/{registry.model_name}/{number}" if number else "")


def _compared(data: DataConfig, name: str, dataset_uri: str, digest: str) -> Look:
    """Compare the sources with the dataset of a version.

    Args:
        data: Settings of the sources.
        name: Of the version, for people.
        dataset_uri: Where its dataset lay.
        digest: Of that.
    """
    try:
        dataset = Artifact(dataset_uri, DatasetFacts)
    except ArtifactError as error:
        return Look(True, f"the dataset of {name} is gone, so all text is new ({error})")
    if dataset.digest != digest:
        return Look(True, f"the dataset of {name} is gone, so all text is new (another one lies at {dataset_uri})")
    files, first = Extension(data.model_copy(update={"extends": dataset_uri})).files_to_read(find_files(data))
    if not files:
        return Look(False, f"no new data since {name}")
    names = ", ".join(file.uri for file in files[:_NAMED])
    more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    what = f"new since {name}" if first else f"changed since {name}, so all text is prepared anew"
    return Look(True, f"{what}: {names}{more}", extends=dataset_uri)


def _from_champion(look: Look, champion: str) -> Look:
    """The same look, from the champion's weights where they fit the text's tokens."""
    if not champion:
        return replace(look, told=f"{look.told}; from scratch, since there is no champion")
    tokenizer = Artifact(look.extends, DatasetFacts).entry(TOKENIZER_NAME).sha256 if look.extends else ""
    with registered_artifacts(champion, files=False) as (_, calm):
        if calm.entry(TOKENIZER_NAME).sha256 != tokenizer:
            return replace(look, told=f"{look.told}; from scratch, since {champion} has another tokenizer")
    return replace(look, told=f"{look.told}; from the weights of {champion}", initial_weights=champion)
