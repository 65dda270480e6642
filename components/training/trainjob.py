"""Training on nodes of a cluster: a launcher whose ranks run in a TrainJob of Kubeflow's Trainer.

The task that has it only waits. Image, environment and, unless others are asked for, resources and placement are those
of the task's own pod; how nodes are started, and what a lost one does, is the TrainingRuntime's.
"""

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from calm_core.config import TrainingConfig
from calm_core.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_SETTINGS, CalmError
from calm_core.shown import shortened, visible
from calm_core.telemetry.processes import SIGNALLED
from calm_core.training.launcher import EXIT_NO_MEETING, Ending, Launcher, requests_to_stop
from calm_core.training.log import TrainingLog
from components.training.kubernetes_api import AT_THE_START, WHILE_WAITING, KubernetesApi, Patience, Refusal
from components.training.pod_log import PodLog
from components.training.pods import (
    NODE,
    NODE_LABEL,
    ending_of,
    has_begun,
    is_running,
    number_of,
    why_lost,
    why_not_running,
)
from components.training.template import (
    GROUP,
    PART_OF,
    PART_OF_LABEL,
    SPEC_ANNOTATION,
    VERSION,
    Template,
    TrainJobSettings,
    name_of,
)

_POLL_SECONDS = 5.0
_LOOK_SECONDS = 30.0
"""Between two looks at all pods, where one is not running."""
_LAST_SECONDS = 15.0  # for the rest of a log
_LAST_LINES = 30
_DELETION = Patience(600.0, 60.0)


def launcher_of(config: TrainingConfig, values: Mapping[str, Any]) -> Launcher | None:
    """How a component starts the ranks of a training; None for torchrun in its own pod.

    Args:
        config: Settings of the training.
        values: Those of its TrainJob, a parameter of the component.

    Raises:
        ConfigError: A setting is refused, or there is no cluster.
    """
    from components.body import settings

    chosen = settings(TrainJobSettings, values)
    if config.nodes == 1 and config.launcher == "auto":
        return None
    return TrainJobLauncher(config.nodes, chosen)


class TrainJobLauncher:
    """Lets a TrainJob's nodes run the ranks, and waits until it is complete or has failed, whatever its pods do.

    There is one TrainJob for a job's place, named by it: a launcher that finds it at work waits for it. SIGTERM deletes
    it, and waits until its ranks have saved; a later one does not wait.

    Args:
        nodes: How many.
        settings: How they are made.

    Raises:
        ConfigError: There is no cluster.
    """

    def __init__(self, nodes: int, settings: TrainJobSettings) -> None:
        self._nodes = nodes
        self._stop = threading.Event()
        self._api = KubernetesApi(self._say)
        self._template = Template(self._api, nodes, settings)
        self._log = ""

    # What the seam asks for.

    def world_size(self, processes: int | None) -> int:
        """The ranks of all nodes: on each as many as the settings say, one a GPU, or one.

        Raises:
            ConfigError: The runtime is not there, a node has fewer GPUs, or a right is missing.
        """
        return self._nodes * self._template.processes(processes)

    def is_at_work(self, spec_uri: str) -> bool:
        """Whether the job's TrainJob is there, and has not failed.

        Raises:
            CalmError: One of this name is somebody else's.
        """
        found = self._find(name_of(spec_uri), AT_THE_START)
        return found is not None and not _is_deleted(found) and not _condition(found, "Failed")

    def run(self, spec_uri: str, processes: int | None, log: str = "") -> Ending:
        """Make the TrainJob, or find it, and wait for its end, with what node 0 prints on standard error."""
        self._log = log
        wanted = self._template.trainjob(spec_uri, processes)
        deletion = _Deletion(self._api, self._path(wanted["metadata"]["name"]), self._stop)
        with requests_to_stop(deletion.ask, deletion.stop_waiting), closing(deletion):
            made = self._made(wanted, deletion)
            return self._awaited(made) if made else Ending(EXIT_INTERRUPTED)

    # Getting it, or the one that is there.

    def _made(self, wanted: Mapping[str, Any], deletion: "_Deletion") -> dict[str, Any] | None:
        """The TrainJob; None where it is not wanted any more."""
        name, is_told = wanted["metadata"]["name"], False
        digest = wanted["metadata"]["annotations"][SPEC_ANNOTATION]
        while not self._stop.is_set():
            with self._api.rights("create trainjobs"):
                made = self._api.create(self._path(), wanted, AT_THE_START) or self._find(name, AT_THE_START)
            if made and not _is_deleted(made):
                if (made["metadata"].get("annotations") or {}).get(SPEC_ANNOTATION) == digest:
                    deletion.uid = made["metadata"]["uid"]
                    self._say(f"{name}: {self._nodes} nodes of {self._processes_told(made)} ranks")
                    return made
                with self._api.rights("delete trainjobs"):
                    self._api.delete(self._path(name), deletion_of(made), AT_THE_START)
            if made and not is_told:
                is_told = True
                self._say(f"{name}: of an earlier start; it begins again once that one has gone")
            self._stop.wait(_POLL_SECONDS if made else 0)
        return None

    def _find(self, name: str, patience: Patience) -> dict[str, Any] | None:
        """The TrainJob of a name.

        Raises:
            CalmError: It is somebody else's.
        """
        with self._api.rights("get trainjobs"):
            found = self._api.get(self._path(name), patience)
        if found and (found["metadata"].get("labels") or {}).get(PART_OF_LABEL) != PART_OF:
            raise CalmError(
                f"{self._api.namespace}: TrainJob {name} is there, and not of this pipeline; delete or rename it, then "
                "run again"
            )
        return found

    # Waiting.

    def _awaited(self, made: dict[str, Any]) -> Ending:
        name, uid = made["metadata"]["name"], made["metadata"]["uid"]
        follower, followed, told, looked = None, "", "", -_LOOK_SECONDS
        try:
            while True:
                found = self._find(name, WHILE_WAITING)
                if found is None or found["metadata"]["uid"] != uid:
                    return Ending(EXIT_INTERRUPTED, f"TrainJob {name} has been deleted")
                is_complete, failed = _condition(found, "Complete"), _condition(found, "Failed")
                first = self._pod_of_first_node(name)
                if first and first["metadata"]["uid"] != followed and has_begun(first):
                    if follower:
                        follower.end(_LAST_SECONDS)
                        self._say(f"{name}: its nodes have been started again")
                    followed = first["metadata"]["uid"]
                    follower = PodLog(self._api, self._pod_path(first), self._tell)
                if is_complete:
                    return Ending(0)
                if failed:
                    if follower:
                        follower.end(_LAST_SECONDS)
                    return self._failure(found, failed)
                if not (first and is_running(first)) and time.monotonic() > looked + _LOOK_SECONDS:
                    looked = time.monotonic()
                    if (state := self._state(found)) != told:
                        told = state
                        self._say(f"{name}: {state}")
                self._pause()
        finally:
            if follower:
                follower.end(_LAST_SECONDS)

    def _pause(self) -> None:
        if not self._stop.wait(_POLL_SECONDS):
            return
        time.sleep(min(_POLL_SECONDS, 1.0))  # it is being deleted

    def _pods(self, name: str, patience: Patience = WHILE_WAITING, more: str = "") -> list[dict[str, Any]]:
        selector = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={NODE}{more}"
        path = f"/api/v1/namespaces/{self._api.namespace}/pods"
        return self._api.all(path, patience, labelSelector=selector)

    def _pod_of_first_node(self, name: str) -> dict[str, Any] | None:
        pods = self._pods(name, more=f",{NODE_LABEL}=0")
        return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)

    def _state(self, found: dict[str, Any]) -> str:
        """What a TrainJob waits for, of which there is no log yet."""
        if _condition(found, "Suspended"):
            return "is suspended; it waits to be admitted"
        pods = self._pods(found["metadata"]["name"])
        running = sum(map(is_running, pods))
        why = next(filter(None, map(why_not_running, pods)), "")
        if not pods:
            why = self._last_warning(found["metadata"]["name"])
        return f"{running} of {self._nodes} nodes run{f'; {why}' if why else ''}"

    def _last_warning(self, name: str) -> str:
        """What the cluster has said of a TrainJob whose pods are not there."""
        path = f"/api/v1/namespaces/{self._api.namespace}/events"
        for object_name in (f"{name}-{NODE}-0", name):
            try:
                events = self._api.all(
                    path, AT_THE_START, fieldSelector=f"involvedObject.name={object_name},type=Warning"
                )
            except (Refusal, CalmError):  # events are for people
                return ""
            if events:
                last = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
                return shortened(f"{last.get('reason')}: {last.get('message')}", 400)
        return ""

    def _failure(self, found: dict[str, Any], failed: dict[str, Any]) -> Ending:
        """How a TrainJob has failed: by what its pods say, the first one that failed before the others."""
        name = found["metadata"]["name"]
        said = f"TrainJob {name} has failed: {shortened(str(failed.get('message')), 400)}"
        if failed.get("reason") == "DeadlineExceeded":
            return Ending(EXIT_FAILED, cause=f"TrainJob {name} has met its deadline (deadline_seconds)")
        pods = sorted(self._pods(name), key=lambda pod: str(ending_of(pod).get("finishedAt") or "~"))
        ended = [(pod, code) for pod in pods if (code := ending_of(pod).get("exitCode", 0))]
        wrong = next(((pod, code) for pod, code in ended if code == EXIT_WRONG_SETTINGS), None)
        if not wrong and (lost := next(filter(None, map(why_lost, pods)), "")):
            return Ending(EXIT_FAILED, said, cause=lost)
        if not ended:
            return Ending(EXIT_FAILED, said if pods else f"{said}. {self._last_warning(name)}".rstrip(". "))
        pod, code = wrong or ended[0]
        if number_of(pod):  # what node 0 says has been told
            self._tell_last_lines(pod)
        if code == EXIT_NO_MEETING:
            return Ending(EXIT_FAILED, said, cause=f"the nodes of TrainJob {name} did not reach each other")
        if code == SIGNALLED + 9:
            return Ending(EXIT_FAILED, said, cause=f"node {number_of(pod)} of TrainJob {name} was killed (SIGKILL)")
        return Ending(code, f"node {number_of(pod)}: exit code {code}; {said}")

    def _tell_last_lines(self, pod: dict[str, Any]) -> None:
        try:
            lines = self._api.lines(f"{self._pod_path(pod)}/log", 30.0, container=NODE, tailLines=_LAST_LINES)
            for line in lines:
                self._tell(f"node {number_of(pod)}: {line.decode(errors='replace').rstrip()}")
        except Exception:  # the failure itself counts
            return

    # Words and places.

    def _path(self, name: str = "") -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self._api.namespace}/trainjobs" + (f"/{name}" if name else "")

    def _pod_path(self, pod: dict[str, Any]) -> str:
        return f"/api/v1/namespaces/{self._api.namespace}/pods/{pod['metadata']['name']}"

    def _processes_told(self, made: dict[str, Any]) -> int:
        return int(((made.get("spec") or {}).get("trainer") or {}).get("numProcPerNode") or 1)

    def _say(self, text: str) -> None:
        self._tell(f"trainjob: {text}")

    def _tell(self, line: str) -> None:
        """A line for whoever reads the task's log; in one write, since several threads have some."""
        print(f"{visible(line, keep=chr(9))}\n", end="", file=sys.stderr, flush=True)
        if self._log:
            with closing(TrainingLog(self._log)) as log:
                log.say("trainjob", line)


class _Deletion:
    """Deletes a TrainJob in a thread of its own as soon as it is asked: a pod of a pipeline has a second or so.

    Attributes:
        uid: Of the TrainJob, once it is there.
    """

    def __init__(self, api: KubernetesApi, path: str, stop: threading.Event) -> None:
        self.uid = ""
        self._api, self._path, self._stop = api, path, stop
        self._asked, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._delete, daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Delete it."""
        self._asked.set()
        self._stop.set()

    def stop_waiting(self) -> None:
        """Nothing more: what is deleted goes by itself."""

    def _delete(self) -> None:
        self._asked.wait()
        while not self.uid and not self._over.wait(0.02):  # it is being made
            pass
        if self.uid:
            try:
                self._api.delete(self._path, deletion_of({"metadata": {"uid": self.uid}}), _DELETION)
            except (Refusal, CalmError) as error:
                print(f"trainjob: cannot be deleted: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nobody waits any more."""
        self._over.set()
        if not self._asked.is_set():
            self.uid = ""
            self._asked.set()
        self._thread.join(_LAST_SECONDS)


def deletion_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """How a TrainJob is deleted: it is there until its pods have gone, which have saved a checkpoint then."""
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Foreground",
        "preconditions": {"uid": found["metadata"]["uid"]},
    }


def _is_deleted(found: Mapping[str, Any]) -> bool:
    return bool(found["metadata"].get("deletionTimestamp"))


def _condition(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A condition that holds; empty where it does not."""
    conditions: list[dict[str, Any]] = (found.get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind and one.get("status") == "True"), {})
