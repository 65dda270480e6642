"""Whose child a stage's MLflow run is, and in which experiment and workspace: on a real server."""

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from calm_core.errors import CalmError
from calm_core.telemetry.mlflow_run import start_run
from calm_core.telemetry.outbox import OUTBOX_VARIABLE
from calm_core.telemetry.stage import Stage
from tests.telemetry.kubeflow_plugin import task_environment
from tests.telemetry.tracking_server import Proxy, TrackingServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """One with workspaces, as multi-user Kubeflow has it."""
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
        server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OUTBOX_VARIABLE, str(tmp_path / "outbox"))
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "CALM_PARENT"))]:
        monkeypatch.delenv(name)


def run_a_stage() -> mlflow.entities.Run:
    with Stage("find", {"size": 3}) as stage:
        stage.begin()
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(stage.run.run_id)


def test_a_stage_goes_below_the_run_that_kubeflows_plugin_has_made_for_its_task(
    server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in task_environment(server.uri).items():
        monkeypatch.setenv(name, value)
    run = run_a_stage()
    assert run.data.tags["mlflow.parentRunId"] == os.environ["MLFLOW_RUN_ID"] != run.info.run_id
    assert run.info.experiment_id == os.environ["MLFLOW_EXPERIMENT_ID"]
    assert (run.info.status, run.data.params) == ("FINISHED", {"size": "3"})
    task = mlflow.MlflowClient(server.uri).get_run(os.environ["MLFLOW_RUN_ID"])
    assert (task.info.status, task.data.params) == ("RUNNING", {})  # Kubeflow ends it, and tells it what it knows


def test_workspace_and_credentials_go_with_every_request(
    server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.MlflowClient(server.uri).create_workspace("team-a")
    with Proxy(server.uri).listening() as proxy:
        monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
        environment = task_environment(proxy.uri, "team-a") | {"MLFLOW_TRACKING_TOKEN": "open-sesame"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        proxy.headers.clear()
        run = run_a_stage()
        assert run.info.status == "FINISHED" and run.info.experiment_id == environment["MLFLOW_EXPERIMENT_ID"]
        assert len(proxy.headers) > 5  # the stage's own, and those that deliver
        for headers in proxy.headers:
            assert headers["X-MLFLOW-WORKSPACE"] == "team-a" and headers["Authorization"] == "Bearer open-sesame"
    monkeypatch.setenv("MLFLOW_WORKSPACE", "default")
    with pytest.raises(mlflow.MlflowException, match="not found"):
        mlflow.MlflowClient(server.uri).get_run(run.info.run_id)


def test_the_run_of_calm_run_comes_first_and_goes_below_mlflows_own(
    server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in task_environment(server.uri).items():
        monkeypatch.setenv(name, value)
    parent = start_run("calm-train", {})
    monkeypatch.setenv("CALM_PARENT_RUN_ID", parent.run_id)
    client = mlflow.MlflowClient(server.uri)
    assert client.get_run(parent.run_id).data.tags["mlflow.parentRunId"] == os.environ["MLFLOW_RUN_ID"]
    assert run_a_stage().data.tags["mlflow.parentRunId"] == parent.run_id
    assert parent.end("FINISHED", 60)


@pytest.mark.parametrize("run_id", ["0123456789abcdef0123456789abcdef", "no id"])
def test_a_run_above_that_is_not_there_is_one_line(
    run_id: str, server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(CalmError, match=rf"^MLFLOW_RUN_ID '{run_id}': there is no such run in .*{server.uri}; name"):
        start_run("find", {})


def test_a_server_that_does_not_take_its_name_says_so(server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow refuses requests to a name that is not among its --allowed-hosts; that is no matter of passwords."""
    uri = server.uri.replace("127.0.0.1", "127.1")  # the same address, written as nobody has allowed it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(CalmError, match=rf"{uri}: .*\(HTTP 403, 'Invalid Host header.*to its --allowed-hosts"):
        start_run("find", {})


def test_an_experiment_may_be_named_by_its_number(server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow has it: a name comes first, and what is not there is no matter of waiting."""
    client = mlflow.MlflowClient(server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment("numbered"))
    assert run_a_stage().info.experiment_id == os.environ["MLFLOW_EXPERIMENT_ID"]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    assert run_a_stage().info.experiment_id == client.get_experiment_by_name("named").experiment_id
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "999999")
    with pytest.raises(CalmError, match=r"MLflow refuses this \(.*999999.*\); name one that is there") as failure:
        start_run("find", {})
    assert not failure.value.can_pass
