"""The Argo workflow of a run: its tasks that have begun, and their pods.

Kubeflow's own list of tasks (`task_details`) stops where Argo compresses the nodes of a workflow above 1 MiB; the
workflow that Kubeflow keeps, and tells by the older version of its API, goes on.
"""

import base64
import json
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from calm_core.errors import CalmError
from calm_core.shown import shortened
from pipelines.cluster.client import Cluster

TaskState = Literal["running", "done", "cached", "failed"]

_DRIVER, _EXECUTOR = "-driver", ".executor"
_OF_COMPONENTS = "system-container-executor"
"""How the templates of components' tasks end; pipelines, loops and conditions have others."""
_TRY = re.compile(r"(.*?)(?:\((\d+)\))?")
_POD = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}")
_LARGEST = 32 << 20
"""Bytes of a workflow, or of its nodes unpacked: by estimate 64 partitions have 4 to 9 MiB."""
_FAILED, _NOT_BEGUN = ("Failed", "Error"), ("Skipped", "Omitted")


@dataclass(frozen=True)
class Task:
    """A component's task that has begun, or what Kubeflow does before one and has failed.

    Attributes:
        started, ended: Seconds since the epoch; None where it has not.
        message: Why it failed, as far as Argo says so.
        pods: Their names, the last try's last; none where the cache answered.
    """

    name: str
    state: TaskState
    started: float | None
    ended: float | None
    message: str
    pods: tuple[str, ...]


class _Node(BaseModel):
    id: str
    name: str
    type: str
    label: str = Field("", alias="displayName")
    template: str = Field("", alias="templateName")
    phase: str = ""
    message: str = ""
    started: datetime | None = Field(None, alias="startedAt")
    finished: datetime | None = Field(None, alias="finishedAt")

    @property
    def workflow(self) -> str:
        return self.id.rpartition("-")[0]

    @property
    def pod(self) -> str:
        return f"{self.workflow}-{self.template}-{self.id.rpartition('-')[2]}"


class _Status(BaseModel):
    nodes: dict[str, _Node] = {}
    compressed: str = Field("", alias="compressedNodes")


class _Workflow(BaseModel):
    status: _Status = _Status()


class _Run(BaseModel):
    id: str


class _Runtime(BaseModel):
    workflow_manifest: str = ""


class _Answer(BaseModel):
    run: _Run
    pipeline_runtime: _Runtime = _Runtime()


_NODES = TypeAdapter(dict[str, _Node])


def read_tasks(cluster: Cluster, run_id: str) -> tuple[Task, ...]:
    """The tasks of a run, in the order in which they began.

    Raises:
        CalmError: They cannot be read, or are damaged.
    """
    told = cluster.get_json(f"/apis/v1beta1/runs/{run_id}")
    try:
        answer = _Answer.model_validate(told)
        if answer.run.id != run_id:
            raise ValueError
        manifest = answer.pipeline_runtime.workflow_manifest
        status = _Workflow.model_validate(_json(manifest)).status if manifest else _Status()
        return _tasks(status.nodes or (_unpacked(status.compressed) if status.compressed else {}))
    except ValueError:  # pydantic's, of base64 and of numbers; their texts repeat what they read
        raise CalmError(f"{cluster.host}: what it keeps of the run's workflow is damaged or too large") from None


def _unpacked(text: str) -> dict[str, _Node]:
    """Nodes as Argo compresses them.

    Raises:
        ValueError: They are damaged, or too large.
    """
    unpack = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        data = unpack.decompress(base64.b64decode(text, validate=True), _LARGEST)
    except zlib.error:
        raise ValueError from None
    if not unpack.eof:
        raise ValueError
    return _NODES.validate_python(_json(data))


def _json(text: str | bytes) -> Any:
    """What a JSON text holds, of which a parser may make twenty times its size.

    Raises:
        ValueError: It is none, or too large or deep.
    """
    if len(text) > _LARGEST:
        raise ValueError
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError from None


def _tasks(nodes: dict[str, _Node]) -> tuple[Task, ...]:
    by_name = {node.name: node for node in nodes.values()}
    pods: dict[str, list[tuple[int, _Node]]] = defaultdict(list)
    for node in nodes.values():
        if node.type == "Pod" and _POD.fullmatch(node.pod) and (match := _TRY.fullmatch(node.name)):
            pods[match[1]].append((int(match[2] or 0), node))
    tasks = []
    for node in nodes.values():
        has_failed = node.phase in _FAILED
        if node.label.endswith(_DRIVER) and has_failed:  # its task is omitted, and it stands for it
            name, work = node.label.removesuffix(_DRIVER), node
        elif node.template.endswith(_OF_COMPONENTS):
            name, work = node.label, by_name.get(node.name + _EXECUTOR, node)
        else:
            continue
        if node.phase in _NOT_BEGUN:
            continue
        tries = [each for _, each in sorted(pods[work.name], key=lambda pair: pair[0])]
        state: TaskState = "failed" if has_failed else "running"
        if node.phase == "Succeeded":
            state = "cached" if work.phase == "Skipped" else "done"
        messages = (each.message for each in (*tries[-1:], work, node) if has_failed)
        tasks.append(
            Task(
                name,
                state,
                seconds(node.started),
                seconds(node.finished),
                shortened(next(filter(None, messages), ""), 300),
                tuple(each.pod for each in tries),
            )
        )
    return tuple(sorted(tasks, key=lambda task: (task.started or 0.0, task.name)))


def seconds(time: datetime | None) -> float | None:
    """Seconds since the epoch; None for a moment that has not come, of which Kubeflow says 1970 or year 1."""
    if time is None:
        return None
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return since if since > 0 else None
