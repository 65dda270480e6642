"""Whether there is text that no registered version has been trained on.

What is new is judged against the newest version that says where its dataset lies, champion or not: a challenger that
lost on the same text must not be trained again by each look.
"""

from dataclasses import dataclass

from calm_core.config import DataConfig, RegistryConfig
from calm_core.data.preparing.extension import Extension
from calm_core.data.sources.files import find_files
from calm_core.errors import ArtifactError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts
from calm_core.telemetry.mlflow_store import mlflow_answers, reach_mlflow
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
        extends: URI of the dataset that it is added to; empty where a training takes all text.
        champion: URI of the version that is champion, by its number; empty without one.
        told: All of that on one line.
    """

    is_new: bool
    extends: str
    champion: str
    told: str


def look_for_new_data(data: DataConfig, registry: RegistryConfig) -> Look:
    """Compare the sources as they are now with what the newest registered version has been trained on.

    No text is read but that of local files, for their digests.

    Args:
        data: Settings of the sources; what changed under its name is new with `replace_changed`, else refused.
        registry: Names of the model and its champion.

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
    champion = f"models:/{registry.model_name}/{aliases[registry.alias]}" if registry.alias in aliases else ""
    trained = [number for number, version in versions.items() if DATASET_URI_TAG in version.tags]
    if not trained:
        return Look(True, "", champion, f"no version of {registry.model_name} tells its dataset: trained on all text")
    name, tags = f"{registry.model_name} version {trained[-1]}", versions[trained[-1]].tags
    try:
        dataset = Artifact(tags[DATASET_URI_TAG], DatasetFacts)
    except ArtifactError as error:
        return Look(True, "", champion, f"the dataset of {name} is gone: trained on all text ({error})")
    if dataset.digest != tags.get(DATASET_TAG):
        told = f"the dataset of {name} is gone, another one lies at {dataset.uri}: trained on all text"
        return Look(True, "", champion, told)
    extension = Extension(data.model_copy(update={"extends": tags[DATASET_URI_TAG]}))
    files, first = extension.files_to_read(find_files(data))
    if not files:
        return Look(False, tags[DATASET_URI_TAG], champion, f"no new data since {name}")
    names = ", ".join(file.uri for file in files[:_NAMED])
    more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    what = f"new since {name}" if first else f"changed since {name}, all text is prepared anew"
    return Look(True, tags[DATASET_URI_TAG], champion, f"{what}: {names}{more}")
