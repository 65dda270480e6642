"""Runs in the cluster: what there is, how far each stage is, what it said, and its end."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from kfp_server_api import V2beta1Run

from calm_core.errors import CalmError
from calm_core.shown import shortened
from calm_core.store import storage
from pipelines.cluster.client import Cluster
from pipelines.cluster.connection import Refused
from pipelines.cluster.submit import find_experiment
from pipelines.cluster.workflow import Task, read_tasks, seconds

State = Literal["waiting", "running", "done", "cached", "failed"]

_STAGE_OF = {
    "plan-partitions": "prepare",
    "scan-partition": "prepare",
    "find-duplicates": "prepare",
    "train-tokenizer": "prepare",
    "tokenize-partition": "prepare",
    "merge-partitions": "prepare",
    "train-autoencoder": "train-autoencoder",
    "train-calm": "train-calm",
    "evaluate": "evaluate",
    "register-model": "register",
    "train-transformer": "train-transformer",
    "evaluate-2": "evaluate-transformer",
    "report": "report",
    "report-2": "report",
}
"""The stage that each of Kubeflow's tasks belongs to, in the order of a run on one machine."""
_NEVER_CACHED, _LAST_OF_PREPARING = "plan-partitions", "merge-partitions"
_ENDS: dict[str, str] = {"SUCCEEDED": "done", "SKIPPED": "done", "FAILED": "failed", "CANCELED": "stopped"}
_QUIET_SECONDS = 3600
"""How long a pod that works may print nothing."""
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LAST_BYTES = 256 << 10
_OF_A_STAGE = "error: "


@dataclass(frozen=True)
class StageState:
    """How far a stage is.

    Attributes:
        started, ended: Seconds since the epoch; None where it has not.
        tasks, finished: Of Kubeflow.
        reason: Why it failed, as far as Argo says so.
    """

    stage: str
    state: State
    started: float | None
    ended: float | None
    tasks: int
    finished: int
    reason: str = ""


@dataclass(frozen=True)
class ClusterRun:
    """A run, as Kubeflow tells of it.

    Attributes:
        tasks: Those that have begun; a run of a listing has none.
        trouble: Why they cannot be read.
    """

    told: V2beta1Run
    tasks: tuple[Task, ...] = ()
    trouble: str = ""

    @property
    def id(self) -> str:
        return str(self.told.run_id or "")

    @property
    def name(self) -> str:
        return str(self.told.display_name or "")

    @property
    def state(self) -> str:
        """running, done, failed, stopped, or what Kubeflow calls it."""
        state = str(self.told.state or "PENDING")
        return _ENDS.get(state, {"PENDING": "waiting", "CANCELING": "stopping"}.get(state, state.lower()))

    @property
    def has_ended(self) -> bool:
        return str(self.told.state or "") in _ENDS

    @property
    def started(self) -> float | None:
        return seconds(self.told.created_at)

    @property
    def ended(self) -> float | None:
        return seconds(self.told.finished_at) if self.has_ended else None

    @property
    def root(self) -> str:
        """Where it keeps what it makes; empty: as Kubeflow is set up."""
        config = self.told.runtime_config
        return str((config and config.pipeline_root) or "")

    @property
    def parameters(self) -> dict[str, Any]:
        config = self.told.runtime_config
        return dict((config and config.parameters) or {})

    @property
    def stages(self) -> list[StageState]:
        """Those that have begun, in the order of a run on one machine; what a pipeline has beside ours comes last."""
        by_stage: dict[str, list[Task]] = {stage: [] for stage in _STAGE_OF.values()}
        for task in self.tasks:
            by_stage.setdefault(stage_of(task.name), []).append(task)
        return [_state_of(stage, tasks) for stage, tasks in by_stage.items() if tasks]


def all_runs(cluster: Cluster, most: int = 100) -> Iterator[ClusterRun]:
    """Runs of our experiment, the newest first, those that were archived left out.

    Raises:
        CalmError: They cannot be read.
    """
    if not (experiment := find_experiment(cluster)):
        return
    for told in cluster.pages(
        "listing runs",
        cluster.kfp.runs.run_service_list_runs,
        "runs",
        most=most,
        experiment_id=experiment,
        sort_by="created_at desc",
    ):
        if str(told.storage_state) != "ARCHIVED":
            yield ClusterRun(told)


def find_run(cluster: Cluster, wanted: str) -> ClusterRun:
    """The run that an id means, the beginning of one, or a name.

    Raises:
        CalmError: None, or several.
    """
    if not _RUN_ID.fullmatch(wanted):
        found = [run for run in all_runs(cluster) if run.id.startswith(wanted) or run.name == wanted]
        match found:
            case [run]:
                wanted = run.id
            case []:
                raise CalmError(f"{wanted}: no run has this name, or an id that begins so; `calm runs list` lists them")
            case several:
                raise CalmError(f"{wanted}: {len(several)} runs are called so; give more of the id of one")
    return get_run(cluster, wanted)


def get_run(cluster: Cluster, run_id: str) -> ClusterRun:
    """A run and its tasks, by its id.

    Raises:
        CalmError: There is none, or it cannot be read.
    """
    try:
        told = cluster.call("reading the run", cluster.kfp.runs.run_service_get_run, run_id)
    except Refused as error:
        if error.status == 404:
            raise CalmError(f"{run_id}: {cluster.host} has no run of this id; `calm runs list` lists them") from None
        raise
    if told.run_id != run_id:
        raise CalmError(f"{run_id}: {cluster.host} tells of another run; its answer is damaged")
    try:
        return ClusterRun(told, read_tasks(cluster, run_id))
    except CalmError as error:  # how the run ends is known all the same
        return ClusterRun(told, trouble=f"its stages cannot be read ({error})")


def terminate(cluster: Cluster, run: ClusterRun) -> None:
    """End a run.

    Raises:
        CalmError: It has ended, or may not be ended.
    """
    if run.has_ended:
        raise CalmError(f"{run.id}: has ended already ({run.state})")
    cluster.call("stopping the run", cluster.kfp.runs.run_service_terminate_run, run.id)


def stage_of(task: str) -> str:
    """The stage that a task belongs to; of another pipeline's, itself."""
    return _STAGE_OF.get(task, task)


def logs(
    cluster: Cluster, run: ClusterRun, wanted: str = "", follow: bool = False
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """What tasks have printed: the task's name, and the text in parts.

    It comes from the pods, or from storage once they have gone. Tasks that were answered from the cache have none.

    Args:
        cluster: Where.
        run: Whose.
        wanted: A stage or a task; empty: all of them.
        follow: Whether to wait for more, as long as a pod works.

    Raises:
        CalmError: No task is called so, or nothing is left of what it printed.
    """
    if run.trouble:
        raise CalmError(f"{run.id}: {run.trouble}")
    begun: dict[str, list[str]] = {}  # pods by task, in the order of the tasks
    for task in run.tasks:
        if wanted in ("", task.name, stage_of(task.name)):
            begun.setdefault(task.name, []).extend(task.pods)
    if not begun:
        known = ", ".join(state.stage for state in run.stages) or "none yet"
        raise CalmError(f"{wanted or run.id}: no such stage of this run has begun; begun have: {shortened(known, 300)}")
    lost = []
    for name, pods in begun.items():
        found = not pods
        for pod in pods:
            if parts := _pod_log(cluster, run, pod, follow):
                found = True
                yield name, parts
        if not found:
            try:
                yield from ((name, iter((storage.read(uri),))) for uri in _kept_logs(cluster, run, name))
            except CalmError as error:
                lost.append(f"{name}: its pods have gone, and what Kubeflow keeps of them cannot be read ({error})")
    if lost:
        raise CalmError("; ".join(lost))


def reason_of(cluster: Cluster, run: ClusterRun) -> str:
    """Why a run failed: what its first failed stage said last; empty where no stage failed."""
    if run.trouble:
        return run.trouble
    failed = next((state for state in run.stages if state.state == "failed"), None)
    if failed is None:
        return ""
    said = failed.reason
    with suppress(CalmError):
        for _, parts in logs(cluster, run, failed.stage):
            tail = b""
            for part in parts:
                tail = (tail + part)[-_LAST_BYTES:]
            for line in tail.decode(errors="replace").splitlines():
                said = line.removeprefix(_OF_A_STAGE) if line.startswith(_OF_A_STAGE) else said
    said = shortened(said, 500) or "it did not say why"
    return said if said.startswith(f"{failed.stage}: ") else f"{failed.stage}: {said}"


def _pod_log(cluster: Cluster, run: ClusterRun, pod: str, follow: bool) -> Iterator[bytes] | None:
    """What a pod has printed, from Kubeflow's API or else from the server of its page; None where neither has it."""
    for path, query in (
        (f"/apis/v1alpha1/runs/{run.id}/nodes/{pod}/log", [("follow", "true")] if follow else []),
        ("/k8s/pod/logs", [("podname", pod), ("runid", run.id), ("podnamespace", cluster.namespace)]),
    ):
        try:
            parts = cluster.stream(path, query, _QUIET_SECONDS if follow else 60)
            first = next(parts, b"")
        except CalmError:
            continue
        if not _is_error(first):
            return chain((first,), parts)
    return None


def _is_error(text: bytes) -> bool:
    """Whether a log is Kubeflow's word that there is none, which comes with the status of success."""
    try:
        told = json.loads(text)
    except ValueError:
        return False
    return isinstance(told, dict) and "error_message" in told


def _kept_logs(cluster: Cluster, run: ClusterRun, task: str) -> list[str]:
    """Copies of a task's log that Kubeflow keeps beside its outputs, one for each try."""
    source = run.told.pipeline_version_reference
    if not run.root or not source or not source.pipeline_id:
        raise CalmError("where the run keeps its files is Kubeflow's own setting")
    get = cluster.kfp.pipelines.pipeline_service_get_pipeline
    pipeline = cluster.call("reading the pipeline", get, source.pipeline_id)
    folder = storage.join(run.root, str(pipeline.name or pipeline.display_name), run.id, task)
    if found := sorted(storage.glob(f"{folder}/*/executor-logs*")):
        return found
    raise CalmError(f"{folder} has no executor-logs")


def _state_of(stage: str, tasks: Sequence[Task]) -> StageState:
    """How far a stage is, of whose tasks some may not have begun."""
    finished = sum(task.state in ("done", "cached") for task in tasks)
    starts = [task.started for task in tasks if task.started]
    ends = [task.ended for task in tasks if task.ended]
    is_whole = stage != "prepare" or any(task.name == _LAST_OF_PREPARING for task in tasks)
    state: State = "running" if starts else "waiting"
    if any(task.state == "failed" for task in tasks):
        state = "failed"
    elif finished == len(tasks) and is_whole:
        state = "cached" if all(task.state == "cached" for task in tasks if task.name != _NEVER_CACHED) else "done"
    reason = next((task.message for task in tasks if task.message), "")
    has_ended = state not in ("running", "waiting") and bool(ends)
    return StageState(
        stage, state, min(starts, default=None), max(ends) if has_ended else None, len(tasks), finished, reason
    )
