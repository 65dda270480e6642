"""How long the stages of a run have worked, as their runs in MLflow say it."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from calm_core.errors import CalmError
from calm_core.evaluation.report import MAIN_STAGES
from calm_core.store.facts import StageTime
from calm_core.telemetry.mlflow_run import DIGEST_TAG, STAGE_TAG
from calm_core.telemetry.mlflow_store import mlflow_answers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_FIRST = MAIN_STAGES[0]


def stage_times(made: Mapping[str, str], run_id: str, parent: str = "") -> list[StageTime]:
    """The stages of a run, with their times.

    Those that have a run below the pipeline's were at work; the others were answered from the cache, and their time is
    that of the newest run that has made the same.

    Args:
        made: The digest of what each stage has made, in their order.
        run_id: MLflow's id of a run in their experiment; empty where there is none.
        parent: That of the pipeline's run; empty where there is none, so that nobody knows what was cached.
    """
    if run_id:
        from mlflow import MlflowClient  # import costs seconds: only where it is used

        with suppress(CalmError), mlflow_answers():  # its being away costs times, not the page
            client = MlflowClient()
            experiment = client.get_run(run_id).info.experiment_id
            return [_time(client, experiment, stage, digest, parent) for stage, digest in made.items()]
    return [StageTime(stage=stage) for stage in made]


def _time(client: "MlflowClient", experiment: str, stage: str, digest: str, parent: str) -> StageTime:
    made_it = f"tags.`{STAGE_TAG}` = '{stage}' AND tags.`{DIGEST_TAG}` = '{digest}'"
    found = client.search_runs([experiment], made_it, order_by=["attributes.start_time DESC"], max_results=100)
    ended = [run for run in found if run.info.end_time]
    run = next((run for run in ended if _parent_of(run) == parent), ended[0] if ended else None)
    if run is None:
        return StageTime(stage=stage)
    begin = run.info.start_time
    if stage == _FIRST and (pipeline := _parent_of(run)):  # its steps before the last one have no runs
        begin = client.get_run(pipeline).info.start_time
    seconds = max(0.0, (run.info.end_time - begin) / 1000)
    return StageTime(stage=stage, seconds=seconds, cached=bool(parent) and _parent_of(run) != parent)


def _parent_of(run: "Run") -> str:
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    return str(run.data.tags.get(MLFLOW_PARENT_RUN_ID, ""))
