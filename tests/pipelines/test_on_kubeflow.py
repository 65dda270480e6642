"""The compiled pipeline as Kubeflow's backend runs it: on object storage, each task from its executor input alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from calm_core.config import resolve_config
from calm_core.data.sources.partitions import Partition
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact
from calm_core.store.facts import DatasetFacts, EvaluationFacts, RegistrationFacts
from components.image import IMAGE
from pipelines.arguments import MAX_DATA_BYTES, MAX_PARTITIONS, arguments_of, pods_of, retraining_of
from pipelines.compile import RETRAIN_PIPELINE, TRAIN_PIPELINE
from pipelines.local.object_store import ACCESS_KEY, BUCKET, SECRET_KEY
from tests.conftest import sentences
from tests.object_store import environment
from tests.pipelines.kubeflow_backend import LARGEST_ARGUMENT, SESSION, Backend, environment_of

PROFILE = Path(__file__).with_name("mini.yaml")
ROOT = f"minio://{BUCKET}/private-artifacts/team-of-language-models/v2/artifacts"
TEXTS = f"s3://{BUCKET}/texts-on-kubeflow"
SHOWN = ("found", "metrics", "page", "card", "decision")


@pytest.fixture(scope="module")
def place(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kubeflow")
    with pytest.MonkeyPatch.context() as patch, environment(patch, s3_endpoint, folder / "cache"):
        yield folder


@pytest.fixture(scope="module")
def backend(place: Path, s3_endpoint: str) -> Backend:
    for number in range(MAX_PARTITIONS):
        lines = "".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in (number, number + 1))
        storage.write(f"{TEXTS}/{number}.jsonl", lines.encode())
    variables = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
    }
    return Backend(TRAIN_PIPELINE, ROOT, place / "mount", environment_of(variables, place))


@pytest.fixture(scope="module")
def outputs(backend: Backend, place: Path) -> dict[str, list[dict[str, Any]]]:
    """Of a run of as many partitions as there can be, whose roots are left to the tasks."""
    settings = yaml.safe_load(PROFILE.read_text())
    chosen = [f"data.sources=[{TEXTS}/*.jsonl]", f"data.partitions={MAX_PARTITIONS}", "train_baseline=true"]
    config = resolve_config(settings, chosen)
    arguments = arguments_of(config, "", "") | pods_of(config) | {"code_version": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return backend.run(arguments)


@pytest.mark.timeout(900)
def test_all_of_it_runs_on_object_storage(backend: Backend, outputs: dict[str, list[dict[str, Any]]]) -> None:
    uris = {name: artifacts[0]["uri"] for name, artifacts in outputs.items()}
    assert all(uri.startswith(f"{ROOT}/calm-train/") for uri in uris.values())
    dataset = Artifact(uris["dataset"], DatasetFacts)
    assert (dataset.facts.documents_out, dataset.facts.duplicates) == (65, 63)
    dataset.check_files()
    evaluation = Artifact(uris["evaluation_report"], EvaluationFacts)
    evaluation.check_files()
    registration = Artifact(uris["registration"], RegistrationFacts)
    assert (registration.facts.version, registration.facts.promoted) == ("1", True)
    client = MlflowClient(backend.environment["MLFLOW_TRACKING_URI"])
    assert client.get_model_version("calm", "1").tags["calm.kubeflow_run"] == backend.run_id
    [experiment] = client.search_experiments(filter_string="name = 'calm'")
    runs = client.search_runs([experiment.experiment_id], f"tags.`calm.kubeflow_run` = '{backend.run_id}'")
    assert {"train-autoencoder", "train-calm", "evaluate", "register"} <= {run.info.run_name for run in runs}
    for name, artifacts in outputs.items():
        assert artifacts[0]["metadata"]["digest"] == Artifact.of_any_kind(uris[name]).digest


def test_the_launcher_downloads_manifests_and_no_data(
    backend: Backend, outputs: dict[str, list[dict[str, Any]]]
) -> None:
    fetched = [key for keys in backend.downloaded.values() for key in keys]
    assert {key.rpartition("/")[2] for key in fetched} == {MANIFEST_NAME}
    assert max(storage.size(key) for key in fetched) < 100_000
    data = storage.files_below(f"{ROOT}/calm-train/{backend.run_id}")
    assert any(key.endswith(".parquet") for key in data) and any(key.endswith(".safetensors") for key in data)


def test_what_a_task_is_given_is_one_argument(backend: Backend, outputs: dict[str, list[dict[str, Any]]]) -> None:
    assert backend.ran["scan-partition"] == backend.ran["tokenize-partition"] == MAX_PARTITIONS
    assert {name: size for name, size in backend.sizes.items() if size > LARGEST_ARGUMENT} == {}
    assert backend.sizes["merge-partitions"] > LARGEST_ARGUMENT // 2  # it is what the limit is for


def test_what_runs_share_lies_where_kubeflow_keeps_what_they_make(
    backend: Backend, outputs: dict[str, list[dict[str, Any]]]
) -> None:
    found = {key.removeprefix(ROOT.replace("minio", "s3")).split("/")[1] for key in storage.files_below(ROOT)}
    assert found == {"calm-train", "calm"}
    assert storage.files_below(f"{ROOT}/calm/plans")


@pytest.mark.timeout(900)
def test_a_retraining_ends_at_once_without_new_text_and_trains_on_what_is_new(
    backend: Backend, outputs: dict[str, list[dict[str, Any]]], place: Path
) -> None:
    """After the run before, whose version notes its dataset."""
    settings = yaml.safe_load(PROFILE.read_text())
    config = resolve_config(settings, [f"data.sources=[{TEXTS}/*.jsonl]", "retraining.start=champion"])
    arguments = arguments_of(config, "", "") | pods_of(config) | {"code_version": ""}
    arguments["retraining"] = retraining_of(config)

    def ran() -> set[str]:
        there = Backend(RETRAIN_PIPELINE, ROOT, place / "mount", backend.environment)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            there.run(arguments)
        return set(there.downloaded)

    assert ran() == {"find-new-data"}
    lines = "".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(100, 120))
    storage.write(f"{TEXTS}/new.jsonl", lines.encode())
    tasks = ran()
    assert {"find-new-data", "merge-partitions", "train-calm", "register-model", "report-2"} <= tasks
    assert not {"train-transformer", "report"} & tasks
    version = mlflow.MlflowClient(backend.environment["MLFLOW_TRACKING_URI"]).get_model_version("calm", "2")
    dataset = Artifact(version.tags["calm.dataset_uri"], DatasetFacts)
    assert dataset.digest == version.tags["calm.dataset_digest"]
    assert dataset.manifest.parents["extends"] == Artifact(outputs["dataset"][0]["uri"], DatasetFacts).digest
    assert (dataset.facts.documents_out, dataset.facts.duplicates) == (85, 63)
    assert "champion" in version.tags["calm.promotion"]
    assert ran() == {"find-new-data"}


def test_the_most_partitions_fit_into_one_argument(backend: Backend, tmp_path: Path) -> None:
    """Linux takes 128 KiB; names and places are as long as Kubeflow's are."""
    config = resolve_config({}, [f"data.partitions={MAX_PARTITIONS}"])
    arguments = arguments_of(config, "", "") | pods_of(config)
    arguments["image"] = f"{IMAGE}@sha256:{'0' * 64}"
    arguments["data"]["sources"] = ["x" * (MAX_DATA_BYTES - len(json.dumps(arguments["data"])))]
    run = "12345678-1234-1234-1234-123456789abc"
    pieces = f"{ROOT}/calm/plans/{'0' * 64}.json"
    partition = Partition(index=63, pieces_uri=pieces, num_bytes=10**12, extends="0" * 64).model_dump()

    def made(task: str, output: str) -> dict[str, Any]:
        uri = f"{ROOT}/calm-train/{run}/{task}/{run}/{output}"
        name = f"projects/1/locations/default/metadataStores/default/artifacts/{10**9}"
        type_ = {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}
        metadata = {"digest": "0" * 64, "display_name": output, "store_session_info": SESSION}
        return {"name": name, "type": type_, "uri": uri, "metadata": metadata}

    spec = backend.spec["components"]
    largest = {}
    for component in spec.values():
        if "executorLabel" not in component:
            continue
        name = component["executorLabel"].removeprefix("exec-")
        inputs = component.get("inputDefinitions", {})
        given = {key: arguments.get(key, "") for key in inputs.get("parameters", {})} | POD_PARAMETERS
        given |= {key: value for key, value in {"plan": pieces, "partition": partition}.items() if key in given}
        taken = {
            key: [made(name, key)] * (MAX_PARTITIONS if definition.get("isArtifactList") else 1)
            for key, definition in inputs.get("artifacts", {}).items()
        }
        executor_input = backend.executor_input(name, component, given, taken, tmp_path)
        largest[name] = len(json.dumps(executor_input, indent=None).encode())
    assert largest["merge-partitions"] > LARGEST_ARGUMENT // 2  # it is what the limit is for
    assert {name: size for name, size in largest.items() if size >= LARGEST_ARGUMENT} == {}


POD_PARAMETERS = {
    name: f"{{{{$.inputs.parameters['pipelinechannel--{name}']}}}}"
    for name in ("base_image", "cpu_request", "memory_request", "memory_limit", "accelerator_type", "accelerator_count")
} | {f"pipelinechannel--{name}": "x" * 100 for name in ("image", "cpu", "memory", "accelerator", "accelerators")}
