"""MLflow: one parent run for a pipeline run, one child run for each stage.

A stage logs when MLFLOW_TRACKING_URI is set. The parent's id comes from the environment, never through a pipeline
parameter, so that it takes no part in a cache key.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from calm_core.errors import CalmError, Interrupted, Stopped, first_line
from calm_core.shown import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
PARENT_RUN_VARIABLE = "CALM_PARENT_RUN_ID"
STAGE_TAG = "calm.stage"
DIGEST_TAG = "calm.artifact_digest"
DEFAULT_EXPERIMENT = "calm"
REGISTERED = ("models:/", "runs:/", "mlflow-artifacts:/")
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


def shown_tracking_uri() -> str:
    """Where MLflow keeps runs and models, without the password that its URI may hold."""
    import mlflow  # import costs seconds: only where it is used

    return redacted(mlflow.get_tracking_uri())


@contextmanager
def mlflow_answers() -> Iterator[None]:
    """Turn whatever MLflow raises into one line without a password: its messages may repeat the tracking URI.

    Raises:
        CalmError: MLflow has failed.
    """
    try:
        yield
    except CalmError:
        raise
    except Exception as error:  # those of its clients and databases have no common base
        reason = first_line(error)
        raise CalmError(
            f"{TRACKING_URI_VARIABLE} {shown_tracking_uri()}: MLflow does not answer ({reason}); check that it can be "
            "reached, then run the same command again",
            can_pass=True,
        ) from None


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
        from mlflow import MlflowClient  # import costs seconds: only where it is used

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
    """Start an MLflow run, below the pipeline's parent run if there is one; the null run without a tracking server."""
    if not os.environ.get(TRACKING_URI_VARIABLE):
        return Run()
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    experiment_name = os.environ.get(EXPERIMENT_VARIABLE, DEFAULT_EXPERIMENT)
    parent = os.environ.get(PARENT_RUN_VARIABLE)
    all_tags = {**tags, **({MLFLOW_PARENT_RUN_ID: parent} if parent else {})}
    with mlflow_answers():
        client = MlflowClient()
        experiment = client.get_experiment_by_name(experiment_name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(experiment_name)
        return Run(client, client.create_run(experiment_id, tags=all_tags, run_name=name).info.run_id)


@contextmanager
def stage_run(stage: str, config: Mapping[str, Any]) -> Iterator[Run]:
    """A stage's MLflow run: its settings as parameters; finished, failed or killed with the block."""
    run = start_run(stage, {STAGE_TAG: stage})
    run.log_parameters(config)
    try:
        yield run
    except BaseException as error:  # SystemExit too: no run may stay "running" for ever
        with suppress(CalmError):  # that MLflow is gone too must not hide why the stage ended
            run.end("KILLED" if isinstance(error, KeyboardInterrupt | Stopped | Interrupted) else "FAILED")
        raise
    run.end("FINISHED")
