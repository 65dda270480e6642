"""Runs in the cluster: what there is, how far each stage is, what it said, and its end."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal

from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

from calm_core.errors import CalmError
from calm_core.shown import shortened
from calm_core.store import storage
from pipelines.cluster.client import Cluster
from pipelines.cluster.connection import Refused
from pipelines.cluster.submit import find_experiment

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
_OF_KUBEFLOW = re.compile(r".*-driver|executor|root|entrypoint|iteration.*|for-loop-\d+|condition-.*|.*\([\d:]+\)|")
"""Tasks that are Kubeflow's own work, and the tries of one that is retried."""
_ENDS: dict[str, str] = {"SUCCEEDED": "done", "SKIPPED": "done", "FAILED": "failed", "CANCELED": "stopped"}
_FROM_CACHE_SECONDS = 1.0
"""No pod starts, works and ends in so little time: such a task had no pod."""
_TEMPLATES = ("system-container-impl", "retry-system-container-impl")
_MOST_TRIES = 16
_QUIET_SECONDS = 3600
"""How long a pod that works may print nothing."""
_POD = re.compile(r"\.([^.()]+)(?:\(\d+\))?\.executor(?:\(\d+\))?$")
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LAST_BYTES = 256 << 10
_OF_A_STAGE = "error: "


@dataclass(frozen=True)
class StageState:
    """How far a stage is.

    Attributes:
        started, ended: Seconds since the epoch; None where it has not.
        tasks, finished: Of Kubeflow.
        reason: Why it failed, as far as Kubeflow says so.
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
    """A run, as Kubeflow tells of it."""

    told: V2beta1Run

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
        return _seconds(self.told.created_at)

    @property
    def ended(self) -> float | None:
        return _seconds(self.told.finished_at) if self.has_ended else None

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
    def tasks(self) -> list[V2beta1PipelineTaskDetail]:
        details = self.told.run_details
        return [task for task in (details and details.task_details) or () if task]

    @property
    def nodes(self) -> set[str]:
        """Ids of Argo's nodes: the workflow's name and a number."""
        return {str(child.pod_name or "") for task in self.tasks for child in task.child_tasks or () if child}

    @property
    def own_tasks(self) -> list[V2beta1PipelineTaskDetail]:
        """Those that are components: neither Kubeflow's own work nor the workflow itself."""
        workflows = {node.rpartition("-")[0] for node in self.nodes}
        return [
            task
            for task in self.tasks
            if not _OF_KUBEFLOW.fullmatch(_name_of(task)) and _name_of(task) not in workflows
        ]

    @property
    def stages(self) -> list[StageState]:
        """Those that have begun, in the order of a run on one machine; what a pipeline has beside ours comes last."""
        by_stage: dict[str, list[V2beta1PipelineTaskDetail]] = {stage: [] for stage in _STAGE_OF.values()}
        for task in self.own_tasks:
            by_stage.setdefault(stage_of(_name_of(task)), []).append(task)
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
    """A run, by its id.

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
    return ClusterRun(told)


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
    begun: dict[str, bool] = {}  # whether a pod has worked, in the order of the tasks
    for task in sorted(run.own_tasks, key=lambda task: _seconds(task.start_time) or 0.0):
        name = _name_of(task)
        if wanted in ("", name, stage_of(name)):
            begun[name] = begun.get(name, False) or not _is_cached(task)
    if not begun:
        known = ", ".join(state.stage for state in run.stages) or "none yet"
        raise CalmError(f"{wanted or run.id}: no such stage of this run has begun; begun have: {shortened(known, 300)}")
    pods, lost = _pods(run), []
    for name in (name for name, has_worked in begun.items() if has_worked):
        found = False
        for pod in pods.get(name, ()):
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


def _pods(run: ClusterRun) -> dict[str, list[str]]:
    """Names of the pods of tasks, by the tasks' names.

    Kubeflow's API names no pod. It tells the ids of Argo's nodes, each a hash of the node's name, which is a path of
    names that it tells too; so the paths are walked down, as far as ids confirm them.
    """
    ids = run.nodes
    workflows = {name.rpartition("-")[0] for name in ids}
    if len(workflows) != 1:
        return {}
    workflow = workflows.pop()
    hashes = {int(name.rpartition("-")[2]) for name in ids if name.rpartition("-")[2].isdecimal()}
    steps = {f".{_name_of(task)}".encode() for task in run.tasks} | {f"({n})".encode() for n in range(_MOST_TRIES)}
    found = {workflow.encode(): _fnv(workflow.encode())}
    waiting = list(found)
    while waiting:
        path = waiting.pop()
        for step in steps:
            number = _fnv(step, found[path])
            if number in hashes and path + step not in found:
                found[path + step] = number
                waiting.append(path + step)
    pods: dict[str, list[str]] = {}
    for path in sorted(found):
        is_retried = any(path + f"({n})".encode() in found for n in range(_MOST_TRIES))
        if (of_task := _POD.search(path.decode(errors="replace"))) and not is_retried:
            pods.setdefault(of_task[1], []).extend(f"{workflow}-{template}-{found[path]}" for template in _TEMPLATES)
    return pods


def _fnv(text: bytes, so_far: int = 0x811C9DC5) -> int:
    """The hash FNV-1a of 32 bits, by which Argo names its nodes, gone on from that of what comes before."""
    for byte in text:
        so_far = (so_far ^ byte) * 0x01000193 & 0xFFFFFFFF
    return so_far


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


def _name_of(task: V2beta1PipelineTaskDetail) -> str:
    return str(task.display_name or "")


def _state_of(stage: str, tasks: Sequence[V2beta1PipelineTaskDetail]) -> StageState:
    """How far a stage is, of whose tasks some may not have begun."""
    states = [str(task.state or "") for task in tasks]
    finished = sum(state in ("SUCCEEDED", "SKIPPED") for state in states)
    starts = [start for task in tasks if (start := _seconds(task.start_time))]
    ends = [end for task in tasks if (end := _seconds(task.end_time))]
    is_whole = stage != "prepare" or any(_name_of(task) == _LAST_OF_PREPARING for task in tasks)
    state: State = "running" if starts else "waiting"
    if any(each in ("FAILED", "CANCELED") for each in states):
        state = "failed"
    elif finished == len(tasks) and is_whole:
        state = "cached" if all(_is_cached(task) for task in tasks if _name_of(task) != _NEVER_CACHED) else "done"
    reason = next((str(task.error.message or "") for task in tasks if task.error), "")
    has_ended = state not in ("running", "waiting") and bool(ends)
    return StageState(
        stage, state, min(starts, default=None), max(ends) if has_ended else None, len(tasks), finished, reason
    )


def _is_cached(task: V2beta1PipelineTaskDetail) -> bool:
    start, end = _seconds(task.start_time), _seconds(task.end_time)
    took = None if start is None or end is None else end - start
    return str(task.state) == "SKIPPED" or (
        str(task.state) == "SUCCEEDED" and took is not None and took <= _FROM_CACHE_SECONDS
    )


def _seconds(time: datetime | None) -> float | None:
    """Seconds since the epoch; None for a moment that has not come, of which Kubeflow says 1970 or year 1."""
    if time is None:
        return None
    seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return seconds if seconds > 0 else None
