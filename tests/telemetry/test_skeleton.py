"""The skeleton of a stage, with a real MLflow store."""

import json
from pathlib import Path

import mlflow
import pytest

from calm_core.errors import CalmError, Interrupted, Stopped
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DuplicatesFacts
from calm_core.telemetry.mlflow_run import start_run
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE
from calm_core.telemetry.stage import Stage
from tests.mlflow_tables import new_store
from tests.telemetry.full_disk import disk_with


@pytest.fixture
def progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "stages")
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "progress.jsonl"


def told(progress: Path) -> list[tuple[str, str]]:
    events = [json.loads(line) for line in progress.read_text().splitlines()]
    return [(event["state"], event["note"]) for event in events]


def made(folder: Path) -> Artifact[DuplicatesFacts]:
    with ArtifactWriter(str(folder), DuplicatesFacts, {}, {"scan-0": "abc"}) as writer:
        writer.facts = DuplicatesFacts(duplicates=1, near_duplicates=0)
    return Artifact(str(folder), DuplicatesFacts)


def test_a_stage_is_told_recorded_and_tagged_with_what_it_has_made(progress: Path, tmp_path: Path) -> None:
    artifact = made(tmp_path / "artifact")
    with Stage("find", {"shape": {"size": 3}}) as stage:
        stage.begin()
        stage.report(note="looking")
        stage.finish(artifact, "1 found")
        assert ("finished", "1 found") not in told(progress)  # only once all of it is recorded
    assert told(progress) == [("running", "starting"), ("running", "looking"), ("finished", "1 found")]
    run = mlflow.MlflowClient().get_run(stage.run.run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == ("find", "FINISHED", {"shape.size": "3"})
    assert run.data.tags["calm.artifact_digest"] == artifact.digest
    assert run.data.tags["scan-0"] == "abc"


@pytest.mark.parametrize("error", [CalmError("a.txt: is gone"), ValueError("two\nlines"), ValueError("")])
def test_a_failure_is_one_line_and_the_run_has_failed(error: Exception, progress: Path) -> None:
    with pytest.raises(type(error)), Stage("find", {}) as stage:
        stage.begin()
        raise error
    expected = {"a.txt: is gone": "a.txt: is gone", "two\nlines": "ValueError: two", "": "ValueError: ValueError"}
    assert told(progress)[-1] == ("failed", expected[str(error)])
    assert mlflow.MlflowClient().get_run(stage.run.run_id).info.status == "FAILED"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), Stopped(15), Interrupted("stopped at step 3")])
def test_what_was_stopped_has_not_failed(end: BaseException, progress: Path) -> None:
    with pytest.raises(type(end)), Stage("find", {}) as stage:
        stage.begin()
        raise end
    assert mlflow.MlflowClient().get_run(stage.run.run_id).info.status == "KILLED"


def test_an_mlflow_that_does_not_answer_is_the_stages_failure(progress: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(CalmError, match=r"MLFLOW_TRACKING_URI http://127.0.0.1:9: MLflow does not answer"),
        Stage("find", {}) as stage,
    ):
        stage.begin()
    [starting, (state, note)] = told(progress)
    assert starting == ("running", "starting")
    assert state == "failed" and "MLflow does not answer" in note


@pytest.mark.parametrize("uri", ["http://user:open-sesame@127.0.0.1:9", "postgresql://user:open-sesame@127.0.0.1:9/db"])
def test_the_password_of_a_tracking_uri_is_told_nowhere(
    uri: str, progress: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CalmError, match="MLflow does not answer") as failure:
        start_run("find", {})
    assert "sesame" not in str(failure.value)
    with pytest.raises(CalmError), Stage("find", {}) as stage:
        stage.begin()
    assert "sesame" not in progress.read_text()


def test_a_full_disk_under_the_progress_ends_no_stage(progress: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with Stage("find", {}) as stage:
        stage.begin()
        with disk_with(5, progress):
            stage.report(note="looking")
    whole = progress.read_text().splitlines()[0]
    assert json.loads(whole)["note"] == "starting"
