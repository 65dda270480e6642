"""Whether there is text that no registered version has been trained on."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from calm_core.config import DataConfig, RegistryConfig, RetrainingConfig
from calm_core.data.mixture import mix_datasets
from calm_core.errors import ConfigError, SourceError
from calm_core.registry import retraining
from calm_core.registry.retraining import DATASET_URI_TAG, Look
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DatasetFacts, EvaluationFacts
from tests.conftest import sentences
from tests.registry.made_up_scores import scored_otherwise

pytestmark = pytest.mark.usefixtures("in_a_folder_with_a_store")
SHAPE = {"sequence_length": 32, "rows_per_group": 16, "rows_per_shard": 64, "validation_fraction": 0.2}


@pytest.fixture
def dataset(dataset_uri: str, tmp_path: Path) -> str:
    """A copy of the dataset that the models were trained on."""
    return str(shutil.copytree(dataset_uri, tmp_path / "dataset"))


@pytest.fixture
def registry(request: pytest.FixtureRequest) -> RegistryConfig:
    """A registered model of the test's own."""
    return RegistryConfig(model_name=request.node.name[-60:].replace("[", "-").replace("]", ""))


@pytest.fixture
def data(dataset: str) -> DataConfig:
    """The sources of the dataset."""
    sources = tuple(file.uri for file in Artifact(dataset, DatasetFacts).facts.sources)
    return DataConfig.model_validate({"sources": sources, **SHAPE})


def look_for_new_data(data: DataConfig, registry: RegistryConfig, start: str = "scratch") -> Look:
    return retraining.look_for_new_data(data, registry, RetrainingConfig.model_validate({"start": start}))


def registered(registry: RegistryConfig, model_uris: tuple[str, str], evaluation: str, dataset: str = "") -> None:
    output = f"{registry.model_name} {Path(evaluation).name}"
    register_model(registry, model_uris[1], evaluation, output, dataset_uri=dataset, overwrite=True)


def more(folder: Path, data: DataConfig, name: str = "new.jsonl") -> DataConfig:
    (folder / name).write_text(json.dumps({"text": sentences(1000, 12)}))
    return data.model_copy(update={"sources": (*data.sources, str(folder / name))})


def test_without_a_version_all_text_is_new(data: DataConfig, registry: RegistryConfig) -> None:
    look = look_for_new_data(data, registry)
    told = f"no version of {registry.model_name} tells its dataset: all text is new"
    assert look == Look(True, told)
    assert look_for_new_data(data, registry, "champion").told == f"{told}; from scratch, since there is no champion"


def test_what_the_newest_version_was_trained_on_is_not_new(
    data: DataConfig,
    dataset: str,
    registry: RegistryConfig,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
) -> None:
    registered(registry, model_uris, evaluation_uri, dataset)
    look = look_for_new_data(data, registry)
    assert (look.is_new, look.told) == (False, f"no new data since {registry.model_name} version 1")
    look = look_for_new_data(more(tmp_path, data), registry)
    told = f"new since {registry.model_name} version 1: file://{tmp_path}/new.jsonl"
    champion = f"models:/{registry.model_name}/1"
    assert look == Look(True, told, extends=dataset)
    look = look_for_new_data(more(tmp_path, data), registry, "champion")
    assert look == Look(True, f"{told}; from the weights of {champion}", dataset, champion)


def test_a_challenger_that_has_lost_counts_and_one_without_a_dataset_does_not(
    data: DataConfig,
    dataset: str,
    registry: RegistryConfig,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
) -> None:
    registered(registry, model_uris, scored_otherwise(evaluation_uri, 20, tmp_path / "champion"))
    registered(registry, model_uris, scored_otherwise(evaluation_uri, 10, tmp_path / "lost", seed=1), dataset)
    registered(registry, model_uris, scored_otherwise(evaluation_uri, 9, tmp_path / "elsewhere", seed=2))
    look = look_for_new_data(data, registry)
    assert (look.is_new, look.told) == (False, f"no new data since {registry.model_name} version 2")


def test_a_registration_that_is_interrupted_leaves_the_text_new_and_one_again_does_not(
    data: DataConfig,
    dataset: str,
    registry: RegistryConfig,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the version is decided about; its next try decides, and only then says what it was trained on."""

    def ended(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("calm_core.registry.aliases.Aliases.decide", ended)
        with pytest.raises(KeyboardInterrupt):
            registered(registry, model_uris, evaluation_uri, dataset)
    assert look_for_new_data(data, registry).is_new
    registered(registry, model_uris, evaluation_uri, dataset)
    assert not look_for_new_data(data, registry).is_new


@pytest.mark.parametrize("how", ["removed", "another"])
def test_a_dataset_that_is_gone_means_all_text_and_is_told(
    how: str,
    data: DataConfig,
    dataset: str,
    registry: RegistryConfig,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
) -> None:
    registered(registry, model_uris, evaluation_uri, dataset)
    old = Artifact(dataset, DatasetFacts)
    shutil.move(dataset, tmp_path / "moved")
    if how == "another":
        with ArtifactWriter(dataset, DatasetFacts, {"another": 1}, {}) as writer:
            writer.copy(Artifact(str(tmp_path / "moved"), DatasetFacts), {e.path: e.path for e in old.manifest.files})
            writer.facts = old.facts
    look = look_for_new_data(data, registry)
    assert (look.is_new, look.extends) == (True, "")
    assert look.told.startswith(f"the dataset of {registry.model_name} version 1 is gone, so all text is new (")
    assert "\n" not in look.told
    look = look_for_new_data(data, registry, "champion")  # a tokenizer is trained anew
    assert look.initial_weights == "" and look.told.endswith("/1 has another tokenizer")
    registered(registry, model_uris, evaluation_uri, str(tmp_path / "moved"))  # made again, elsewhere
    assert not look_for_new_data(data, registry).is_new


def test_text_that_changed_under_its_name_follows_the_settings(
    data: DataConfig,
    dataset: str,
    registry: RegistryConfig,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
) -> None:
    registered(registry, model_uris, evaluation_uri, dataset)
    source = Path(data.sources[0].removeprefix("file://"))
    before = source.read_bytes()
    try:
        source.write_text(json.dumps({"text": sentences(7, 12)}))
        with pytest.raises(SourceError, match="changed since it was added to"):
            look_for_new_data(data, registry)
        look = look_for_new_data(data.model_copy(update={"replace_changed": True}), registry)
    finally:
        source.write_bytes(before)
    assert (look.is_new, look.extends) == (True, dataset)
    assert look.told.startswith(f"changed since {registry.model_name} version 1, so all text is prepared anew: ")


def test_settings_of_another_shape_are_refused(
    data: DataConfig, dataset: str, registry: RegistryConfig, model_uris: tuple[str, str], evaluation_uri: str
) -> None:
    registered(registry, model_uris, evaluation_uri, dataset)
    with pytest.raises(ConfigError, match=r"^data.sequence_length: the dataset .* has 32, not 64; set it so, or"):
        look_for_new_data(data.model_copy(update={"sequence_length": 64}), registry)


def test_a_mixture_is_nothing_to_add_to(
    dataset: str, registry: RegistryConfig, model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path
) -> None:
    """Nor is a dataset that the model was scored on, but not trained."""
    mixture = mix_datasets({dataset: 1.0}, str(tmp_path / "mixture")).uri
    evaluation = Artifact(evaluation_uri, EvaluationFacts)
    parents = evaluation.manifest.parents | {"dataset": Artifact.of_any_kind(mixture).digest}
    with ArtifactWriter(str(tmp_path / "scores"), EvaluationFacts, evaluation.manifest.config, parents) as writer:
        writer.copy(evaluation, {entry.path: entry.path for entry in evaluation.manifest.files})
        writer.facts = evaluation.facts
    registered(registry, model_uris, str(tmp_path / "scores"), mixture)
    version = mlflow.MlflowClient().get_model_version(registry.model_name, "1")
    assert DATASET_URI_TAG not in version.tags
