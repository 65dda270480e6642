"""MLflow: one parent run for a pipeline run, one child run for each stage.

A stage logs when MLFLOW_TRACKING_URI is set. The parent's id comes from the environment, never through a pipeline
parameter, so that it takes no part in a cache key: CALM_PARENT_RUN_ID of `calm run`, else MLflow's own MLFLOW_RUN_ID,
in which Kubeflow Pipelines' MLflow plugin names the run that it has made for the task.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from calm_core.errors import CalmError, Interrupted
from calm_core.shown import brief, by_dotted_name, lines_of
from calm_core.telemetry.delivery import Delivery
from calm_core.telemetry.mlflow_store import (
    TRACKING_URI_VARIABLE,
    outlasting,
    place_of,
    reach_mlflow,
    tracking_place,
    wait_for_mlflow,
)
from calm_core.telemetry.outbox import (
    MOST_METRICS,
    MOST_VALUES,
    End,
    Metrics,
    Outbox,
    Parameters,
    Record,
    Status,
    Tags,
    Text,
    now_milliseconds,
    outbox_folder,
)
from calm_core.telemetry.progress import report

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

EXPERIMENT_VARIABLE, EXPERIMENT_ID_VARIABLE = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"
PARENT_RUN_VARIABLE, RUN_VARIABLE = "CALM_PARENT_RUN_ID", "MLFLOW_RUN_ID"
KUBEFLOW_RUN_VARIABLE = "CALM_KUBEFLOW_RUN"
"""Kubeflow's id of the pipeline's run that a pod belongs to."""
COMMAND_VARIABLE = "CALM_RUN_COMMAND"
"""The command that began the pipeline's run, for people."""
STAGE_TAG = "calm.stage"
KUBEFLOW_RUN_TAG = "calm.kubeflow_run"
DIGEST_TAG = "calm.artifact_digest"
DEFAULT_EXPERIMENT = "calm"
REGISTERED = ("models:", "runs:", "mlflow-artifacts:")
"""How URIs begin that MLflow resolves."""
FLUSH_SECONDS, FLUSH_SECONDS_AFTER_FAILURE = 20.0, 5.0
"""How long a run that ends is waited for until MLflow knows all of it; whoever stopped it does not wait long."""

_Value = TypeVar("_Value")
_MAX_PARAMETER_LENGTH = 6000  # MLflow refuses longer values


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as `section.key` -> text, the form of MLflow parameters."""
    return {name: lines_of(str(value))[:_MAX_PARAMETER_LENGTH] for name, value in by_dotted_name(values)}


class Run:
    """One MLflow run, or nothing where no tracking server is named (then every call does nothing).

    What it is told is kept in an outbox on this machine, and sent from there: no call fails, or waits for MLflow, but
    the last one for some seconds. The process that made the run sends it all; the others of this machine hand on.

    Args:
        run_id: MLflow's id; empty for the null run.
        stage: Who says that MLflow is away.
    """

    def __init__(self, run_id: str = "", stage: str = "") -> None:
        self.run_id = run_id
        self._stage = stage
        self._outbox: Outbox | None = None
        self._delivery: Delivery | None = None
        self._lost = 0
        uri = os.environ.get(TRACKING_URI_VARIABLE)
        if run_id and uri:
            self._outbox = Outbox(place_of(uri), run_id)
            if self._outbox.take():
                self._delivery = Delivery(uri, stage, self._outbox)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.log_points([(step, metrics)])

    def log_points(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log metrics of several steps, in their order."""
        now = now_milliseconds()
        self._tell(
            Metrics(time=now, step=step, values={name: float(value) for name, value in part.items()})
            for step, metrics in points
            for part in _parts(metrics, MOST_METRICS)
        )

    def log_parameters(self, values: Mapping[str, Any]) -> None:
        self._tell(Parameters(values=part) for part in _parts(flatten(values), MOST_VALUES))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        shown = {key: lines_of(value) for key, value in tags.items()}
        self._tell(Tags(values=part) for part in _parts(shown, MOST_VALUES))

    def log_text(self, text: str, name: str) -> None:
        self._tell([Text(name=name, text=text)])

    def end(self, status: Status, seconds: float) -> bool:
        """Tell how the run has ended, and wait until MLflow knows all of it.

        Args:
            status: How.
            seconds: How long that is waited for at most. What is left then, a later command sends.

        Returns:
            Whether MLflow knows.
        """
        self._tell([End(time=now_milliseconds(), status=status)])
        return self.close(seconds)

    def close(self, seconds: float) -> bool:
        """Tell no more from here, though the run may go on; waits as `end` does, where this process sends."""
        self._tell([])
        all_sent = self._delivery is None or self._delivery.end(seconds)
        if self._outbox and (lost := self._outbox.in_memory):
            self._say_lost(lost)
        return all_sent

    def _tell(self, records: Iterable[Record]) -> None:
        if self._outbox is None:
            return
        self._outbox.add(*records)
        if self._outbox.lost and not self._lost:
            self._say_lost(self._outbox.lost)
        self._lost = self._outbox.lost

    def _say_lost(self, number: int) -> None:
        report(self._stage, note=f"{outbox_folder()}: has no room for {number:,} records; MLflow does not get them")


def _parts(values: Mapping[str, _Value], most: int) -> Iterator[dict[str, _Value]]:
    items = list(values.items())
    return (dict(items[start : start + most]) for start in range(0, len(items), most))


def parent_run_id() -> str:
    """The MLflow run below which this process records its own; empty where there is none."""
    return os.environ.get(PARENT_RUN_VARIABLE) or os.environ.get(RUN_VARIABLE, "")


def kubeflow_run() -> dict[str, str]:
    """A tag with the run of the pipeline in a cluster, as Kubeflow knows it; none on one machine."""
    run = os.environ.get(KUBEFLOW_RUN_VARIABLE, "")
    return {KUBEFLOW_RUN_TAG: run} if run else {}


def start_run(name: str, tags: Mapping[str, str]) -> Run:
    """Start an MLflow run, below the parent run and in its experiment if there is one; the null run without a server.

    MLflow has answered for a parent's run already. If it does not now, it may be restarting, and is waited for.

    Raises:
        CalmError: MLflow does not answer, there is no such parent, or the experiment has been deleted.
    """
    if not os.environ.get(TRACKING_URI_VARIABLE):
        return Run()
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    parent = parent_run_id()
    if parent:
        wait_for_mlflow(name)
    else:
        reach_mlflow()
    all_tags = {**tags, **({MLFLOW_PARENT_RUN_ID: parent} if parent else {})}

    def create() -> str:
        client = MlflowClient()
        if parent:
            experiment = _active(client, _experiment_of(client, parent))
        elif number := os.environ.get(EXPERIMENT_ID_VARIABLE) if not os.environ.get(EXPERIMENT_VARIABLE) else "":
            experiment = _active(client, client.get_experiment(number))
        else:
            experiment = experiment_id(client, os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT)
        return str(client.create_run(experiment, tags=all_tags, run_name=name).info.run_id)

    return Run(outlasting(name, create), name)


def _experiment_of(client: "MlflowClient", run_id: str) -> "Experiment":
    """The experiment of a parent's run."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(client.get_run(run_id).info.experiment_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        variable = PARENT_RUN_VARIABLE if os.environ.get(PARENT_RUN_VARIABLE) else RUN_VARIABLE
        raise CalmError(
            f"{variable} {brief(run_id)}: there is no such run in {tracking_place()}; name one that is there, or unset "
            f"{variable} to record this without a run above it"
        ) from None


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
    return _active(client, found)


def _active(client: "MlflowClient", experiment: "Experiment") -> str:
    """The id of an experiment.

    Raises:
        CalmError: It has been deleted.
    """
    if experiment.lifecycle_stage != "active":
        raise CalmError(
            f"{tracking_place()}: the experiment {brief(experiment.name)} has been deleted; choose another with "
            f"--set experiment=NAME, or bring it back with `mlflow experiments restore -x {experiment.experiment_id}` "
            f"and this {TRACKING_URI_VARIABLE}: {client.tracking_uri}"
        )
    return str(experiment.experiment_id)


@contextmanager
def stage_run(stage: str, config: Mapping[str, Any]) -> Iterator[Run]:
    """A stage's MLflow run: its settings as parameters; finished, failed or killed with the block."""
    run = start_run(stage, {STAGE_TAG: stage, **kubeflow_run()})
    try:
        run.log_parameters(config)
        yield run
    except BaseException as error:  # SystemExit too: no run may stay "running" for ever
        run.end(status_of(error), FLUSH_SECONDS_AFTER_FAILURE)
        raise
    run.end("FINISHED", FLUSH_SECONDS)


def status_of(error: BaseException) -> Status:
    """How a run has ended that an error has ended: what was stopped has not failed.

    Ctrl-C, a signal and an exit that somebody has asked for are no kind of Exception.
    """
    return "FAILED" if isinstance(error, Exception) and not isinstance(error, Interrupted) else "KILLED"
