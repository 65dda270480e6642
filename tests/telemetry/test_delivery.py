"""What a run is told arrives in MLflow, whatever happens in between: real servers, databases and killed processes."""

import json
import math
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from sqlalchemy import create_engine
from sqlalchemy.exc import DataError, InterfaceError, TimeoutError
from sqlalchemy.pool import QueuePool

from calm_core.telemetry.delivery import Delivery, _is_refusal
from calm_core.telemetry.mlflow_run import Run, start_run
from calm_core.telemetry.outbox import OUTBOX_VARIABLE, Outbox, Text
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE
from tests.mlflow_tables import new_store
from tests.telemetry.tracking_server import Fault, Proxy, TrackingServer, wait_until

LONG = 120.0  # seconds; nothing takes so long unless it hangs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: TrackingServer, outbox: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(server.uri).listening() as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        yield proxy
        proxy.fault = ""


@pytest.fixture(autouse=True)
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OUTBOX_VARIABLE, str(tmp_path / "outbox"))
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "stages")
    return tmp_path / "outbox"


@pytest.fixture
def database(outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLflow's own file of SQLite, without a server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    return tmp_path / "mlflow.db"


def told() -> list[str]:
    file = Path("progress.jsonl")
    return [json.loads(line)["note"] for line in file.read_text().splitlines()] if file.exists() else []


def in_mlflow(database: Path, run: Run) -> list[tuple[str, int, float]]:
    """The points of a run as they lie in the database: name, step, value; those that are twice there are twice here."""
    select = "SELECT key, step, CASE is_nan WHEN 1 THEN 'nan' ELSE value END FROM metrics WHERE run_uuid = ?"
    with closing(sqlite3.connect(database)) as connection:
        return sorted(connection.execute(select, (run.run_id,)).fetchall())


def losses(*steps: int) -> list[tuple[str, int, float]]:
    return [("loss", step, 1 / step) for step in steps]


def log(run: Run, *steps: int) -> None:
    for step in steps:
        run.log_metrics({"loss": 1 / step}, step=step)


@pytest.mark.parametrize("fault", ["503", "401", "refused", "answer lost", "hangs"])
def test_what_is_told_while_mlflow_is_away_arrives_when_it_is_back(
    fault: Fault, proxy: Proxy, server: TrackingServer, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calm_core.telemetry.delivery._FIRST_TRY", 1.0)  # of one that hangs
    run = start_run("find", {})
    log(run, 1, 2)
    proxy.fault = fault
    log(run, 3, 4)
    run.set_tags({"calm.digest": "abc"})
    wait_until(lambda: any("does not answer" in note for note in told()))
    log(run, 5)
    tries = proxy.failed
    wait_until(lambda: proxy.failed > tries)
    proxy.fault = ""
    log(run, 6)
    assert run.end("FINISHED", LONG)
    assert in_mlflow(server.database, run) == losses(1, 2, 3, 4, 5, 6)
    found = mlflow.MlflowClient(server.uri).get_run(run.run_id)
    assert (found.info.status, found.data.tags["calm.digest"]) == ("FINISHED", "abc")
    away, back = told()  # each once
    assert away.startswith(f"{proxy.uri}: MLflow does not answer (") and "waits" in away
    assert back == f"{proxy.uri}: MLflow answers again"
    assert list(outbox.iterdir()) == []


def test_numbers_that_are_none_arrive_as_what_they_are(proxy: Proxy, server: TrackingServer) -> None:
    run = start_run("find", {})
    run.log_metrics({"loss": math.nan, "most": math.inf, "least": -math.inf, "third": 1 / 3}, step=1)
    assert run.end("FINISHED", LONG)
    found = mlflow.MlflowClient(server.uri).get_run(run.run_id).data.metrics
    assert math.isnan(found["loss"]) and found["third"] == 1 / 3
    assert found["most"] > 1e308 and found["least"] < -1e308  # the largest that a database has


@pytest.mark.parametrize("store", ["server", "database"])
def test_what_mlflow_refuses_is_told_once_and_the_rest_arrives(store: str, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue("proxy" if store == "server" else "database")
    database = request.getfixturevalue("server").database if store == "server" else place
    run = start_run("find", {})
    run.log_points([(step, {"loss": 1 / step, "no{name": 1.0}) for step in range(1, 8)])
    run.set_tags({"no{name": "x", "calm.digest": "abc"})
    assert run.end("FINISHED", LONG)
    assert in_mlflow(database, run) == losses(*range(1, 8))
    assert [note.split("(")[0] for note in told()] == [
        f"{getattr(place, 'uri', place)}: MLflow refuses {field} 'no{{name' " for field in ("metrics", "tags")
    ]


def test_a_run_that_has_been_deleted_in_between_holds_nothing_up(proxy: Proxy, server: TrackingServer) -> None:
    run = start_run("find", {})
    mlflow.MlflowClient(server.uri).delete_run(run.run_id)
    log(run, *range(1, 50))
    assert run.end("FINISHED", LONG)
    assert told() == [f"{proxy.uri}: the run {run.run_id} has been deleted; what it was told is left out"]


def test_what_is_left_at_the_end_is_told_and_the_next_command_sends_it(
    proxy: Proxy, server: TrackingServer, outbox: Path
) -> None:
    program = (
        "from calm_core.telemetry.mlflow_run import start_run; import sys; run = start_run('find', {});"
        "print(run.run_id, flush=True); sys.stdin.readline(); run.log_metrics({'loss': 1.0}, step=1);"
        "run.log_text('<html>', 'report.html'); run.end('FINISHED', 1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        run_id = process.stdout.readline().strip()
        proxy.fault = "503"
        process.communicate("on\n", timeout=LONG)
    assert process.returncode == 0
    assert told()[-1] == (
        f"{proxy.uri}: MLflow does not answer (HTTP 503); what it is to be told (3 records) waits in {outbox}, "
        "and the next command that reaches it sends it"
    )
    client, ended = mlflow.MlflowClient(server.uri), time.time() * 1000
    assert client.get_run(run_id).info.status == "RUNNING"
    proxy.fault = ""
    assert start_run("find", {}).end("FINISHED", LONG)
    found = client.get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert [file.path for file in client.list_artifacts(run_id)] == ["report.html"]
    assert found.info.end_time <= ended  # and not when that was sent
    assert list(outbox.iterdir()) == []


@pytest.mark.parametrize("store", ["server", "database"])
def test_what_was_sent_before_a_kill_could_be_noted_is_one_point(store: str, request: pytest.FixtureRequest) -> None:
    """The process dies after MLflow has taken the points, and before the cursor is written."""
    place = request.getfixturevalue("proxy" if store == "server" else "database")
    database = request.getfixturevalue("server").database if store == "server" else place
    program = (
        "import os, signal; from calm_core.telemetry import outbox; from calm_core.telemetry.mlflow_run import Run,"
        "start_run;"
        "outbox.Outbox.sent = lambda self, kept: os.kill(os.getpid(), signal.SIGKILL);"
        "run = start_run('find', {}); print(run.run_id, flush=True);"
        "run.log_points([(step, {'loss': 1 / step, 'none': float('nan')}) for step in (1, 2, 3)]);"
        "run.end('KILLED', 60)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=LONG)
    assert ended.returncode == -signal.SIGKILL
    run = Run()
    run.run_id = ended.stdout.strip()
    expected = sorted([*losses(1, 2, 3), *(("none", step, "nan") for step in (1, 2, 3))])
    assert in_mlflow(database, run) == expected
    assert start_run("find", {}).end("FINISHED", LONG)
    assert in_mlflow(database, run) == expected
    assert mlflow.MlflowClient().get_run(run.run_id).info.status == "KILLED"


def test_a_locked_database_is_not_waited_for(database: Path, outbox: Path) -> None:
    run = start_run("find", {})
    log(run, 1)
    wait_until(lambda: in_mlflow(database, run) == losses(1))
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        log(run, 2, 3)
        assert not run.end("FINISHED", 0.5)
        other.rollback()
    assert f"waits in {outbox}" in told()[-1]
    wait_until(lambda: mlflow.MlflowClient().get_run(run.run_id).info.status == "FINISHED")
    assert in_mlflow(database, run) == losses(1, 2, 3)


def test_one_process_sends_and_the_others_hand_on(database: Path) -> None:
    """As of a stage, and the rank that logs to its run; the end comes last."""
    run = start_run("train", {})
    rank = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from calm_core.telemetry.mlflow_run import Run; from calm_core.telemetry.sinks import *;"
            "run = Run(sys.argv[1]); sink = MlflowSink(run); sink.begin_with([{'step': 1, 'loss': 1.0}]);"
            "sink.log(Point(2, 3, {'loss': 0.5}, {}, 0.0, '')); run.close(0); print('mlflow' in sys.modules)",
            run.run_id,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert rank.stdout == "False\n"  # nothing of MLflow's weighs on the steps
    assert run.end("FINISHED", LONG)
    assert in_mlflow(database, run) == losses(1, 2)


def test_what_others_left_is_sent_without_a_run_of_ones_own(database: Path, outbox: Path) -> None:
    run = start_run("find", {})
    uri = f"sqlite:///{database}"
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        log(run, 1)
        run.close(0)
        assert Delivery(uri, "ui").end(LONG)  # it is another one's, which is at work
        other.rollback()
    wait_until(lambda: list(outbox.iterdir()) == [])
    assert in_mlflow(database, run) == losses(1)


def without_files(run_id: str, database: Path) -> None:
    """Let the files of a run have a place that takes none."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE runs SET artifact_uri = '/proc/nowhere' WHERE run_uuid = ?", (run_id,))


def test_a_file_that_finds_no_place_does_not_hold_up_the_end(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calm_core.telemetry.delivery._PAUSES", (0.1,))
    run = start_run("find", {})
    without_files(run.run_id, database)
    run.log_text("<html>", "report.html")
    assert run.end("FINISHED", LONG)
    assert mlflow.MlflowClient().get_run(run.run_id).info.status == "FINISHED"
    assert any("MLflow refuses report.html (" in note and note.endswith("it is left out") for note in told())


def test_what_cannot_be_sent_of_another_run_holds_nothing_up(database: Path, outbox: Path) -> None:
    other = mlflow.MlflowClient().create_run("0")
    without_files(other.info.run_id, database)
    left = Outbox(str(database), other.info.run_id)
    left.add(Text(name="report.html", text="<html>"))
    run = start_run("find", {})
    log(run, 1)
    assert run.end("FINISHED", LONG)
    assert in_mlflow(database, run) == losses(1)
    assert f"what it is to be told (1 records) waits in {outbox}" in told()[-1]
    assert list(outbox.glob("*.jsonl")) == [left.path]


def test_a_database_that_has_no_connection_left_has_not_refused_anything() -> None:
    """MLflow calls whatever its database library raises a bad request, but for what that calls operational."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect(), pytest.raises(TimeoutError) as busy:
        engine.connect()
    gone, impossible = (kind("INSERT", {}, Exception("why")) for kind in (InterfaceError, DataError))
    for error, is_refusal in ((busy.value, False), (gone, False), (impossible, True)):
        assert _is_refusal(mlflow.MlflowException(error, BAD_REQUEST)) == is_refusal
    engine.dispose()
