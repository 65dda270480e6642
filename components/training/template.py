"""What a TrainJob is made like: the task that waits for it, unless the settings say otherwise."""

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from calm_core.config.base import Section
from calm_core.config.cluster import LabelKey, LabelValue, ObjectName, Quantity
from calm_core.errors import ConfigError
from calm_core.store.artifact import Artifact, digest_of
from calm_core.store.code_version import CODE_VERSION_VARIABLE
from calm_core.store.facts import SpecFacts
from components.training.kubernetes_api import AT_THE_START, CONTAINER, POD_VARIABLE, KubernetesApi
from components.training.pods import NODE

GROUP, VERSION, KIND = "trainer.kubeflow.org", "v1alpha1", "TrainJob"
RUNTIME = "calm-torch"
RUN_LABEL, SPEC_ANNOTATION = "calm-pipelines/run", "calm-pipelines/spec"
PART_OF_LABEL, PART_OF = "app.kubernetes.io/part-of", "calm-pipelines"
_RUN_LABEL_OF_KUBEFLOW = "pipeline/runid"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_MANAGER = "calm-pipelines/trainjob"
_NOT_FOR_NODES = ("ARGO_", "KFP_", "PET_", "KUBEFLOW_TRAINER_")
_MOST_VARIABLES, _LONGEST_NAME = 128, 63


class Toleration(Section):
    """A taint of machines that nodes tolerate, in Kubernetes' words."""

    key: LabelKey
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class TrainJobSettings(Section):
    """How a TrainJob's nodes are made; unset, they are like the task that waits for them.

    Attributes:
        runtime: The TrainingRuntime.
        resources: Of each node, e.g. ``{"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "8"}``.
        node_selector, tolerations: Which machines they run on, in Kubernetes' words.
        queue: Kueue's LocalQueue; empty for none.
        deadline_seconds: After which it fails; unset: never.
    """

    runtime: ObjectName = RUNTIME
    resources: dict[LabelKey, Quantity] = Field({})
    node_selector: dict[LabelKey, LabelValue] = Field({})
    tolerations: list[Toleration] = Field([])
    queue: LabelValue = ""
    deadline_seconds: int | None = Field(None, ge=1, le=2**31)


class Template:
    """Makes TrainJobs like this task's pod.

    Args:
        api: The cluster.
        nodes: How many.
        settings: How they are made.
    """

    def __init__(self, api: KubernetesApi, nodes: int, settings: TrainJobSettings) -> None:
        self._api, self._nodes, self._settings = api, nodes, settings
        self._own_pod: dict[str, Any] = {}
        self._resources: dict[str, dict[str, Any]] = {}

    def _own(self) -> dict[str, Any]:
        """The pod of this task."""
        if not self._own_pod:
            name = os.environ.get(POD_VARIABLE) or os.environ.get("HOSTNAME", "")
            path = f"/api/v1/namespaces/{self._api.namespace}/pods/{name}"
            with self._api.rights("get pods"):
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

    def node_resources(self) -> dict[str, dict[str, Any]]:
        """Requests and limits of each node: the settings', else those of this task's pod, over those of the runtime."""
        if not self._resources:
            own = self._own_container().get("resources") or {}
            asked = {part: _some(own.get(part) or {}) for part in ("requests", "limits")}
            if resources := dict(self._settings.resources):
                limits = {name: value for name, value in resources.items() if name != "cpu"}  # it may use what is idle
                asked = {"requests": resources, "limits": limits}
            name = self._settings.runtime
            path = f"/apis/{GROUP}/{VERSION}/namespaces/{self._api.namespace}/trainingruntimes/{name}"
            with self._api.rights("get trainingruntimes"):
                runtime = self._api.get(path, AT_THE_START)
            if runtime is None:
                raise ConfigError(
                    f"{self._api.namespace}: has no TrainingRuntime {name}; apply k8s/ to this namespace, or install "
                    "Kubeflow Trainer if the cluster has none"
                )
            self._resources = _merged(_resources_of(runtime), asked)
        return self._resources

    def processes(self, processes: int | None) -> int:
        """The ranks of each node: as many as the settings say, one a GPU, or one.

        Raises:
            ConfigError: The runtime is not there, a node has fewer GPUs, or a right is missing.
        """
        limits = self.node_resources().get("limits") or {}
        gpus = next((int(value) for name, value in limits.items() if "gpu" in name and str(value).isdigit()), 0)
        if gpus and processes and processes > gpus:
            raise ConfigError(f"processes is {processes}, a node of the TrainJob has {gpus} GPUs; lower it")
        return processes or gpus or 1

    def trainjob(self, spec_uri: str, processes: int | None) -> dict[str, Any]:
        """The TrainJob of a job.

        Raises:
            ConfigError: It cannot be made like this.
        """
        from kubeflow_trainer_api import models

        own, chosen = self._own(), self._settings
        run = (own["metadata"].get("labels") or {}).get(_RUN_LABEL_OF_KUBEFLOW, "")
        labels = {PART_OF_LABEL: PART_OF} | ({RUN_LABEL: run} if run else {})
        resources = self.node_resources()
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
                    numProcPerNode=self.processes(processes),
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
            "tolerations": [one.model_dump(exclude_none=True) for one in chosen.tolerations]
            or [one for one in own.get("tolerations") or [] if not _is_everywhere(one)],
            "imagePullSecrets": own.get("imagePullSecrets"),
        }
        if not (set_ := {name: value for name, value in pod.items() if value}):
            return None
        job = {"name": NODE, "template": {"spec": {"template": {"spec": set_}}}}
        patch = {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
        return [models.TrainerV1alpha1RuntimePatch.from_dict(patch)]


def name_of(spec_uri: str) -> str:
    """The name of a job's TrainJob: what is trained, and the place of its checkpoints."""
    job = spec_uri.split("/")[-2].lower()
    name = f"{job}-{digest_of(spec_uri)[:8]}"
    if len(name) > _LONGEST_NAME - 16 or not name.replace("-", "").isalnum():
        raise ConfigError(f"{spec_uri}: is no place of a job")
    return name


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
