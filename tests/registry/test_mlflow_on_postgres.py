"""The registry on MLflow's server as clusters have it: runs and versions in PostgreSQL, files on S3."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import mlflow
import pandas as pd
import pytest

from calm_cli.main import main
from calm_core.config import EvaluationConfig, RegistryConfig
from calm_core.errors import CalmError
from calm_core.evaluation.stage import evaluate
from calm_core.registry import stage
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model
from calm_core.telemetry.mlflow_run import DIGEST_TAG, PARENT_RUN_VARIABLE
from calm_core.telemetry.outbox import OUTBOX_VARIABLE
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE
from pipelines.local.object_store import BUCKET
from tests import object_store
from tests.postgres import Postgres
from tests.telemetry.kubeflow_plugin import task_environment
from tests.telemetry.tracking_server import TrackingServer, wait_until

PROXIED = ("--artifacts-destination", f"s3://{BUCKET}/mlflow/proxied")
"""The server reads and writes the files for its clients, which need neither a key of S3 nor a client of it."""
DIRECT = ("--default-artifact-root", f"s3://{BUCKET}/mlflow/direct", "--no-serve-artifacts")
"""Clients read and write the files themselves."""


@pytest.fixture(scope="module", params=[PROXIED, DIRECT], ids=["proxied", "direct"])
def server(
    request: pytest.FixtureRequest, postgres: Postgres, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingServer]:
    folder = tmp_path_factory.mktemp("server")
    server = TrackingServer(folder, postgres.make(folder.name), request.param)
    with pytest.MonkeyPatch.context() as patch, object_store.environment(patch, s3_endpoint, folder):
        server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def client(
    request: pytest.FixtureRequest,
    server: TrackingServer,
    s3_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[mlflow.MlflowClient]:
    """A client of the server, which may reach S3 only where it has to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OUTBOX_VARIABLE, str(tmp_path / "outbox"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    mlflow.set_tracking_uri(server.uri)
    with object_store.environment(monkeypatch, s3_endpoint, tmp_path / "cache"):
        if request.node.callspec.params["server"] is PROXIED:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                monkeypatch.delenv(name)
        yield mlflow.MlflowClient(server.uri)


def test_a_model_is_scored_registered_promoted_rolled_back_and_used(
    client: mlflow.MlflowClient,
    server: TrackingServer,
    dataset_uri: str,
    model_uris: tuple[str, str],
    s3_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    config = EvaluationConfig(samples=2, max_sequences=2, prompts=("the river",), prompt_tokens=4)
    scored = evaluate(config, dataset_uri, model_uris[1], str(tmp_path / "scores"), seed=0)
    [run] = client.search_runs([client.get_experiment_by_name("calm").experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags[DIGEST_TAG] == scored.digest
    assert run.data.metrics["brierlm"] == scored.facts.brierlm.value
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]

    task = task_environment(server.uri)
    facts = []
    for seed, promote in enumerate(("better", "never", "always")):
        for name, value in task.items():  # MLflow's client forgets its run once it has logged a model to another one
            monkeypatch.setenv(name, value)
        rules = RegistryConfig.model_validate({"promote": promote})
        evaluated = evaluate(config, dataset_uri, model_uris[1], str(tmp_path / f"scores {seed}"), seed=seed).uri
        facts.append(register_model(rules, model_uris[1], evaluated, str(tmp_path / f"registered {seed}")).facts)
    assert [(each.version, each.promoted) for each in facts] == [("1", True), ("2", False), ("3", True)]
    client.set_registered_model_alias("calm", "champion", "1")  # rolled back
    champion = client.get_model_version_by_alias("calm", "champion")
    assert str(champion.version) == "1"
    registering = client.get_run(champion.run_id)
    assert registering.data.tags["mlflow.parentRunId"] == task["MLFLOW_RUN_ID"]
    assert registering.info.experiment_id == task["MLFLOW_EXPERIMENT_ID"]

    model = mlflow.pyfunc.load_model("models:/calm@champion")
    parameters = {"max_new_tokens": 6, "temperature": 0.5, "seed": 1}
    [text] = model.predict(pd.DataFrame({"prompt": ["the river"]}), params=parameters)
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as ended:
        main(["generate", "the river", "--model", "models:/calm/1", "--max-new-tokens", "6", "--seed", "1"])
    assert not ended.value.code
    assert capfdbinary.readouterr().out == f"the river{text}\n".encode()

    with object_store.environment(monkeypatch, s3_endpoint, tmp_path / "cache"):
        files = fsspec.filesystem("s3").find(f"{BUCKET}/mlflow")
    assert sum(file.endswith("calm/weights.safetensors") for file in files) >= 3


def test_two_registrations_at_once_make_one_version(
    client: mlflow.MlflowClient,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have looked for a version before the first one makes one."""
    new_version, both_have_looked = stage._new_version, threading.Barrier(2)

    def wait_then_make(*arguments: Any) -> str:
        both_have_looked.wait(timeout=100)
        return new_version(*arguments)

    monkeypatch.setattr(stage, "_new_version", wait_then_make)
    config = RegistryConfig(model_name="at once")
    with ThreadPoolExecutor(2) as pool:
        outputs = [str(tmp_path / str(i)) for i in range(2)]
        registered = list(pool.map(lambda out: register_model(config, model_uris[1], evaluation_uri, out), outputs))
    [only] = [str(each.version) for each in client.search_model_versions("name = 'at once'")]
    assert {each.facts.version for each in registered} == {only}
    assert str(client.get_model_version_by_alias("at once", "champion").version) == only


def test_files_that_cannot_be_reached_are_one_clear_line(
    client: mlflow.MlflowClient,
    server: TrackingServer,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered = register_model(RegistryConfig(model_name="kept"), model_uris[1], evaluation_uri, str(tmp_path / "out"))
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if "AWS_ACCESS_KEY_ID" not in os.environ:  # the server reads them
        assert load_generator(registered.facts.model_uri).generate(["the"], max_new_tokens=1)
        return
    with pytest.raises(
        CalmError, match=r"^models:/kept/1: cannot be loaded from .*; check that it is there"
    ) as failure:
        load_generator(registered.facts.model_uri)
    assert len(str(failure.value).splitlines()) == 1


@pytest.fixture
def database_is_back(postgres: Postgres) -> Iterator[None]:
    yield
    postgres.start()


@pytest.mark.usefixtures("database_is_back")
@pytest.mark.parametrize("server", [PROXIED], indirect=True, ids=["proxied"])
def test_registering_while_the_database_is_away(
    client: mlflow.MlflowClient,
    postgres: Postgres,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below a pipeline's run it is waited for, and in the midst of it; if it is too long, the same command does it."""
    config = RegistryConfig(model_name="late")

    def register() -> str:
        return register_model(config, model_uris[1], evaluation_uri, str(tmp_path / "out")).facts.version

    monkeypatch.setenv(PARENT_RUN_VARIABLE, client.create_run("0").info.run_id)
    progress = tmp_path / "progress.jsonl"
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(progress))
    postgres.stop()
    with monkeypatch.context() as patch:
        patch.setattr("calm_core.telemetry.mlflow_store.PATIENCE_SECONDS", 0.0)
        with pytest.raises(CalmError, match=r"MLflow does not answer \(HTTP 50\d\); .*run the same command") as away:
            register()
    assert away.value.can_pass

    def make_and_crash(*arguments: Any) -> str:
        number = new_version(*arguments)
        postgres.crash()
        return number

    new_version = stage._new_version
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr(stage, "_new_version", make_and_crash)
        patch.setattr("calm_core.telemetry.mlflow_store._PAUSES", (0.0,))
        registering = pool.submit(register)
        for times in (1, 2):  # as it begins, and when the version has been made
            wait_until(lambda times=times: progress.read_text().count("waiting for MLflow") == times)
            postgres.start()
        assert registering.result() == "1" == register()
    assert str(client.get_model_version_by_alias("late", "champion").version) == "1"
