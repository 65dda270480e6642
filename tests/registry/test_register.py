"""Registration in a real MLflow store, and the registered model as a consumer finds it."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc  # loaded now: of a module that MLflow loads later, nothing can be replaced
import pandas as pd
import pytest

from calm_core.config import EvaluationConfig, RegistryConfig
from calm_core.errors import ArtifactError, CalmError
from calm_core.evaluation.stage import evaluate
from calm_core.generation.text import Sampling
from calm_core.registry import evidence, stage
from calm_core.registry.aliases import Decision
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DatasetFacts, EvaluationFacts, RegistrationFacts
from calm_core.telemetry.progress import parse
from calm_core.weights.registered import registered_evaluation
from tests.registry.made_up_scores import scored_otherwise

pytestmark = pytest.mark.usefixtures("in_a_folder_with_a_store")


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
    for output in ("again", "registration"):
        again = register_model(RegistryConfig(), model_uris[1], evaluation_uri, str(tmp_path / output))
        assert again.facts.version == registration.facts.version and again.facts.promoted
    with pytest.raises(ArtifactError, match="holds another registration, of other settings or inputs"):
        register_model(RegistryConfig(model_name="b"), model_uris[1], evaluation_uri, str(tmp_path / "again"))
    assert len(mlflow.MlflowClient().search_model_versions("name = 'calm'")) == 1


def test_a_worse_model_is_registered_and_the_champion_stays(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALM_PROGRESS_FILE", str(tmp_path / "progress.jsonl"))
    config, facts = RegistryConfig(model_name="judged"), []
    for name, score in ("good", 18.0), ("worse", 12.0), ("better", 21.0), ("equal", 21.0):
        scored = scored_otherwise(evaluation_uri, score, tmp_path / name, seed=len(facts))
        facts.append(register_model(config, model_uris[1], scored, str(tmp_path / f"{name} registered")).facts)
    assert [(each.version, each.promoted, each.champion) for each in facts] == [
        ("1", True, ""),
        ("2", False, "1"),
        ("3", True, "1"),
        ("4", False, "3"),
    ]
    notes = [parse(line).note for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    for note in (
        "judged version 1; champion, since there was none",
        r"judged version 2; champion stays with version 1, since this one is not better: BrierLM -6\.00 ",
        r"judged version 3; champion instead of version 1: BrierLM \+3\.00 \[.*\] on 40 documents, p = 0\.0001",
        r"judged version 4; champion stays with version 3, since this one is not .*better: BrierLM [+-]0\.00 ",
    ):
        assert any(re.match(note, each) for each in notes), note
    version = mlflow.MlflowClient().get_model_version("judged", "2")
    assert version.tags["calm.promotion"] == facts[1].reason
    assert json.loads(version.tags["calm.measured"])["brierlm"]["value"] == pytest.approx(12)
    aliases = mlflow.MlflowClient().get_registered_model("judged").aliases
    assert {name: str(number) for name, number in aliases.items()} == {"champion": "3", "challenger": "4"}


def test_an_experiment_that_the_caller_has_made_current_stays_so(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)  # as it is again after this test,
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # which MLflow sets too
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of ours")
    current = mlflow.set_experiment("of the caller")
    register_model(RegistryConfig(model_name="of others"), model_uris[1], evaluation_uri, str(tmp_path / "registered"))
    with mlflow.start_run() as run:
        assert run.info.experiment_id == current.experiment_id
    assert mlflow.search_logged_models([current.experiment_id], output_format="list") == []


def test_a_registration_whose_mlflow_goes_away_midway_makes_one_version(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once when the model has been logged, and the answer is lost; once when it is looked for, and is there."""
    monkeypatch.setattr("calm_core.telemetry.mlflow_store._PAUSES", (0.0, 0.0))
    for module, name in (mlflow.pyfunc, "log_model"), (stage, "registered_artifacts"):
        work, failures = getattr(module, name), iter([ConnectionResetError(104, "Connection reset by peer")])

        def fails_once(*arguments: Any, work: Any = work, failures: Any = failures, **named: Any) -> Any:
            done = work(*arguments, **named)
            for failure in failures:
                raise failure
            return done

        monkeypatch.setattr(module, name, fails_once)
    for output in ("once", "again"):
        made = register_model(RegistryConfig(model_name="cut"), model_uris[1], evaluation_uri, str(tmp_path / output))
        assert (made.facts.version, made.facts.promoted) == ("1", True)
    [version] = mlflow.MlflowClient().search_model_versions("name = 'cut'")
    assert mlflow.MlflowClient().get_run(version.run_id).info.status == "FINISHED"


def test_a_champion_whose_storage_is_away_for_a_moment_is_not_replaced(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RegistryConfig(model_name="away")
    good, worse = (scored_otherwise(evaluation_uri, score, tmp_path / str(score)) for score in (18.0, 12.0))
    register_model(config, model_uris[1], good, str(tmp_path / "registered"))

    def away(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def fails(uri: str) -> Any:
            if uri == "models:/away/1":
                raise CalmError(f"{uri}: the storage does not answer", can_pass=True)
            return read(uri)

        return fails

    for name in ("registered_artifacts", "registered_evaluation"):
        with monkeypatch.context() as patch:
            patch.setattr(evidence, name, away(getattr(evidence, name)))
            with pytest.raises(CalmError, match="does not answer"):
                register_model(config, model_uris[1], worse, str(tmp_path / "worse registered"))
        assert str(mlflow.MlflowClient().get_model_version_by_alias("away", "champion").version) == "1"
    assert not register_model(config, model_uris[1], worse, str(tmp_path / "worse registered")).facts.promoted
    assert numbers("away") == [1, 2]


@pytest.mark.parametrize("schema_version", [2, 3])
def test_a_registration_of_earlier_code_says_that_the_alias_moved(
    schema_version: int, registration: Artifact[RegistrationFacts], tmp_path: Path
) -> None:
    manifest = registration.manifest
    names = {2: ("model_name", "version", "alias", "model_uri"), 3: ("promoted", "reason")}
    known = [name for version, new in names.items() if version <= schema_version for name in new]
    earlier = {name: manifest.results[name] for name in known}
    manifest = manifest.model_copy(update={"schema_version": schema_version, "results": earlier})
    manifest = manifest.model_copy(update={"checksum": manifest.own_checksum})
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json(exclude_unset=True))
    facts = Artifact(str(tmp_path), RegistrationFacts).facts
    assert facts.promoted and facts.version == registration.facts.version and facts.comparison is None
    assert facts.reason == (registration.facts.reason if schema_version == 3 else "")


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
    assert list(model.input_example.columns) == ["prompt"]


def test_every_address_of_a_model_is_understood(registration: Artifact[RegistrationFacts]) -> None:
    version = mlflow.MlflowClient().get_model_version("calm", registration.facts.version)
    addresses = ["models:/calm@champion", registration.facts.model_uri, version.source, f"runs:/{version.run_id}/model"]
    texts = [load_generator(address).generate(["the"], max_new_tokens=4, seed=1) for address in addresses]
    assert len(addresses) == 4 and all(text == texts[0] for text in texts)


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
    with pytest.raises(CalmError, match=r"models:/nobody@champion: there is no registered model nobody; registered: "):
        load_generator("models:/nobody@champion")


def test_without_a_registry_it_says_what_to_set(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(CalmError, match="set MLFLOW_TRACKING_URI"):
        register_model(RegistryConfig(), model_uris[1], evaluation_uri, str(tmp_path / "out"))


def numbers(model_name: str) -> list[int]:
    return sorted(int(v.version) for v in mlflow.MlflowClient().search_model_versions(f"name = '{model_name}'"))


def test_registering_the_same_model_three_times_at_once_gives_one_version(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have looked for a version before the first one makes one."""
    new_version, all_have_looked = stage._new_version, threading.Barrier(3)

    def wait_then_make(*arguments: Any) -> str:
        all_have_looked.wait(timeout=100)
        return new_version(*arguments)

    monkeypatch.setattr(stage, "_new_version", wait_then_make)
    config = RegistryConfig(model_name="at once")
    with ThreadPoolExecutor(3) as pool:
        outputs = [str(tmp_path / str(i)) for i in range(3)]
        registered = list(pool.map(lambda out: register_model(config, model_uris[1], evaluation_uri, out), outputs))
    [only] = numbers("at once")
    assert {each.facts.version for each in registered} == {str(only)}
    assert mlflow.MlflowClient().get_model_version_by_alias("at once", "champion").version == only
    assert load_generator("models:/at once@champion").generate(["the"], max_new_tokens=1)


def files_of(version: str, model_name: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"models:/{model_name}/{version}"))


def flip_a_byte(folder: Path) -> None:
    weights = folder / "data" / "calm" / "weights.safetensors"
    if not weights.exists():
        [weights] = folder.rglob("calm/weights.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)


@pytest.mark.parametrize("damage", [shutil.rmtree, flip_a_byte])
def test_a_version_that_cannot_be_loaded_is_not_answered(
    damage: Callable[[Path], None], model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path
) -> None:
    config = RegistryConfig(model_name=damage.__name__)
    first = register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "first")).facts
    damage(files_of(first.version, config.model_name))
    with pytest.raises(CalmError, match=f"^{first.model_uri}: "):
        load_generator(first.model_uri)
    again = register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "again")).facts
    assert numbers(config.model_name) == [1, 2] and again.version == "2"
    assert load_generator(f"models:/{config.model_name}@champion").generate(["the"], max_new_tokens=1)


@pytest.mark.parametrize("alias", ["", "shadow"])
def test_a_second_version_of_the_same_is_withdrawn_unless_somebody_has_named_it(
    alias: str, model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path
) -> None:
    config = RegistryConfig(model_name=f"twice {alias}")
    register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "first"))
    client = mlflow.MlflowClient()
    first = client.get_model_version(config.model_name, "1")
    client.create_model_version(config.model_name, first.source, tags=first.tags | Decision.begun(config).tags)
    if alias:
        client.set_registered_model_alias(config.model_name, alias, "2")
    assert register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "again")).facts.version == "1"
    assert numbers(config.model_name) == ([1, 2] if alias else [1])


def test_a_version_whose_files_cannot_be_reached_now_is_not_registered_twice(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RegistryConfig(model_name="once")
    register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "first"))

    def away(uri: str) -> Any:
        raise CalmError(f"{uri}: the storage does not answer", can_pass=True)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "registered_artifacts", away)
        with pytest.raises(CalmError, match=r"^models:/once/1: the storage does not answer"):
            register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "again"))
    assert numbers("once") == [1]
    assert register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "again")).facts.version == "1"


def test_a_dataset_that_the_scores_are_not_of_is_refused(
    dataset_uri: str, model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path
) -> None:
    dataset = Artifact(dataset_uri, DatasetFacts)
    with ArtifactWriter(str(tmp_path / "dataset"), DatasetFacts, {"another": 1}, {}) as writer:
        writer.copy(dataset, {entry.path: entry.path for entry in dataset.manifest.files})
        writer.facts = dataset.facts
    with pytest.raises(ArtifactError, match=rf"was not measured on {tmp_path}/dataset; name the dataset that it was"):
        register_model(
            RegistryConfig(),
            model_uris[1],
            evaluation_uri,
            str(tmp_path / "out"),
            dataset_uri=str(tmp_path / "dataset"),
        )


def test_the_description_is_the_model_card_and_the_report_is_found(
    dataset_uri: str, model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path
) -> None:
    config = RegistryConfig(model_name="described")
    register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "out"), dataset_uri=dataset_uri)
    version = mlflow.MlflowClient().get_model_version("described", "1")
    assert version.description.startswith("# `described`: ") and "texts.jsonl`" in version.description
    report = version.tags["calm.report"]
    assert report in version.description
    page = Path(mlflow.artifacts.download_artifacts(report))
    assert page.read_bytes() == Artifact(evaluation_uri, EvaluationFacts).read("report.html")


def test_what_cannot_be_loaded_once_it_is_registered_is_withdrawn(
    model_uris: tuple[str, str], evaluation_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = mlflow.MlflowClient.create_model_version

    def create_and_lose(*arguments: Any, **options: Any) -> Any:
        made = create(*arguments, **options)
        shutil.rmtree(files_of(made.version, made.name))
        return made

    monkeypatch.setattr(mlflow.MlflowClient, "create_model_version", create_and_lose)
    with pytest.raises(CalmError, match=r"^models:/lost/1: its files are gone"):
        register_model(RegistryConfig(model_name="lost"), model_uris[1], evaluation_uri, str(tmp_path / "out"))
    assert numbers("lost") == []


def test_a_baseline_and_its_evaluation_are_refused_in_one_line(
    dataset_uri: str, model_uris: tuple[str, str], transformer_uri: str, tmp_path: Path
) -> None:
    config = EvaluationConfig(samples=2, max_sequences=2, prompts=(), prompt_tokens=4)
    baseline = evaluate(config, dataset_uri, transformer_uri, str(tmp_path / "baseline"), seed=0).uri
    with pytest.raises(CalmError, match=f"^{baseline}: is no evaluation of a CALM model .Transformer over tokens"):
        register_model(RegistryConfig(), model_uris[1], baseline, str(tmp_path / "out"))
    with pytest.raises(CalmError, match=f"^{transformer_uri}: is a transformer artifact, a calm artifact was expected"):
        register_model(RegistryConfig(), transformer_uri, baseline, str(tmp_path / "out"))


def test_a_model_that_was_asked_to_write_nothing_is_registered(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    config = EvaluationConfig(samples=2, max_sequences=2, prompts=())
    silent = evaluate(config, dataset_uri, model_uris[1], str(tmp_path / "evaluation"), seed=0)
    assert silent.facts.samples == [] and silent.facts.generation_tokens_per_second == 0
    register_model(RegistryConfig(model_name="silent"), model_uris[1], silent.uri, str(tmp_path / "registration"))
    assert len(mlflow.pyfunc.load_model("models:/silent@champion").input_example) == 1


def test_a_version_carries_its_evaluation(registration: Artifact[RegistrationFacts], evaluation_uri: str) -> None:
    original = Artifact(evaluation_uri, EvaluationFacts)
    with registered_evaluation("models:/calm@champion") as evaluation:
        assert evaluation is not None
        assert (evaluation.digest, evaluation.facts) == (original.digest, original.facts)
        evaluation.check_files()


def test_a_version_of_earlier_code_carries_no_evaluation(
    registration: Artifact[RegistrationFacts], tmp_path: Path
) -> None:
    uri = copied(tmp_path)
    shutil.rmtree(tmp_path / "model/data/model/evaluation")
    with registered_evaluation(uri) as evaluation:
        assert evaluation is None


def test_an_evaluation_of_another_model_or_with_damaged_files_is_refused(
    registration: Artifact[RegistrationFacts], evaluation_uri: str, tmp_path: Path
) -> None:
    uri, folder = copied(tmp_path), tmp_path / "model/data/model/evaluation"
    (folder / "evaluation.json").write_bytes(b"{}")
    with (
        pytest.raises(CalmError, match=rf"^{uri}: its files are missing or damaged \(.*evaluation.json"),
        registered_evaluation(uri) as evaluation,
    ):
        assert evaluation is not None
        evaluation.read("evaluation.json")
    other = ArtifactWriter(
        str(tmp_path / "other"),
        EvaluationFacts,
        {},
        Artifact(evaluation_uri, EvaluationFacts).manifest.parents | {"calm": "0" * 64},
    )
    with other:
        other.facts = Artifact(evaluation_uri, EvaluationFacts).facts
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "other", folder)
    with (
        pytest.raises(CalmError, match=f"^{uri}: carries the evaluation of another calm"),
        registered_evaluation(uri),
    ):
        pass


def copied(folder: Path) -> str:
    """A version whose files are a copy of the champion's, in a folder `model`."""
    champion = mlflow.artifacts.download_artifacts("models:/calm@champion")
    files = shutil.copytree(champion, folder / "model")
    client = mlflow.MlflowClient()
    client.create_registered_model(folder.name)
    return f"models:/{folder.name}/{client.create_model_version(folder.name, files.as_uri()).version}"
