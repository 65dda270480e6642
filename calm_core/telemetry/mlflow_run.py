"""MLflow: one parent run for a pipeline run, one child run for each stage.

A stage logs when MLFLOW_TRACKING_URI is set. The parent's id comes from the environment, never through a pipeline
parameter, so that it takes no part in a cache key.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from calm_core.errors import CalmError, Interrupted
from calm_core.shown import brief, redacted
from calm_core.telemetry.mlflow_store import (
    TRACKING_URI_VARIABLE,
    mlflow_answers,
    quiet_mlflow,
    reach_mlflow,
    tracking_place,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
PARENT_RUN_VARIABLE = "CALM_PARENT_RUN_ID"
STAGE_TAG = "calm.stage"
DIGEST_TAG = "calm.artifact_digest"
DEFAULT_EXPERIMENT = "calm"
REGISTERED = ("models:", "runs:", "mlflow-artifacts:")
"""How URIs begin that MLflow resolves."""

_MAX_PARAMETER_LENGTH = 6000  # MLflow refuses longer values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` -> text, the form of MLflow parameters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = redacted(str(value))[:_MAX_PARAMETER_LENGTH]
    return flat


class Run:
    """One MLflow run, or nothing where no tracking server is named (then every call does nothing)."""

    def __init__(self, client: "MlflowClient | None" = None, run_id: str = "") -> None:
        self._client = client
        self.run_id = run_id

    @classmethod
    def existing(cls, run_id: str) -> "Run":
        """The run with this id at MLFLOW_TRACKING_URI; an empty id gives the null run."""
        if not run_id:
            return cls()
        quiet_mlflow()
        from mlflow import MlflowClient  # import costs seconds: only where it is used

        with mlflow_answers():
            return cls(MlflowClient(), run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        if self._client is None:
            return
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        with mlflow_answers():
            self._client.log_batch(
                self.run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()]
            )

    def log_parameters(self, values: Mapping[str, Any]) -> None:
        if self._client is None:
            return
        from mlflow.entities import Param

        with mlflow_answers():
            self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in flatten(values).items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        if self._client is None:
            return
        with mlflow_answers():
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, value)

    def log_text(self, text: str, name: str) -> None:
        if self._client is not None:
            with mlflow_answers():
                self._client.log_text(self.run_id, text, name)

    def end(self, status: str) -> None:
        if self._client is not None:
            with mlflow_answers():
                self._client.set_terminated(self.run_id, status)


def start_run(name: str, tags: Mapping[str, str]) -> Run:
    """Start an MLflow run, below the pipeline's parent run if there is one; the null run without a tracking server.

    Raises:
        CalmError: MLflow does not answer, or the experiment has been deleted.
    """
    if not os.environ.get(TRACKING_URI_VARIABLE):
        return Run()
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    parent = os.environ.get(PARENT_RUN_VARIABLE)
    if not parent:  # for which MLflow has answered already: if it is restarting now, that is waited for
        reach_mlflow()
    all_tags = {**tags, **({MLFLOW_PARENT_RUN_ID: parent} if parent else {})}
    with mlflow_answers():
        client = MlflowClient()
        experiment = experiment_id(client, os.environ.get(EXPERIMENT_VARIABLE, DEFAULT_EXPERIMENT))
        return Run(client, client.create_run(experiment, tags=all_tags, run_name=name).info.run_id)


def experiment_id(client: "MlflowClient", name: str, artifact_location: str | None = None) -> str:
    """The id of the experiment with a name; it is made if it is new.

    Args:
        client: Where it is looked for.
        name: Of the experiment.
        artifact_location: Where a new one keeps the files of its runs; None for where MLflow does.

    Raises:
        CalmError: It has been deleted, and its runs with it.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifact_location))
    if found.lifecycle_stage != "active":
        raise CalmError(
            f"{tracking_place()}: the experiment {brief(name)} has been deleted; choose another with "
            f"--set experiment=NAME, or bring it back with `mlflow experiments restore -x {found.experiment_id}` and "
            f"this {TRACKING_URI_VARIABLE}: {client.tracking_uri}"
        )
    return str(found.experiment_id)


@contextmanager
def stage_run(stage: str, config: Mapping[str, Any]) -> Iterator[Run]:
    """A stage's MLflow run: its settings as parameters; finished, failed or killed with the block."""
    run = start_run(stage, {STAGE_TAG: stage})
    try:
        run.log_parameters(config)
        yield run
    except BaseException as error:  # SystemExit too: no run may stay "running" for ever
        with suppress(CalmError):  # that MLflow is gone too must not hide why the stage ended
            run.end(status_of(error))
        raise
    run.end("FINISHED")


def status_of(error: BaseException) -> str:
    """How a run has ended that an error has ended: what was stopped has not failed.

    Ctrl-C, a signal and an exit that somebody has asked for are no kind of Exception.
    """
    return "FAILED" if isinstance(error, Exception) and not isinstance(error, Interrupted) else "KILLED"
