"""Pods of a TrainJob as containers of a Docker engine: command, environment, user, file systems and name as there."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.models.containers import Container
from docker.types import EndpointConfig

from tests.components.kubernetes_cluster import Cluster, Pod

RUNTIME = Path(__file__).parents[2] / "k8s" / "base" / "training-runtime.yaml"
_PORT = "29500"  # Trainer's
_SECONDS = 300  # after which a node counts as hanging

Values = Mapping[str, Mapping[str, str]]
"""What is in each ConfigMap and Secret."""


def node_of(trainjob: dict[str, Any], number: int, user: int, values: Values) -> dict[str, Any]:
    """What Docker is told of a node of a TrainJob: what Trainer, JobSet and a kubelet make of it and `calm-torch`."""
    runtime = yaml.safe_load(RUNTIME.read_text())["spec"]
    pod = runtime["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,), trainer, name = pod["containers"], trainjob["spec"]["trainer"], trainjob["metadata"]["name"]
    environment: dict[str, str] = {}
    for source in container["envFrom"]:
        (reference,) = source.values()
        environment |= values[reference["name"]]
    for one in [*container["env"], *trainer["env"]]:
        environment[one["name"]] = one["value"] if "value" in one else _referred(one["valueFrom"], values)
    environment |= {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": str(number),
        "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
        "PET_MASTER_PORT": _PORT,
    }
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    folders = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    shared = folders.pop("/dev/shm")
    assert shared["medium"] == "Memory"
    security = container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] and not security["allowPrivilegeEscalation"] and user
    return {
        "image": trainer["image"],
        "entrypoint": trainer["command"],
        "command": trainer["args"],
        "environment": environment,
        "hostname": f"{name}-node-0-{number}",
        "user": str(user),
        "read_only": security["readOnlyRootFilesystem"],
        "cap_drop": security["capabilities"]["drop"],
        "security_opt": ["no-new-privileges"],
        "tmpfs": dict.fromkeys(folders, "exec,mode=1777"),
        "shm_size": _bytes(shared["sizeLimit"]),
        "mem_limit": _bytes(trainer["resourcesPerNode"]["limits"]["memory"]),
    }


def _referred(source: dict[str, Any], values: Values) -> str:
    (reference,) = source.values()
    return values[reference["name"]][reference["key"]]


def _bytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi")) << 30


class Nodes:
    """The pods of a TrainJob, of whose output and ends a cluster is told.

    Attributes:
        containers: By the number of the node.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._codes: dict[int, int] = {}
        self._threads: list[threading.Thread] = []
        self.containers: dict[int, Container] = {}

    def start(self, pod: Pod, container: Container) -> None:
        """Start a node."""
        container.start()
        self.containers[pod.number] = container
        self._threads.append(threading.Thread(target=self._follow, args=(pod, container), daemon=True))
        self._threads[-1].start()

    def _follow(self, pod: Pod, container: Container) -> None:
        rest = b""
        for part in container.logs(stream=True, follow=True):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._cluster.print(pod, line.decode(errors="replace"))
        self._codes[pod.number] = container.wait(timeout=_SECONDS)["StatusCode"]
        self._cluster.end_pod(pod, self._codes[pod.number])

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what happens while they run."""
        end = time.monotonic() + _SECONDS
        while not condition():
            assert not self._codes and time.monotonic() < end, (self._codes, *map(self.said, self.containers))
            time.sleep(0.05)

    def codes(self) -> list[int]:
        """How they have ended."""
        for thread in self._threads:
            thread.join(_SECONDS)
        return [self._codes[number] for number in sorted(self.containers)]

    def said(self, number: int) -> str:
        """What a node has printed."""
        return str(self.containers[number].logs().decode(errors="replace"))


@contextmanager
def nodes_of(cluster: Cluster, engine: docker.DockerClient, network: str, values: Values) -> Iterator[Nodes]:
    """The pods of the cluster's TrainJob; node 0 is the last one to start.

    Args:
        network: That they are in.
        values: Those that they have by reference.
    """
    job = cluster.job()
    name, count = job["metadata"]["name"], job["spec"]["trainer"]["numNodes"]
    user = random.randint(100_000, 2**31 - 1)  # a namespace of OpenShift has one of its own
    nodes = Nodes(cluster)
    with ExitStack() as stack:
        for pod in reversed(cluster.start_pods(count, "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5)))):
            served = EndpointConfig(engine.api.api_version, aliases=[f"{name}-node-0-{pod.number}.{name}"])  # as by DNS
            told = node_of(job, pod.number, user, values)
            container = engine.containers.create(**told, network=network, networking_config={network: served})
            stack.callback(container.remove, force=True)
            nodes.start(pod, container)
        yield nodes
