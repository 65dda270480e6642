"""MLflow of the runs on one machine: a SQLite file, unless MLFLOW_TRACKING_URI names a server."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from calm_core.errors import CalmError
from calm_core.telemetry import outbox
from calm_core.telemetry.delivery import Delivery
from calm_core.telemetry.mlflow_run import EXPERIMENT_VARIABLE, STAGE_TAG, Run, experiment_id
from calm_core.telemetry.mlflow_store import (
    TRACKING_URI_VARIABLE,
    explained,
    mlflow_answers,
    quiet_mlflow,
    reach_mlflow,
)
from pipelines.local.home import Home

_EMBEDDED_SCHEME = "sqlite:"
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Tables and columns in which MLflow keeps absolute places of files."""


def tracking_uri(home: Home) -> str:
    """Where MLflow keeps runs and models."""
    return os.environ.get(TRACKING_URI_VARIABLE) or _own_uri(home)


def _own_uri(home: Home) -> str:
    return f"{_EMBEDDED_SCHEME}///{home.mlflow_database}"  # as it is: a home's path has nothing to be quoted


def use_tracking(home: Home, experiment: str) -> None:
    """Point this process and its children to MLflow, and make the experiment if it is new.

    Raises:
        CalmError: MLflow does not answer, or cannot be used.
    """
    _point(home)
    os.environ[EXPERIMENT_VARIABLE] = experiment
    reach_mlflow()
    from mlflow import MlflowClient

    embedded = tracking_uri(home).startswith(_EMBEDDED_SCHEME)
    with mlflow_answers():
        experiment_id(MlflowClient(), experiment, home.mlflow_artifacts.as_uri() if embedded else None)


def read_tracking(home: Home) -> None:
    """Point this process and its children to an MLflow that is there already; nothing is made.

    Raises:
        CalmError: No run has been made in this home, and no other MLflow is named; or MLflow does not answer.
    """
    if not os.environ.get(TRACKING_URI_VARIABLE) and not home.mlflow_database.exists():
        raise CalmError(f"{home.path}: no run here yet; `calm run` trains and registers a model")
    _point(home)
    reach_mlflow(to_read=True)
    from mlflow import MlflowClient

    with mlflow_answers():  # of a database, this looks at its tables
        MlflowClient().search_experiments(max_results=1)


def send_what_is_left(home: Home) -> None:
    """Begin to send what earlier commands could not tell MLflow; nobody waits for it."""
    Delivery(tracking_uri(home), "ui")


def _point(home: Home) -> None:
    _follow(home)
    os.environ[TRACKING_URI_VARIABLE] = tracking_uri(home)
    os.environ.setdefault(outbox.OUTBOX_VARIABLE, str(home.outbox))
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # of the children, whose lines go to logs
    quiet_mlflow()


def _follow(home: Home) -> None:
    """Let the records of a home's own MLflow follow where the home was moved to: they hold absolute places.

    Of a copied home they would still name the original's, and new files would go there. A folder that is no home's
    stays as it is: it may be shared.

    Raises:
        CalmError: The records cannot be changed.
    """
    if tracking_uri(home) != _own_uri(home) or not home.mlflow_database.exists():
        return
    new = home.mlflow_artifacts.as_uri()
    with explained(_own_uri(home)), closing(sqlite3.connect(home.mlflow_database)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master").fetchall()}
        if "experiments" not in tables:  # it is new, and MLflow has not filled it yet
            return
        experiments = database.execute(
            "SELECT artifact_location FROM experiments WHERE typeof(artifact_location) = 'text'"
        ).fetchall()
        for old in {location for (location,) in experiments if location != new and _is_of_a_home(location, home)}:
            for table, column in _LOCATIONS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
            old_database = _folder_of(old).parent / home.mlflow_database.name
            outbox.move(home.outbox, str(old_database), str(home.mlflow_database))


def _is_of_a_home(location: object, home: Home) -> bool:
    """Whether a place of artifacts is that of a home, which may be no longer there."""
    folder = _folder_of(location)
    # Of a Path, the question is an error where nothing may be read, as in the home of the user whose copy this is.
    is_home = not os.path.exists(folder) or os.path.exists(folder.parent / home.mlflow_database.name)  # noqa: PTH110
    return str(location).startswith("file:") and folder.name == home.mlflow_artifacts.name and is_home


def _folder_of(location: object) -> Path:
    return Path(unquote(urlsplit(str(location)).path))


def end_open_stages(parent: Run, status: str) -> None:
    """End the stages' runs whose processes were killed before they could do so."""
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    still_open = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}' and attributes.status = 'RUNNING'"
    with mlflow_answers():
        client = MlflowClient()
        experiment_id = client.get_run(parent.run_id).info.experiment_id
        for run in client.search_runs([experiment_id], still_open):
            if STAGE_TAG in run.data.tags:
                client.set_terminated(run.info.run_id, status)
