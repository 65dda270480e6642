"""Reaching MLflow: how long it is waited for, and what is said of why it cannot be used."""

import http.server
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from calm_core.errors import CalmError
from calm_core.telemetry.mlflow_run import start_run
from calm_core.telemetry.mlflow_store import (
    MlflowUnreachable,
    explained,
    known_revisions,
    mlflow_answers,
    outlasting,
    place_of,
    reach_mlflow,
    wait_for_mlflow,
)
from calm_core.telemetry.progress import parse
from tests.mlflow_tables import make_older
from tests.postgres import Postgres


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Starting(http.server.BaseHTTPRequestHandler):
    """A server that is not ready for its first two requests, and then answers as MLflow does."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        ready = self.requests > 2
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def starting() -> Iterator[str]:
    handler = type("Handler", (Starting,), {"requests": 0})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_is_starting_is_waited_for_where_that_is_asked_for(
    starting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", starting)
    with pytest.raises(CalmError, match=r"HTTP 503.*then run the same command again") as failure:
        reach_mlflow()
    assert failure.value.can_pass
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    reach_mlflow()


def test_what_has_answered_is_not_asked_again(starting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on MLflow's own calls wait, since it may be restarting."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", starting)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    reach_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", starting)
    monkeypatch.setattr("calm_core.telemetry.mlflow_store._ask_server", None)
    reach_mlflow()


def test_a_stage_of_a_run_that_mlflow_has_answered_waits_for_it(
    starting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as is set, and says so once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", starting)
    monkeypatch.setenv("CALM_PROGRESS_FILE", str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr("calm_core.telemetry.mlflow_store._WAIT_SECONDS", 0.0)
    wait_for_mlflow("find")  # the third question is answered
    [told] = [parse(line).note for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert told.startswith("waiting for MLflow, 120 s at most (") and "HTTP 503" in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("CALM_PARENT_RUN_ID", "0123")
    monkeypatch.setattr("calm_core.telemetry.mlflow_store.PATIENCE_SECONDS", 0.0)
    with pytest.raises(CalmError, match=r"nothing listens there.*then run the same command again"):
        start_run("find", {})


def test_a_call_to_a_server_that_has_gone_away_is_no_matter_of_minutes(
    starting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client would go on for four, with each of the calls that follow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", starting)
    with pytest.raises(MlflowUnreachable), mlflow_answers():
        mlflow.MlflowClient().get_experiment_by_name("find")
    mlflow.MlflowClient().get_experiment_by_name("find")  # the third request is answered


class Work:
    """Fails some times, and is done then."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.tries = list(errors), 0

    def __call__(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_work_outlasts_an_mlflow_that_goes_away_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("CALM_PROGRESS_FILE", str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr("calm_core.telemetry.mlflow_store._PAUSES", (0.0, 0.0))
    refused = ConnectionRefusedError(111, "Connection refused")
    assert outlasting("register", Work(refused, refused)) == "done"
    notes = [parse(line).note for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert notes == [f"trying again in 0 s ({tmp_path}/mlflow.db: cannot be used (nothing listens there))"] * 2
    for work, tries in ((Work(*[refused] * 9), 3), (Work(CalmError("is none of ours")), 1)):
        with pytest.raises(CalmError):
            outlasting("register", work)
        assert work.tries == tries


def test_what_a_user_may_not_do_is_not_tried_again(starting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", starting)

    def refused() -> None:
        raise mlflow.MlflowException("API request failed with error code 403 != 200", PERMISSION_DENIED)

    with pytest.raises(CalmError, match=r"MLflow refuses this \(.*403.*\); set MLFLOW_TRACKING_USERNAME") as failure:
        outlasting("find", refused)
    assert not failure.value.can_pass


def test_a_registry_of_its_own_is_reached_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    with pytest.raises(CalmError, match=r"^MLFLOW_REGISTRY_URI http://127.0.0.1:9: MLflow does not answer"):
        reach_mlflow()


def test_to_read_makes_nothing(tmp_path: Path) -> None:
    """Without a tracking URI, MLflow would make a database in the current folder."""
    with pytest.raises(CalmError, match=r"mlflow.db: there is no such database; set MLFLOW_TRACKING_URI to "):
        reach_mlflow(to_read=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said", "can_pass"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "nothing listens there", True),
        (socket.gaierror(-2, "Name or service not known"), "there is no such host", True),
        (ConnectionResetError(104, "Connection reset by peer"), "it ends the connection", True),
        (PermissionError(13, "Permission denied", "/srv/artifacts"), "Permission denied: /srv/artifacts", False),
        (OSError(28, "No space left on device", "/srv/a"), "No space left on device: /srv/a); free space there", True),
        (ValueError("One. Two two two."), "(One)", True),
        (ValueError(""), "(ValueError)", True),
    ],
)
def test_the_reason_is_the_systems_below_all_layers(error: Exception, said: str, can_pass: bool) -> None:
    with pytest.raises(CalmError) as failure, explained("http://user:open-sesame@mlflow:5000"):
        try:
            raise error
        except Exception as below:
            raise ValueError(*below.args) if isinstance(below, ValueError) else RuntimeError("three layers") from below
    assert str(failure.value).startswith("MLFLOW_TRACKING_URI http://***@mlflow:5000: MLflow does not answer (")
    assert said in str(failure.value)
    assert failure.value.can_pass == can_pass


def test_what_was_being_handled_before_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    try:
        raise ConnectionRefusedError
    except ConnectionRefusedError:
        with pytest.raises(CalmError, match=r"\(the second one\)"), mlflow_answers():
            raise ValueError("the second one")  # noqa: B904  # what is tested


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE experiments SET lifecycle_stage = 'deleted'", r"experiment 'stages' has been deleted"),
        (
            "UPDATE alembic_version SET version_num = 'fedcba987654'",
            r"mlflow.db: its tables are of a newer MLflow \(fedcba987654\) than .*; install that version",
        ),
    ],
)
def test_a_stage_from_python_says_what_is_wrong_with_the_database(
    statement: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/made.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "stages")
    start_run("find", {}).end("FINISHED", 60)
    with closing(sqlite3.connect(tmp_path / "made.db")) as database, database:
        database.execute(statement)
    (tmp_path / "made.db").rename(tmp_path / "mlflow.db")  # MLflow keeps what it knows of the other one
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(CalmError, match=said):
        start_run("find", {})
    assert mlflow.get_tracking_uri().endswith("mlflow.db")


def test_what_mlflow_refuses_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "n" * 501)
    with pytest.raises(CalmError, match=r"mlflow.db: MLflow refuses this \(.*500.*\); change it$") as failure:
        start_run("find", {})
    assert not failure.value.can_pass


@pytest.mark.parametrize(
    "uri", ["sqlite+pysqlite:///{folder}/made.db", "sqlite:///made.db", "sqlite:///made.db?timeout=9"]
)
def test_every_form_of_a_database_that_mlflow_takes_is_taken(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path))
    start_run("find", {}).end("FINISHED", 60)
    reach_mlflow(to_read=True)
    assert (tmp_path / "made.db").exists()


def test_the_bare_library_says_what_a_database_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(CalmError, match=r"mlflow.db: .*\(sqlalchemy, which it needs .* is not installed\); install it"):
        reach_mlflow()


def test_tables_of_an_older_mlflow_are_not_changed_without_a_copy(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow itself would upgrade them: under a server of that older version, and with nothing to go back to."""
    for uri in (postgres.make("older"), f"sqlite:///{tmp_path}/older.db"):
        make_older(uri, "71994744cf8e")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(CalmError, match=r": its tables are of an older MLflow \(71994744cf8e\).*mlflow db upgrade"):
            start_run("find", {})
        assert "71994744cf8e" in known_revisions()


def test_workspaces_are_places_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one was to be told is not sent to another, which knows no such run."""
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    assert place_of("https://user:word@mlflow/") == "https://mlflow (workspace team-a)"
