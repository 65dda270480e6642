"""Training on nodes of a cluster: a launcher whose ranks run in a TrainJob of Kubeflow's Trainer.

The task that has it only waits. Image, environment and, unless others are asked for, resources and placement are those
of the task's own pod; how nodes are started, and what a lost one does, is the TrainingRuntime's.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Annotated, Any

from pydantic import Field

from calm_core.config import TrainingConfig
from calm_core.config.base import Section
from calm_core.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_SETTINGS, CalmError, ConfigError
from calm_core.shown import shortened, visible
from calm_core.store.artifact import Artifact, digest_of
from calm_core.store.code_version import CODE_VERSION_VARIABLE
from calm_core.store.facts import SpecFacts
from calm_core.telemetry.processes import SIGNALLED
from calm_core.training.launcher import EXIT_NO_MEETING, Ending, Launcher, requests_to_stop
from calm_core.training.log import TrainingLog
from components.training.kubernetes_api import (
    AT_THE_START,
    CONTAINER,
    POD_VARIABLE,
    WHILE_WAITING,
    KubernetesApi,
    Patience,
    Refusal,
)
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

GROUP, VERSION, KIND = "trainer.kubeflow.org", "v1alpha1", "TrainJob"
RUNTIME = "calm-torch"
RUN_LABEL, SPEC_ANNOTATION = "calm-pipelines/run", "calm-pipelines/spec"
PART_OF_LABEL, PART_OF = "app.kubernetes.io/part-of", "calm-pipelines"
_RUN_LABEL_OF_KUBEFLOW = "pipeline/runid"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_MANAGER = "calm-pipelines/trainjob"
_NOT_FOR_NODES = ("ARGO_", "KFP_", "PET_", "KUBEFLOW_TRAINER_")
_MOST_VARIABLES, _LONGEST_NAME = 128, 63
_POLL_SECONDS = 5.0
_LOOK_SECONDS = 30.0
"""Between two looks at all pods, where one is not running."""
_LAST_SECONDS = 15.0  # for the rest of a log
_LAST_LINES = 30
_DELETION = Patience(600.0, 60.0)

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]


class TrainJobSettings(Section):
    """How a TrainJob's nodes are made; unset, they are like the task that waits for them.

    Attributes:
        runtime: The TrainingRuntime.
        resources: Of each node, e.g. ``{"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "8"}``.
        node_selector, tolerations: Which machines they run on, in Kubernetes' words.
        queue: Kueue's LocalQueue; empty for none.
        deadline_seconds: After which it fails; unset: never.
    """

    runtime: str = Field(RUNTIME, min_length=1, max_length=253)
    resources: dict[str, Quantity] = Field({})
    node_selector: dict[str, str] = Field({})
    tolerations: list[dict[str, str | int]] = Field([])
    queue: str = Field("", max_length=63)
    deadline_seconds: int | None = Field(None, ge=1, le=2**31)


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
        self._nodes, self._settings = nodes, settings
        self._stop = threading.Event()
        self._api = KubernetesApi(self._say)
        self._log = ""
        self._own_pod: dict[str, Any] = {}
        self._resources: dict[str, dict[str, Any]] = {}

    # What the seam asks for.

    def world_size(self, processes: int | None) -> int:
        """The ranks of all nodes: on each as many as the settings say, one a GPU, or one.

        Raises:
            ConfigError: The runtime is not there, a node has fewer GPUs, or a right is missing.
        """
        return self._nodes * self._processes(processes)

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
        wanted = self._trainjob(spec_uri, processes)
        deletion = _Deletion(self._api, self._path(wanted["metadata"]["name"]), self._stop)
        with requests_to_stop(deletion.ask, deletion.stop_waiting), closing(deletion):
            made = self._made(wanted, deletion)
            return self._awaited(made) if made else Ending(EXIT_INTERRUPTED)

    # Of the task that waits.

    def _own(self) -> dict[str, Any]:
        """The pod of this task."""
        if not self._own_pod:
            name = os.environ.get(POD_VARIABLE) or os.environ.get("HOSTNAME", "")
            path = f"/api/v1/namespaces/{self._api.namespace}/pods/{name}"
            with self._rights("get pods"):
                self._own_pod = self._api.get(path, AT_THE_START) or {}
            if not self._own_pod:
                raise ConfigError(
                    f"{self._api.namespace}: has no pod {name!r}, and a TrainJob is made like the pod of its task; run "
                    f"it in a pipeline ({POD_VARIABLE})"
                )
        return self._own_pod

    def _own_container(self) -> dict[str, Any]:
        containers: list[dict[str, Any]] = self._own()["spec"]["containers"]
        return next((one for one in containers if one.get("name") == CONTAINER), containers[0])

    def _node_resources(self) -> dict[str, dict[str, Any]]:
        """Requests and limits of each node: the settings', else those of this task's pod, over those of the runtime."""
        if not self._resources:
            own = self._own_container().get("resources") or {}
            asked = {part: _some(own.get(part) or {}) for part in ("requests", "limits")}
            if resources := dict(self._settings.resources):
                limits = {name: value for name, value in resources.items() if name != "cpu"}  # it may use what is idle
                asked = {"requests": resources, "limits": limits}
            name = self._settings.runtime
            path = f"/apis/{GROUP}/{VERSION}/namespaces/{self._api.namespace}/trainingruntimes/{name}"
            with self._rights("get trainingruntimes"):
                runtime = self._api.get(path, AT_THE_START)
            if runtime is None:
                raise ConfigError(
                    f"{self._api.namespace}: has no TrainingRuntime {name}; apply k8s/ to this namespace, or install "
                    "Kubeflow Trainer if the cluster has none"
                )
            self._resources = _merged(_resources_of(runtime), asked)
        return self._resources

    def _processes(self, processes: int | None) -> int:
        limits = self._node_resources().get("limits") or {}
        gpus = next((int(value) for name, value in limits.items() if "gpu" in name and str(value).isdigit()), 0)
        if gpus and processes and processes > gpus:
            raise ConfigError(f"processes is {processes}, a node of the TrainJob has {gpus} GPUs; lower it")
        return processes or gpus or 1

    # What is made.

    def _trainjob(self, spec_uri: str, processes: int | None) -> dict[str, Any]:
        """The TrainJob of a job."""
        from kubeflow_trainer_api import models

        own, chosen = self._own(), self._settings
        run = (own["metadata"].get("labels") or {}).get(_RUN_LABEL_OF_KUBEFLOW, "")
        labels = {PART_OF_LABEL: PART_OF} | ({RUN_LABEL: run} if run else {})
        resources = self._node_resources()
        made = models.TrainerV1alpha1TrainJob(
            apiVersion=f"{GROUP}/{VERSION}",
            kind=KIND,
            metadata=models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
                name=name_of(spec_uri),
                namespace=self._api.namespace,
                labels=labels | ({_QUEUE_LABEL: chosen.queue} if chosen.queue else {}),
                annotations={SPEC_ANNOTATION: Artifact(spec_uri, SpecFacts).digest},
                ownerReferences=[
                    models.IoK8sApimachineryPkgApisMetaV1OwnerReference(
                        apiVersion=owner["apiVersion"], kind=owner["kind"], name=owner["name"], uid=owner["uid"]
                    )
                    for owner in own["metadata"].get("ownerReferences") or []
                ]
                or None,
            ),
            spec=models.TrainerV1alpha1TrainJobSpec(
                runtimeRef=models.TrainerV1alpha1RuntimeRef(
                    apiGroup=GROUP, kind="TrainingRuntime", name=chosen.runtime
                ),
                activeDeadlineSeconds=chosen.deadline_seconds,
                trainer=models.TrainerV1alpha1Trainer(
                    image=self._own_container()["image"],
                    command=["python3", "-m", "components.training.node"],
                    args=[spec_uri.replace("$", "$$")],
                    env=[models.IoK8sApiCoreV1EnvVar.from_dict(one) for one in self._variables()],
                    numNodes=self._nodes,
                    numProcPerNode=self._processes(processes),
                    resourcesPerNode=models.IoK8sApiCoreV1ResourceRequirements.from_dict(resources)
                    if resources
                    else None,
                ),
                runtimePatches=self._patches(),
            ),
        )
        return dict(made.to_dict())

    def _variables(self) -> list[dict[str, Any]]:
        """The environment of the nodes: that of the task, as its pod says it, and the code version."""
        variables = {
            one["name"]: one
            for one in self._own_container().get("env") or []
            if not one["name"].startswith(_NOT_FOR_NODES) and _is_for_nodes(one)
        }
        if version := os.environ.get(CODE_VERSION_VARIABLE):
            variables[CODE_VERSION_VARIABLE] = {"name": CODE_VERSION_VARIABLE, "value": version}
        if len(variables) > _MOST_VARIABLES:
            raise ConfigError(
                f"the task has {len(variables)} environment variables, a TrainJob takes {_MOST_VARIABLES}; set fewer"
            )
        return list(variables.values())

    def _patches(self) -> list[Any] | None:
        """Where the nodes run, and what their image is drawn with, which the runtime leaves open."""
        from kubeflow_trainer_api import models

        own, chosen = self._own()["spec"], self._settings
        pod = {
            "nodeSelector": chosen.node_selector or own.get("nodeSelector"),
            "tolerations": chosen.tolerations
            or [one for one in own.get("tolerations") or [] if not _is_everywhere(one)],
            "imagePullSecrets": own.get("imagePullSecrets"),
        }
        if not (set_ := {name: value for name, value in pod.items() if value}):
            return None
        job = {"name": NODE, "template": {"spec": {"template": {"spec": set_}}}}
        patch = {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
        return [models.TrainerV1alpha1RuntimePatch.from_dict(patch)]

    # Getting it, or the one that is there.

    def _made(self, wanted: Mapping[str, Any], deletion: "_Deletion") -> dict[str, Any] | None:
        """The TrainJob; None where it is not wanted any more."""
        name, is_told = wanted["metadata"]["name"], False
        digest = wanted["metadata"]["annotations"][SPEC_ANNOTATION]
        while not self._stop.is_set():
            with self._rights("create trainjobs"):
                made = self._api.create(self._path(), wanted, AT_THE_START) or self._find(name, AT_THE_START)
            if made and not _is_deleted(made):
                if (made["metadata"].get("annotations") or {}).get(SPEC_ANNOTATION) == digest:
                    deletion.uid = made["metadata"]["uid"]
                    self._say(f"{name}: {self._nodes} nodes of {self._processes_told(made)} ranks")
                    return made
                with self._rights("delete trainjobs"):
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
        with self._rights("get trainjobs"):
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

    @contextmanager
    def _rights(self, what: str) -> Iterator[None]:
        """Say in one line what is refused.

        Raises:
            CalmError: It is.
        """
        try:
            yield
        except Refusal as refusal:
            where = self._api.namespace
            if refusal.status == 401:
                raise CalmError(f"{where}: Kubernetes refuses this task's token ({refusal.message}); run it again",
                                can_pass=True) from None  # fmt: skip
            if refusal.status == 404:
                raise ConfigError(
                    f"{where}: the cluster knows no {KIND} of {GROUP}/{VERSION}; install Kubeflow Trainer 2.2 or newer"
                ) from None
            advice = (
                f"the task's service account may not {what}; apply k8s/ and run the pipeline with calm-pipeline"
                if "cannot" in refusal.message
                else f"to {what} was refused"
            )
            raise ConfigError(f"{where}: {advice} ({refusal.message})") from None

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


def name_of(spec_uri: str) -> str:
    """The name of a job's TrainJob: what is trained, and the place of its checkpoints."""
    job = spec_uri.split("/")[-2].lower()
    name = f"{job}-{digest_of(spec_uri)[:8]}"
    if len(name) > _LONGEST_NAME - 16 or not name.replace("-", "").isalnum():
        raise ConfigError(f"{spec_uri}: is no place of a job")
    return name


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


def _resources_of(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """What a TrainingRuntime asks for each node."""
    for job in runtime["spec"]["template"]["spec"].get("replicatedJobs") or []:
        for container in job["template"]["spec"]["template"]["spec"]["containers"]:
            if job["name"] == NODE and container["name"] == NODE:
                return dict(container.get("resources") or {})
    return {}


def _some(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are asked for: a pipeline's tasks may ask for no GPU."""
    return {name: value for name, value in resources.items() if str(value) != "0"}


def _merged(default: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The resources of a node. Trainer 2.2 takes those of a TrainJob or of its runtime, 2.3 merges them part by part:
    what is asked for is told in both parts where the runtime says it in both, since no limit may be below a request."""
    default_limits = default.get("limits") or {}
    requests = {**asked["limits"], **asked["requests"]}
    limits = {name: value for name, value in requests.items() if name in default_limits} | asked["limits"]
    merged = {"requests": {**(default.get("requests") or {}), **requests}, "limits": {**default_limits, **limits}}
    return {part: values for part, values in merged.items() if values}


def _is_for_nodes(variable: Mapping[str, Any]) -> bool:
    """Whether a variable says the same in another pod: a value, or a key of a Secret or ConfigMap."""
    return not variable.get("valueFrom") or bool({"secretKeyRef", "configMapKeyRef"} & variable["valueFrom"].keys())


def _is_everywhere(toleration: Mapping[str, Any]) -> bool:
    """Whether Kubernetes gives it to every pod."""
    return str(toleration.get("key", "")).startswith("node.kubernetes.io/")
