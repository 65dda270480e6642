"""MLflow of the runs on one machine: a SQLite file, unless MLFLOW_TRACKING_URI names a server."""

import logging
import os

from calm_core.errors import CalmError, first_line
from calm_core.telemetry.mlflow_run import EXPERIMENT_VARIABLE, STAGE_TAG, TRACKING_URI_VARIABLE, Run
from pipelines.local.home import Home

_EMBEDDED_SCHEME = "sqlite:"


def tracking_uri(home: Home) -> str:
    """Where MLflow keeps runs and models."""
    return os.environ.get(TRACKING_URI_VARIABLE) or f"{_EMBEDDED_SCHEME}///{home.mlflow_database}"


def use_tracking(home: Home, experiment: str) -> None:
    """Point this process and its children to MLflow, and make the experiment if it is new.

    Raises:
        CalmError: MLflow does not answer.
    """
    os.environ[TRACKING_URI_VARIABLE] = tracking_uri(home)
    os.environ[EXPERIMENT_VARIABLE] = experiment
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    embedded = tracking_uri(home).startswith(_EMBEDDED_SCHEME)
    client = MlflowClient()
    try:
        if client.get_experiment_by_name(experiment) is None:
            client.create_experiment(experiment, artifact_location=home.mlflow_artifacts.as_uri() if embedded else None)
    except MlflowException as error:
        reason = first_line(error)
        raise CalmError(f"{TRACKING_URI_VARIABLE} {tracking_uri(home)}: MLflow does not answer ({reason})") from None


def end_open_stages(parent: Run, status: str) -> None:
    """End the stages' runs whose processes were killed before they could do so."""
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    client = MlflowClient()
    experiment_id = client.get_run(parent.run_id).info.experiment_id
    still_open = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], still_open):
        if STAGE_TAG in run.data.tags:
            client.set_terminated(run.info.run_id, status)


def require_store(home: Home) -> None:
    """Make sure that there is something to read.

    Raises:
        CalmError: No run has been made in this home, and no other MLflow is named.
    """
    if not os.environ.get(TRACKING_URI_VARIABLE) and not home.mlflow_database.exists():
        raise CalmError(f"{home.path}: no run here yet; `calm run` trains and registers a model")
