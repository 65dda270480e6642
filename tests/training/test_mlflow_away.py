"""MLflow that goes away while a stage is at work: its result is there, and MLflow gets all of it later."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from calm_core.config import AutoencoderConfig, EvaluationConfig, MlpAutoencoderConfig
from calm_core.evaluation.stage import evaluate
from calm_core.store.artifact import Artifact
from calm_core.telemetry.mlflow_run import DIGEST_TAG
from calm_core.telemetry.outbox import OUTBOX_VARIABLE
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, ProgressEvent, parse
from calm_core.training.stage import train
from tests.telemetry.tracking_server import Proxy, TrackingServer, wait_until

CONFIG = AutoencoderConfig(
    model=MlpAutoencoderConfig(chunk_size=4, latent_size=8, hidden_size=32, intermediate_size=48),
    steps=200,
    warmup_steps=2,
    global_batch_size=4,
    micro_batch_size=2,
    log_interval=2,
    validation_interval=100,
    validation_sequences=8,
)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackingServer]:
    monkeypatch.setenv(OUTBOX_VARIABLE, str(tmp_path / "outbox"))
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr("calm_core.telemetry.mlflow_run.FLUSH_SECONDS", 1.0)
    server = TrackingServer(tmp_path)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.kill()


def events(folder: Path) -> list[ProgressEvent]:
    file = folder / "progress.jsonl"
    return [parse(line) for line in file.read_text().splitlines()] if file.exists() else []


def stages_run(server: TrackingServer, name: str) -> mlflow.entities.Run:
    client = mlflow.MlflowClient(server.uri)
    [experiment] = [found.experiment_id for found in client.search_experiments() if found.name == "calm"]
    return client.search_runs([experiment], f"attributes.run_name = '{name}'")[0]  # the newest


def curve(server: TrackingServer, run: mlflow.entities.Run, name: str) -> list[tuple[int, float]]:
    return [
        (point.step, point.value) for point in mlflow.MlflowClient(server.uri).get_metric_history(run.info.run_id, name)
    ]


def curve_of(artifact: Artifact, name: str) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in artifact.read("curves.jsonl").splitlines()]
    return [(record["step"], record[name]) for record in records if name in record]


def test_a_server_that_is_killed_while_a_model_trains(server: TrackingServer, dataset_uri: str, tmp_path: Path) -> None:
    def kill() -> None:
        wait_until(lambda: any(event.done for event in events(tmp_path)))
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    trained = train(CONFIG, dataset_uri, str(tmp_path / "out"), seed=0, checkpoint_root=str(tmp_path / "checkpoints"))
    killer.join()
    notes = [event.note for event in events(tmp_path)]
    assert sum("MLflow does not answer" in note and "next command" not in note for note in notes) == 1
    assert "the next command that reaches it sends it" in notes[-2] and events(tmp_path)[-1].state == "finished"

    with closing(sqlite3.connect(server.database)) as database:
        [known] = database.execute("SELECT count(*) FROM metrics WHERE key = 'loss'").fetchone()
    assert known < len(curve_of(trained, "loss"))
    server.start()
    wait_until(lambda: stages_run(server, "train-autoencoder").info.status == "FINISHED")
    after = stages_run(server, "train-autoencoder")
    assert after.data.tags[DIGEST_TAG] == trained.digest
    for name in ("loss", "validation_loss"):
        assert curve(server, after, name) == curve_of(trained, name)


def test_a_training_that_goes_on_has_all_of_its_curve(server: TrackingServer, dataset_uri: str, tmp_path: Path) -> None:
    script = (
        "import sys; from calm_core.config import AutoencoderConfig; from calm_core.training.stage import train;"
        "train(AutoencoderConfig.model_validate_json(sys.argv[1]), *sys.argv[2:4], seed=0, checkpoint_root=sys.argv[4])"
    )
    places = [dataset_uri, str(tmp_path / "out"), str(tmp_path / "checkpoints")]
    with subprocess.Popen([sys.executable, "-c", script, CONFIG.model_dump_json(), *places], env=os.environ) as process:
        wait_until(lambda: any(event.done for event in events(tmp_path)))
        process.send_signal(signal.SIGTERM)
    first = stages_run(server, "train-autoencoder")
    assert process.returncode != 0 and first.info.status == "KILLED"
    trained = train(CONFIG, *places[:2], seed=0, checkpoint_root=places[2])
    second = stages_run(server, "train-autoencoder")
    assert 0 < len(curve(server, first, "loss")) < len(curve(server, second, "loss"))
    assert curve(server, second, "loss") == curve_of(trained, "loss")


def test_a_score_is_not_lost_with_mlflow(
    server: TrackingServer,
    dataset_uri: str,
    model_uris: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = EvaluationConfig(samples=2, max_sequences=8, prompts=())
    with Proxy(server.uri).listening() as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        proxy.fault = "503"
        scored = evaluate(config, dataset_uri, model_uris[1], str(tmp_path / "scores"), seed=0)
        proxy.fault = ""
        wait_until(lambda: stages_run(server, "evaluate").info.status == "FINISHED")
    run = stages_run(server, "evaluate")
    assert run.data.tags[DIGEST_TAG] == scored.digest
    assert run.data.metrics["brierlm"] == scored.facts.brierlm.value
    files = mlflow.MlflowClient(server.uri).list_artifacts(run.info.run_id)
    assert [file.path for file in files] == ["report.html"]
