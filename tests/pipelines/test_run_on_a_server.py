"""`calm run` with MLflow on a server, PostgreSQL and S3, all of which goes away in the middle of it and comes back."""

import json
from pathlib import Path

import mlflow
import pytest

from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts
from calm_core.telemetry.mlflow_run import DIGEST_TAG, STAGE_TAG
from calm_core.telemetry.progress import ProgressEvent, parse
from pipelines.local.object_store import BUCKET
from tests import object_store
from tests.pipelines.test_local_run import Workplace, document
from tests.postgres import Postgres
from tests.telemetry.tracking_server import TrackingServer, wait_until

LONG = 600.0  # seconds; nothing takes so long unless it hangs


def events(place: Workplace) -> list[ProgressEvent]:
    files = place.folder.glob(".calm/logs/*/progress.jsonl")
    return [parse(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.timeout(1200)  # some 60 s of an idle machine
def test_a_run_outlives_its_mlflow(postgres: Postgres, s3_endpoint: str, tmp_path: Path) -> None:
    """The stage that is at work goes on, the next one waits, and MLflow has all of both."""
    server = TrackingServer(tmp_path, postgres.make("run"), ("--artifacts-destination", f"s3://{BUCKET}/mlflow/run"))
    place = Workplace(tmp_path)
    place.write("a.jsonl", [document(number) for number in range(40)])
    place.environment["MLFLOW_TRACKING_URI"] = server.uri
    with pytest.MonkeyPatch.context() as patch, object_store.environment(patch, s3_endpoint, tmp_path / "cache"):
        server.start()
        with place.started("*.jsonl") as run:
            try:
                training = "train-autoencoder"
                wait_until(lambda: any(each.stage == training and each.done for each in events(place)), LONG)
                server.stop()
                postgres.crash()
                wait_until(lambda: any("waiting for MLflow" in each.note for each in events(place)), LONG)
                postgres.start()
                server.start()
                output, failed = run.communicate(timeout=LONG)
            finally:
                run.kill()
    assert run.returncode == 0, output + failed
    assert "registered: calm version 1 (models:/calm@champion)" in output

    client = mlflow.MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("calm").experiment_id])
    server_knows = {each.data.tags[STAGE_TAG]: each for each in runs if STAGE_TAG in each.data.tags}
    [parent] = [each for each in runs if STAGE_TAG not in each.data.tags]
    assert {"train-autoencoder", "train-calm", "evaluate", "register"} <= server_knows.keys()
    assert {each.info.status for each in runs} == {"FINISHED"}
    assert {each.data.tags["mlflow.parentRunId"] for each in server_knows.values()} == {parent.info.run_id}

    autoencoder = Artifact(place.outputs()["autoencoder_model"], AutoencoderFacts)
    trained = server_knows["train-autoencoder"]
    assert trained.data.tags[DIGEST_TAG] == autoencoder.digest
    records = [json.loads(line) for line in autoencoder.read("curves.jsonl").splitlines()]
    told = [(point.step, point.value) for point in client.get_metric_history(trained.info.run_id, "loss")]
    server.kill()
    assert told == [(record["step"], record["loss"]) for record in records]

    listed = json.loads(place.calm("runs", "1", "--json").stdout)
    assert listed["registered"]["model_uri"] == "models:/calm/1"
