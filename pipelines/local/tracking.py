"""MLflow of the runs on one machine: a SQLite file, unless MLFLOW_TRACKING_URI names a server."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from calm_core.errors import CalmError
from calm_core.telemetry.mlflow_run import (
    EXPERIMENT_VARIABLE,
    STAGE_TAG,
    TRACKING_URI_VARIABLE,
    Run,
    mlflow_answers,
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
        CalmError: MLflow does not answer.
    """
    _follow(home)
    os.environ[TRACKING_URI_VARIABLE] = tracking_uri(home)
    os.environ[EXPERIMENT_VARIABLE] = experiment
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    embedded = tracking_uri(home).startswith(_EMBEDDED_SCHEME)
    with mlflow_answers():
        client = MlflowClient()
        if client.get_experiment_by_name(experiment) is None:
            client.create_experiment(experiment, artifact_location=home.mlflow_artifacts.as_uri() if embedded else None)


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
    try:
        with closing(sqlite3.connect(home.mlflow_database)) as database, database:
            experiments = database.execute("SELECT artifact_location FROM experiments").fetchall()
            for old in {location for (location,) in experiments if location != new and _is_of_a_home(location, home)}:
                for table, column in _LOCATIONS:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
    except sqlite3.Error as error:
        raise CalmError(
            f"{home.mlflow_database}: cannot be read, or does not follow where its folder was moved to ({error}); "
            "move the folder back, or delete this file: models are then registered anew"
        ) from None


def _is_of_a_home(location: str, home: Home) -> bool:
    """Whether a place of artifacts is that of a home, which may be no longer there."""
    folder = Path(unquote(urlsplit(location).path))
    is_home = not folder.exists() or (folder.parent / home.mlflow_database.name).exists()
    return location.startswith("file:") and folder.name == home.mlflow_artifacts.name and is_home


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


def require_store(home: Home) -> None:
    """Make sure that there is something to read.

    Raises:
        CalmError: No run has been made in this home, and no other MLflow is named; or its records are unusable.
    """
    if not os.environ.get(TRACKING_URI_VARIABLE) and not home.mlflow_database.exists():
        raise CalmError(f"{home.path}: no run here yet; `calm run` trains and registers a model")
    _follow(home)
