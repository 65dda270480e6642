"""How long the stages of a run have worked: as MLflow's runs say it, or else what the stages have made."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from calm_core.errors import CalmError
from calm_core.evaluation.report import BASELINE_STAGES, MAIN_STAGES
from calm_core.store.facts import StageTime
from calm_core.telemetry.mlflow_run import STAGE_TAG
from calm_core.telemetry.mlflow_store import mlflow_answers

if TYPE_CHECKING:
    from mlflow.entities import Run

_FIRST = MAIN_STAGES[0]


def stage_times(parent: str, earlier: Mapping[str, float]) -> list[StageTime]:
    """The stages of a run in their order, with their times.

    A stage that has a run of its own below the pipeline's was at work; the others were answered from the cache, if
    there is such a run at all.

    Args:
        parent: MLflow's id of the pipeline's run; empty where there is none.
        earlier: Seconds, by stage, that the artifacts tell of, whenever they were made.
    """
    measured: dict[str, float] = {}
    if parent:
        with suppress(CalmError):  # MLflow being away costs times, not the page
            measured = _measured(parent)
    names = [*MAIN_STAGES, *(name for name in BASELINE_STAGES if name in earlier or name in measured)]
    return [
        StageTime(stage=name, seconds=measured[name])
        if name in measured
        else StageTime(stage=name, seconds=earlier.get(name) or None, cached=bool(measured))
        for name in names
    ]


def _measured(parent: str) -> dict[str, float]:
    """Seconds by stage, of those that have ended; of several tries the last one counts.

    Preparing begins with the pipeline, since its steps before the last one have no runs.
    """
    from mlflow import MlflowClient  # import costs seconds: only where it is used
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    with mlflow_answers():
        client = MlflowClient()
        pipeline = client.get_run(parent)
        below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'"
        found = client.search_runs([pipeline.info.experiment_id], below, order_by=["attributes.start_time ASC"])
    runs = {run.data.tags.get(STAGE_TAG, ""): run for run in found if run.info.end_time}
    return {stage: _seconds(run, pipeline if stage == _FIRST else run) for stage, run in runs.items()}


def _seconds(run: "Run", begin: "Run") -> float:
    return max(0.0, float(run.info.end_time - begin.info.start_time) / 1000)
