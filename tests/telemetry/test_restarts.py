"""MLflow's server and its PostgreSQL end, crash and come back while a run is at work: nothing is lost or twice."""

import json
from pathlib import Path

import mlflow
import psycopg
import pytest

from calm_core.telemetry.mlflow_run import Run, start_run
from calm_core.telemetry.outbox import OUTBOX_VARIABLE
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE
from tests.postgres import Postgres
from tests.telemetry.tracking_server import TrackingServer, wait_until

LONG = 120.0  # seconds; nothing takes so long unless it hangs


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OUTBOX_VARIABLE, str(tmp_path / "outbox"))
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr("calm_core.telemetry.delivery._PAUSES", (0.5,))


def told(beginning: str) -> int:
    """How many lines say something."""
    file = Path("progress.jsonl")
    notes = [json.loads(line)["note"] for line in file.read_text().splitlines()] if file.exists() else []
    return sum(beginning in note for note in notes)


class Curve:
    """The points of a run, as it is told them, and as they lie in the database."""

    def __init__(self, run: Run, database: str) -> None:
        self._run, self._database = run, database
        self.points: list[tuple[int, float]] = []

    def go_on(self) -> None:
        for step in range(len(self.points) + 1, len(self.points) + 4):
            self._run.log_metrics({"loss": 1 / step}, step=step)
            self.points.append((step, 1 / step))

    def stored(self) -> list[tuple[int, float]]:
        with psycopg.connect(self._database, connect_timeout=5) as connection:
            select = "SELECT step, value FROM metrics WHERE run_uuid = %s AND key = 'loss' ORDER BY timestamp, step"
            return [(int(step), value) for step, value in connection.execute(select, (self._run.run_id,))]


def test_a_server_and_its_database_restart(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = postgres.make("restarts")
    server = TrackingServer(tmp_path, database)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = start_run("train", {})
    curve = Curve(run, database)
    faults = (
        (postgres.crash, postgres.start),
        (server.stop, server.start),
        (postgres.stop, postgres.start),
        (server.kill, server.start),
    )
    try:
        for number, (away, back) in enumerate(faults, 1):
            curve.go_on()
            away()  # whether the last points have arrived or not
            curve.go_on()
            wait_until(lambda number=number: told("MLflow does not answer") == number)
            back()
            curve.go_on()
            wait_until(lambda: curve.stored() == curve.points)
            # Stored is not answered: what kills the server in between makes one outage of two.
            wait_until(lambda number=number: told("MLflow answers again") == number)
        assert run.end("FINISHED", LONG)
        found = mlflow.MlflowClient(server.uri).get_run(run.run_id)
    finally:
        server.kill()
    assert found.info.status == "FINISHED" and found.data.metrics == {"loss": curve.points[-1][1]}
    assert curve.stored() == curve.points
    assert told("MLflow answers again") == len(faults) and told("left out") == 0


def test_a_database_without_a_server_restarts(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    database = postgres.make("alone")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    run = start_run("train", {})
    curve = Curve(run, database)
    for number, away in enumerate((postgres.crash, postgres.stop), 1):
        curve.go_on()
        away()
        curve.go_on()
        wait_until(lambda number=number: told("MLflow does not answer") == number)
        postgres.start()
        wait_until(lambda: curve.stored() == curve.points)
        wait_until(lambda number=number: told("MLflow answers again") == number)
    assert run.end("FINISHED", LONG)
    assert mlflow.MlflowClient(database).get_run(run.run_id).info.status == "FINISHED"
    assert curve.stored() == curve.points and told("left out") == 0
