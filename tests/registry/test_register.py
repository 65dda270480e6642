"""Registration in a real MLflow store, and the registered model as a consumer finds it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from calm_core.config import EvaluationConfig, RegistryConfig
from calm_core.errors import CalmError
from calm_core.evaluation.stage import evaluate
from calm_core.generation.text import Sampling
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts, RegistrationFacts


@pytest.fixture(scope="module")
def evaluation_uri(dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    config = EvaluationConfig(samples=2, max_sequences=2, prompts=("the river",), prompt_tokens=4)
    autoencoder, calm = model_uris
    output = str(tmp_path_factory.mktemp("evaluation"))
    return evaluate(config, dataset_uri, calm, output, seed=0, autoencoder_uri=autoencoder).uri


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def in_a_folder_with_a_store(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # unset, or it would count for all tests after these


@pytest.fixture
def registration(model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path) -> Artifact[RegistrationFacts]:
    return register_model(RegistryConfig(), model_uris[1], evaluation_uri, str(tmp_path / "registration"))


def test_the_champion_has_its_lineage(registration: Artifact[RegistrationFacts], evaluation_uri: str) -> None:
    version = mlflow.MlflowClient().get_model_version_by_alias("calm", "champion")
    assert str(version.version) == registration.facts.version
    evaluation = Artifact(evaluation_uri, EvaluationFacts)
    assert version.tags["calm.evaluation_digest"] == evaluation.digest
    assert version.tags["calm.dataset_digest"] == evaluation.manifest.parents["dataset"]
    assert {"calm.autoencoder_digest", "calm.calm_digest", "calm.code_version", "calm.brierlm"} <= set(version.tags)


def test_registering_the_same_model_again_keeps_its_version(
    registration: Artifact[RegistrationFacts], model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path
) -> None:
    again = register_model(RegistryConfig(), model_uris[1], evaluation_uri, str(tmp_path / "again"))
    assert again.facts == registration.facts
    assert len(mlflow.MlflowClient().search_model_versions("name = 'calm'")) == 1


def test_a_consumer_predicts_with_a_data_frame(registration: Artifact[RegistrationFacts]) -> None:
    model = mlflow.pyfunc.load_model("models:/calm@champion")
    prompts = pd.DataFrame({"prompt": ["the river", "the old port"]})
    parameters = {"max_new_tokens": 6, "temperature": 0.5, "seed": 1}
    first = model.predict(prompts, params=parameters)
    assert list(first) == list(model.predict(prompts, params=parameters))
    generator = load_generator("models:/calm@champion")
    assert list(first) == generator.generate(
        list(prompts["prompt"]), max_new_tokens=6, sampling=Sampling(temperature=0.5), seed=1
    )
    assert model.metadata.get_input_schema().input_names() == ["prompt"]
    assert model.input_example is not None


def test_the_model_holds_no_pickle_and_needs_the_library_alone(registration: Artifact[RegistrationFacts]) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/calm@champion"))
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pt", ".bin", ".pickle"}]
    script = (
        "import sys; from calm_core.registry.load import load_generator; "
        "print(load_generator('models:/calm@champion').generate(['the'], max_new_tokens=4)); "
        "bad = {'kfp', 'deepspeed', 'components', 'pipelines'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_an_unknown_model_is_one_clear_line() -> None:
    with pytest.raises(CalmError, match=r"models:/nobody@champion: cannot be loaded"):
        load_generator("models:/nobody@champion")


def test_without_a_registry_it_says_what_to_set(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(CalmError, match="set MLFLOW_TRACKING_URI"):
        register_model(RegistryConfig(), model_uris[1], evaluation_uri, str(tmp_path / "out"))
