"""What a cluster needs to run our pipelines, one row each, with how to mend it."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from kfp_server_api import __version__ as sdk_version

from calm_core.errors import CalmError
from calm_core.shown import shortened
from pipelines.checks import Check, NotLookedAt, State, check
from pipelines.cluster.client import Cluster, connect, version_number
from pipelines.cluster.connection import Refused
from pipelines.cluster.kubernetes import TRAINER_API, Kubernetes, connect_kubernetes
from pipelines.cluster.submit import SERVICE_ACCOUNT

RUNTIME, ENVIRONMENT, CREDENTIALS = "calm-torch", "calm-environment", "calm-credentials"
_PART_OF = {"app.kubernetes.io/part-of": "calm-pipelines", "app.kubernetes.io/name": "calm-doctor"}
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Of a Secret: that it is there, not what it holds."""
_SETTINGS = ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")
_APPLY = "apply our parts: kubectl apply -k k8s/overlays/production -n NAMESPACE"
_GPU = "nvidia.com/gpu"
_POD_SECONDS, _POLL_SECONDS = 300.0, 2.0
_STATES: dict[str, State] = {"ok": "ok", "failed": "failed", "unknown": "unknown"}
_NEVER_STARTS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
}

ReadT = TypeVar("ReadT")


def checks(host: str, namespace: str, storage_uri: str, image: str) -> Iterator[Check]:
    """Look at a cluster.

    Args:
        host, namespace: As `connect` takes them.
        storage_uri: A folder that a pod writes to and reads from; empty: none does.
        image: What that pod runs.
    """
    try:
        cluster = connect(host, namespace)
        yield Check("Kubeflow Pipelines", "ok", _pipelines(cluster))
        namespace = cluster.namespace
    except CalmError as error:
        yield Check("Kubeflow Pipelines", "failed", str(error), "docs/submitting.md has all ways to log in")
    rows: tuple[tuple[str, Callable[[Kubernetes, str], str], str], ...] = (
        ("Trainer", _trainer, "install Kubeflow Trainer 2.2 or newer; without it, training on one node works"),
        (
            f"runtime {RUNTIME}",
            partial(_object, path=f"apis/{TRAINER_API}", what=f"trainingruntimes/{RUNTIME}"),
            _APPLY,
        ),
        ("service account", _service_account, _APPLY),
        (f"settings {ENVIRONMENT}", _settings, _APPLY),
        (
            f"credentials {CREDENTIALS}",
            _credentials,
            f"kubectl create secret generic {CREDENTIALS} ... in the namespace",
        ),
        ("GPU nodes", _gpus, "profiles with accelerators need nodes with a device plug-in"),
        ("quota", _quota, "ask for more, or end what else runs in the namespace"),
    )
    kubernetes: Kubernetes | None = None
    try:
        kubernetes = connect_kubernetes()
        told = kubernetes.get("/version").get("gitVersion", "of unknown version")
        yield Check("Kubernetes", "ok", f"{told} at {kubernetes.host}")
    except CalmError as error:
        kubernetes = None
        yield Check("Kubernetes", "unknown", str(error))
    if kubernetes is None or not namespace:
        lacks = (
            "Kubernetes' API is not reached" if kubernetes is None else "no namespace is known; name it: --namespace"
        )
        for name in (*(row[0] for row in rows), "a pod"):
            yield Check(name, "unknown", lacks)
        return
    for name, look, mend in rows:
        yield check(name, partial(_read, look, kubernetes, namespace), mend.replace("NAMESPACE", namespace))
    yield from _from_a_pod(kubernetes, namespace, storage_uri, image)


def _read(look: Callable[[Kubernetes, str], ReadT], kubernetes: Kubernetes, namespace: str) -> ReadT:
    try:
        return look(kubernetes, namespace)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CalmError(f"{kubernetes.host}: an answer is damaged ({type(error).__name__})") from None


def _pipelines(cluster: Cluster) -> str:
    users = "for many users" if cluster.is_multi_user else "without users of its own"
    ours, theirs = version_number(sdk_version), version_number(cluster.version)
    skew = f"; its SDK here is {sdk_version}" if ours and theirs and ours != theirs else ""
    return f"{cluster.version or 'of unknown version'} at {cluster.host}, {users}, namespace {cluster.namespace}{skew}"


def _looked_at(look: Callable[[], dict[str, Any]], what: str) -> dict[str, Any]:
    """An object, where it may be read."""
    try:
        return look()
    except Refused as error:
        if error.status == 404:
            raise CalmError(f"{what}: is not there") from None
        if error.status == 403:
            raise NotLookedAt(f"{what}: you have no right to read it") from None
        raise


def _trainer(kubernetes: Kubernetes, namespace: str) -> str:
    found = _looked_at(lambda: kubernetes.get(f"/apis/{TRAINER_API}"), TRAINER_API)
    kinds = {str(each.get("name")) for each in found.get("resources") or ()}
    if missing := {"trainjobs", "trainingruntimes"} - kinds:
        raise CalmError(f"{TRAINER_API}: lacks {', '.join(sorted(missing))}")
    try:
        schema = json.dumps(kubernetes.get(f"/openapi/v3/apis/{TRAINER_API}"))
    except CalmError:
        return f"{TRAINER_API}, of unknown version"
    if '"runtimePatches"' not in schema:
        raise CalmError(f"{TRAINER_API}: is older than 2.2, TrainJobs have no runtimePatches")
    version = "2.3 or newer" if '"trainerStatus"' in schema else "2.2"
    return f"{TRAINER_API}, {version}"


def _object(kubernetes: Kubernetes, namespace: str, path: str, what: str) -> str:
    _looked_at(lambda: kubernetes.get(f"/{path}/namespaces/{namespace}/{what}"), f"{what} in {namespace}")
    return "is there"


def _service_account(kubernetes: Kubernetes, namespace: str) -> str:
    for path, kind in (("api/v1", "serviceaccounts"), ("apis/rbac.authorization.k8s.io/v1", "rolebindings")):
        _object(kubernetes, namespace, path, f"{kind}/{SERVICE_ACCOUNT}")
    return f"{SERVICE_ACCOUNT} and its rights are there"


def _settings(kubernetes: Kubernetes, namespace: str) -> str:
    path = f"/api/v1/namespaces/{namespace}/configmaps/{ENVIRONMENT}"
    data = _looked_at(lambda: kubernetes.get(path), f"configmaps/{ENVIRONMENT} in {namespace}").get("data") or {}
    if missing := [name for name in _SETTINGS if not data.get(name)]:
        raise CalmError(f"{ENVIRONMENT}: lacks {', '.join(missing)}")
    return "; ".join(f"{name} {shortened(str(data[name]))}" for name in _SETTINGS)


def _credentials(kubernetes: Kubernetes, namespace: str) -> str:
    path = f"/api/v1/namespaces/{namespace}/secrets/{CREDENTIALS}"
    _looked_at(lambda: kubernetes.get(path, accept=_METADATA_ONLY), f"secrets/{CREDENTIALS} in {namespace}")
    return "is there"


def _gpus(kubernetes: Kubernetes, namespace: str) -> str:
    nodes = _looked_at(lambda: kubernetes.get("/api/v1/nodes", limit="500"), "nodes").get("items") or []
    counts = [int(node.get("status", {}).get("allocatable", {}).get(_GPU, 0)) for node in nodes]
    if not sum(counts):
        raise NotLookedAt(f"none of {len(nodes)} nodes offers {_GPU}: fine for profiles without accelerators")
    return f"{sum(counts)} GPUs on {sum(map(bool, counts))} of {len(nodes)} nodes"


def _quota(kubernetes: Kubernetes, namespace: str) -> str:
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    quotas = _looked_at(lambda: kubernetes.get(path), f"resourcequotas in {namespace}").get("items") or []
    told = []
    for quota in quotas:
        status = quota.get("status", {})
        for name, hard in sorted((status.get("hard") or {}).items()):
            used = (status.get("used") or {}).get(name, "0")
            if used == hard and hard != "0":
                raise CalmError(f"{quota['metadata']['name']}: {name} is used up, {used} of {hard}")
            told.append(f"{name} {used} of {hard}")
    return "; ".join(told) or "none is set"


def _from_a_pod(kubernetes: Kubernetes, namespace: str, storage_uri: str, image: str) -> Iterator[Check]:
    """The rows of `calm doctor` in a pod of our image, with the credentials that tasks get."""
    name = f"calm-doctor-{secrets.token_hex(4)}"
    path = f"/api/v1/namespaces/{namespace}/pods"
    try:
        kubernetes.create(path, _pod(name, storage_uri, image))
    except CalmError as error:
        lacks_right = isinstance(error, Refused) and error.status == 403
        yield Check("a pod", "unknown" if lacks_right else "failed", str(error), _APPLY)
        return
    try:
        told = _read(partial(_wait_for, name=name), kubernetes, namespace)
    except CalmError as error:
        yield Check("a pod", "failed", str(error), f"kubectl describe pod -n {namespace}; the image is {image}")
        return
    finally:
        with suppress(CalmError):
            kubernetes.delete(f"{path}/{name}")
    for row in told:
        yield Check(f"in a pod: {row.name}", row.state, row.told, row.mend)


def _wait_for(kubernetes: Kubernetes, namespace: str, name: str) -> list[Check]:
    deadline = time.monotonic() + _POD_SECONDS
    while True:
        status = kubernetes.get(f"/api/v1/namespaces/{namespace}/pods/{name}").get("status") or {}
        waiting = [each.get("state", {}).get("waiting") or {} for each in status.get("containerStatuses") or ()]
        for each in waiting:
            if each.get("reason") in _NEVER_STARTS:
                raise CalmError(f"it does not start: {each['reason']} {shortened(str(each.get('message', '')), 200)}")
        if status.get("phase") in ("Succeeded", "Failed"):
            break
        if time.monotonic() > deadline:
            why = next((each.get("message", "") for each in status.get("conditions") or () if each.get("message")), "")
            raise CalmError(f"it has not ended within {_POD_SECONDS:.0f} s {shortened(why, 200)}".rstrip())
        time.sleep(_POLL_SECONDS)
    text = kubernetes.log(namespace, name)
    try:
        rows = json.loads(text[f"\n{text}".rindex("\n[") :])  # what libraries have printed comes before
        return [Check(str(r["name"]), _STATES[r["state"]], str(r["told"]), str(r["mend"])) for r in rows]
    except (ValueError, KeyError, TypeError):
        said = (text.strip().splitlines() or ["without a word"])[-1]
        raise CalmError(f"it ended without an answer: {shortened(said, 300)}") from None


def _pod(name: str, storage_uri: str, image: str) -> dict[str, Any]:
    """A pod that looks at what tasks find; it keeps to Kubernetes' `restricted` standard."""
    storage = ["--storage", storage_uri] if storage_uri else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": _PART_OF, "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "serviceAccountName": SERVICE_ACCOUNT,
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": int(_POD_SECONDS),
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "containers": [
                {
                    "name": "doctor",
                    "image": image,
                    "command": ["calm", "doctor", "--json", *storage],
                    "env": [{"name": "HOME", "value": "/tmp/home"}],
                    "envFrom": [
                        {"configMapRef": {"name": ENVIRONMENT, "optional": True}},
                        {"secretRef": {"name": CREDENTIALS, "optional": True}},
                    ],
                    "resources": {
                        "requests": {"cpu": "200m", "memory": "1Gi"},
                        "limits": {"cpu": "1", "memory": "2Gi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
                }
            ],
        },
    }
