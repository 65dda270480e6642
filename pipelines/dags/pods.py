"""What the pods of tasks get in a cluster: parameters of a pipeline, which one machine passes over."""

from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

from calm_core.telemetry.mlflow_run import KUBEFLOW_RUN_VARIABLE
from components import mlflow_environment

ENVIRONMENT = {
    "AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL",
    "AWS_REGION": "AWS_DEFAULT_REGION",  # botocore knows this name alone
    **{name: mlflow_environment.own(name) for name in mlflow_environment.OF_THE_SERVER},
}
"""What a ConfigMap may set, and the variables of it."""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    **{name: mlflow_environment.own(name) for name in mlflow_environment.OF_ITS_USER},
}
"""What a Secret may set, likewise."""
_LABEL_OF_THE_RUN = "metadata.labels['pipeline/runid']"  # which Kubeflow puts on every pod of a run
_RETRIES = 3
_DAYS, _DAYS_OF_TRAINING = 3, 30
"""How long a pod may take, and one that trains or evaluates; after that it hangs. Kubeflow has no parameter for it."""


@dataclass(frozen=True)
class Pods:
    """A kind of pods.

    All are parameters of a pipeline, and none may be empty: Kubeflow refuses empty texts.

    Attributes:
        image, environment, credentials: Names: of the image, of a ConfigMap, of a Secret.
        cpu, memory: What they ask for; of memory it is the most that they get, too.
        accelerator, accelerators: Name of a resource, and how many; None for pods without any.
        node_selector, tolerations: As Kubernetes has them; None for any node.
    """

    image: Any
    environment: Any
    credentials: Any
    cpu: Any
    memory: Any
    accelerator: Any = None
    accelerators: Any = None
    node_selector: Any = None
    tolerations: Any = None

    def run(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Let a task run in such a pod."""
        task.set_container_image(self.image)
        task.set_cpu_request(self.cpu).set_memory_request(self.memory).set_memory_limit(self.memory)
        # Kubeflow's compiler does not hand resources into loops and conditions by itself.
        task.channel_inputs.extend([self.cpu, self.memory])
        days = _DAYS
        if self.accelerator is not None:
            days = _DAYS_OF_TRAINING
            task.set_accelerator_type(self.accelerator).set_accelerator_limit(self.accelerators)
            task.channel_inputs.extend([self.accelerator, self.accelerators])
            kubernetes.add_node_selector_json(task, self.node_selector)
            kubernetes.add_toleration_json(task, self.tolerations)
            kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory")  # of ranks and loaders
        kubernetes.use_config_map_as_env(task, self.environment, ENVIRONMENT, optional=True)
        kubernetes.use_secret_as_env(task, self.credentials, CREDENTIALS, optional=True)
        kubernetes.use_field_path_as_env(task, KUBEFLOW_RUN_VARIABLE, _LABEL_OF_THE_RUN)
        kubernetes.empty_dir_mount(task, "temporary", "/tmp")  # HOME too: the root file system may be read-only
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.set_timeout(task, days * 86400)
        # The longest pause is the deadline of a retried pod, too: an hour, unless it is set.
        return task.set_retry(_RETRIES, backoff_duration="30s", backoff_max_duration=f"{days * 86400}s")
