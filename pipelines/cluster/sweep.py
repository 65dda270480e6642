"""The runs of a sweep in a cluster: each is a run of the pipeline, named by content, and its scores lie in MLflow."""

import os
from collections.abc import Sequence

from calm_core.config import Config
from calm_core.errors import CalmError, ConfigError
from calm_core.store.artifact import digest_of
from calm_core.store.facts import Score
from calm_core.telemetry.mlflow_run import KUBEFLOW_RUN_TAG, STAGE_TAG
from calm_core.telemetry.mlflow_store import TRACKING_URI_VARIABLE, mlflow_answers, reach_mlflow, tracking_place
from pipelines.cluster.client import Cluster
from pipelines.cluster.runs import ClusterRun, all_runs
from pipelines.cluster.submit import Package, arguments, submit
from pipelines.sweeps.plan import ContentOf, Run
from pipelines.sweeps.results import NUMBERS, Result

SETTINGS = {"registry.promote": "never", "train_baseline": False}
"""Of all runs of a sweep: it looks for settings, and changes no champion."""
_MOST_RUNS = 100_000
_REPORT = "report"
"""The stage that no cache answers, so each run has its scores there."""


class ClusterSweep:
    """Submits runs that are not there, and collects those that have ended.

    Args:
        cluster: Where.
        package: The pipeline.
        root: As of `submit`.

    Attributes:
        at_work: Runs that have not ended, by name.
        submitted: How many were begun here.
    """

    def __init__(self, cluster: Cluster, package: Package, root: str) -> None:
        self._cluster, self._package, self._root = cluster, package, root
        self._there: dict[str, ClusterRun] = {}
        for run in all_runs(cluster, _MOST_RUNS):  # the newest first
            self._there.setdefault(run.name, run)
        self.at_work: dict[str, str] = {}
        self.submitted = 0

    def look(self, runs: Sequence[Run]) -> dict[str, Result]:
        """Results of the runs that have ended; those that are not there are begun.

        Raises:
            CalmError: Kubeflow or MLflow refuses something, or does not answer.
        """
        results = {}
        for run in runs:
            there = self._there.get(run.name)
            if there is None:
                values = arguments(run.config, self._root, self._package)
                self.at_work[run.name] = submit(self._cluster, self._package, values, self._root, run.name)
                self.submitted += 1
            elif not there.has_ended:
                self.at_work[run.name] = there.id
            elif there.state == "done":
                results[run.name] = _collected(run, there.id)
            else:
                results[run.name] = Result(run, evaluation=self._cluster.link(f"runs/details/{there.id}"))
        return results


def content_of(package: Package) -> ContentOf:
    """A digest of what a section's settings name: as they name it, since pods read it, and of what reads it."""

    def of(config: Config, section: str) -> str:
        named = [package.version, config.cluster.image, config.data.sources] if section == "data" else []
        return digest_of(named)

    return of


def require_mlflow() -> None:
    """Refuse a sweep whose scores could not be read.

    Raises:
        ConfigError: No server is named.
        CalmError: It does not answer.
    """
    if not os.environ.get(TRACKING_URI_VARIABLE):
        raise ConfigError(
            f"{TRACKING_URI_VARIABLE}: is not set; set it to the MLflow of the cluster, where the scores of runs lie"
        )
    reach_mlflow(to_read=True)


def _collected(run: Run, run_id: str) -> Result:
    """The scores of a run that has ended well, as MLflow has them."""
    from mlflow import MlflowClient

    with mlflow_answers():
        client = MlflowClient()
        experiments = [each.experiment_id for each in client.search_experiments()]
        found = client.search_runs(
            experiments, f"tags.`{KUBEFLOW_RUN_TAG}` = '{run_id}' and tags.`{STAGE_TAG}` = '{_REPORT}'"
        )
    scores = [each for each in found if "brierlm" in each.data.metrics]
    if not scores:
        raise CalmError(
            f"{tracking_place()}: has no scores of the run {run_id}, which has ended; look whether its pods reach this "
            "MLflow"
        )
    metrics = scores[0].data.metrics
    return Result(
        run,
        Score(value=metrics["brierlm"], low=metrics.get("brierlm_low"), high=metrics.get("brierlm_high")),
        {str(n): metrics[f"brier_{n}"] for n in range(1, 5)},
        numbers={name: metrics[name] for name in NUMBERS if name in metrics},
        evaluation=f"runs:/{scores[0].info.run_id}",
    )
