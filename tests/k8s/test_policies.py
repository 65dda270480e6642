"""Each check finds what it is for: an overlay with one thing changed."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s import policies, schemas
from tests.k8s.rendered import K8S, Object, find, overlay, render

NODE = "spec.template.spec.replicatedJobs.0.template.spec"
POD = f"{NODE}.template.spec"
GONE = object()

Check = Callable[[list[Object]], policies.Problems]

WRONG: list[tuple[Check, str, str, Any, str]] = [
    (policies.restricted, "TrainingRuntime/calm-torch", f"{POD}.securityContext.runAsNonRoot", GONE, "as root"),
    (policies.restricted, "StatefulSet/postgres", "spec.template.spec.securityContext.runAsUser", 0, "as root"),
    (policies.restricted, "TrainingRuntime/calm-torch", f"{POD}.securityContext.seccompProfile", GONE, "seccomp"),
    (policies.restricted, "TrainingRuntime/calm-torch", f"{POD}.hostNetwork", True, "hostNetwork"),
    (policies.restricted, "TrainingRuntime/calm-torch", f"{POD}.volumes.0", {"name": "tmp", "hostPath": {}}, "volume"),
    (
        policies.restricted,
        "Deployment/mlflow",
        "spec.template.spec.initContainers.0.securityContext.allowPrivilegeEscalation",
        GONE,
        "privileges",
    ),
    (
        policies.restricted,
        "Job/buckets",
        "spec.template.spec.containers.0.securityContext.capabilities.add",
        ["IPC_LOCK"],
        "capabilities",
    ),
    (policies.restricted, "Deployment/mlflow", "spec.template.spec.containers.0.ports.0.hostPort", 80, "hostPort"),
    (
        policies.read_only,
        "TrainingRuntime/calm-torch",
        f"{POD}.containers.0.securityContext.readOnlyRootFilesystem",
        False,
        "may be written",
    ),
    (policies.read_only, "Deployment/mlflow", "spec.template.spec.containers.0.volumeMounts", [], "no /tmp"),
    (policies.pinned, "TrainingRuntime/calm-torch", f"{POD}.containers.0.image", "ghcr.io/a/b:latest", "tomorrow"),
    (policies.pinned, "Deployment/mlflow", "spec.template.spec.initContainers.0.image", "r.io:80/a/b", "tomorrow"),
    (policies.pinned, "Deployment/mlflow", "spec.template.spec.containers.0.image", "postgres:17.6", "no registry"),
    (policies.probed, "Deployment/mlflow", "spec.template.spec.containers.0.readinessProbe", GONE, "readinessProbe"),
    (policies.probed, "StatefulSet/seaweedfs", "spec.template.spec.containers.0.livenessProbe", GONE, "livenessProbe"),
    (policies.sized, "TrainingRuntime/calm-torch", f"{POD}.containers.0.resources.limits.memory", GONE, "no limit"),
    (policies.sized, "Job/buckets", "spec.template.spec.containers.0.resources.requests.cpu", GONE, "requests no CPU"),
    (policies.sized, "TrainingRuntime/calm-torch", f"{POD}.volumes.1.emptyDir.sizeLimit", GONE, "has no limit"),
    (policies.labelled, "Role/calm-pipeline", "metadata.labels", GONE, "part of nothing"),
    (
        policies.labelled,
        "TrainingRuntime/calm-torch",
        f"{NODE}.template.metadata.labels",
        {"app.kubernetes.io/name": "calm-training"},
        "lack a label",
    ),
    (policies.least_rights, "Role/calm-pipeline", "rules.0.verbs", ["*"], "* of trainer.kubeflow.org/trainjobs"),
    (policies.least_rights, "Role/calm-pipeline", "rules.2.resources", ["*"], "get, list, watch of /*"),
    (policies.least_rights, "Role/calm-pipeline", "rules.3.resources", ["pods/exec"], "get of /pods/exec"),
    (policies.least_rights, "Role/calm-pipeline", "rules.7.resourceNames", GONE, "all secrets"),
    (policies.least_rights, "Role/calm-pipeline", "kind", "ClusterRole", "all namespaces"),
    (policies.least_rights, "RoleBinding/calm-pipeline", "subjects.0.namespace", "default", "gives them to"),
    (policies.least_rights, "RoleBinding/calm-pipeline", "subjects.0.name", "default", "gives them to"),
    (
        policies.least_rights,
        "TrainingRuntime/calm-torch",
        f"{POD}.automountServiceAccountToken",
        GONE,
        "has a token",
    ),
    (policies.least_rights, "Deployment/mlflow", "spec.template.spec.serviceAccountName", GONE, "as default"),
    (policies.isolated, "NetworkPolicy/mlflow", "spec.ingress", [{"ports": [{"port": 5000}]}], "ingress of everything"),
    (policies.isolated, "NetworkPolicy/calm-training", "spec.egress.0", {}, "egress of everything"),
    (policies.drained, "PodDisruptionBudget/mlflow", "spec", {"minAvailable": 1, "selector": {}}, "stops everybody"),
    (policies.drained, "PodDisruptionBudget/mlflow", "spec.selector.matchLabels", {"a": "b"}, "no disruption budget"),
    (policies.no_secrets, "ConfigMap/calm-environment", "kind", "Secret", "is applied"),
    (policies.no_secrets, "ConfigMap/calm-environment", "data.AWS_SECRET_ACCESS_KEY", "abc", "AWS_SECRET_ACCESS_KEY"),
    (
        policies.no_secrets,
        "Deployment/mlflow",
        "spec.template.spec.containers.0.env.0",
        {"name": "MLFLOW_BACKEND_STORE_URI", "value": "postgresql://mlflow:abc@db/mlflow"},
        "MLFLOW_BACKEND_STORE_URI",
    ),
    (
        policies.no_secrets,
        "Deployment/mlflow",
        "spec.template.spec.initContainers.0.command.3",
        "postgresql://mlflow:abc@db/mlflow",
        "an argument",
    ),
    (policies.of_no_machine, "ConfigMap/calm-environment", "data.CACHE", "/home/ada/cache", "/home/ada"),
    (policies.of_no_machine, "ConfigMap/calm-environment", "data.A", "http://localhost:9000", "localhost"),
    (policies.saves_before_it_ends, "TrainingRuntime/calm-torch", f"{POD}.terminationGracePeriodSeconds", 30, "killed"),
    (policies.saves_before_it_ends, "TrainingRuntime/calm-torch", f"{POD}.restartPolicy", "OnFailure", "by itself"),
    (policies.saves_before_it_ends, "TrainingRuntime/calm-torch", f"{POD}.volumes.1.emptyDir.medium", GONE, "shm"),
    (policies.in_its_region, "TrainingRuntime/calm-torch", f"{POD}.containers.0.env", [], "no region"),
    (policies.in_its_region, "Job/buckets", "spec.template.spec.containers.0.env.1.name", "AWS_REGION", "no region"),
    (policies.own_namespace, "NetworkPolicy/default-deny", "spec.policyTypes", ["Ingress"], "by default"),
    (policies.own_namespace, "ResourceQuota/calm", "spec.hard.pods", GONE, "no quota"),
    (policies.own_namespace, "LimitRange/calm", "spec.limits.0.defaultRequest.cpu", GONE, "are refused"),
]


@pytest.mark.parametrize(
    ("check", "where", "path", "value", "words"), WRONG, ids=lambda each: getattr(each, "__name__", None)
)
def test_a_check_finds_what_it_is_for(check: Check, where: str, path: str, value: Any, words: str) -> None:
    objects = overlay("local")
    assert list(check(objects)) == []
    _set(find(objects, *where.split("/")), path, value)
    assert any(words in problem for problem in check(objects))


def test_a_pod_without_a_policy_is_found() -> None:
    objects = [each for each in overlay("standalone") if each["kind"] != "NetworkPolicy"]
    assert "TrainingRuntime/calm-torch: Egress is open" in list(policies.isolated(objects))


@pytest.mark.parametrize(
    ("where", "path", "value", "words"),
    [
        ("Deployment/mlflow", "spec.template.spec.serviceAccountName", "mflow", "ServiceAccount/mflow is nowhere"),
        ("Deployment/mlflow", "spec.template.spec.containers.0.env.3.valueFrom.configMapKeyRef.key", "A", "has no A"),
        ("TrainingRuntime/calm-torch", f"{POD}.containers.0.envFrom.1.secretRef.name", "a", "Secret/a is nowhere"),
        ("StatefulSet/seaweedfs", "spec.template.spec.volumes.1.secret.secretName", "b", "Secret/b is nowhere"),
        ("Service/mlflow", "spec.selector", {"app": "mlflow"}, "no pod has a port http"),
    ],
)
def test_a_name_that_nobody_makes_is_found(where: str, path: str, value: Any, words: str) -> None:
    objects = overlay("local")
    _set(find(objects, *where.split("/")), path, value)
    secrets = {"calm-credentials", "mlflow-credentials", "postgres-credentials", "seaweedfs-credentials"}
    assert [problem for problem in policies.closed(objects, secrets) if words in problem]


@pytest.mark.parametrize(
    ("where", "path", "value", "words"),
    [
        ("TrainingRuntime/calm-torch", "spec.mlPolicy.numNode", 2, "numNode"),
        ("TrainingRuntime/calm-torch", "spec.mlPolicy.numNodes", "two", "numNodes"),
        ("TrainingRuntime/calm-torch", "spec.template.spec.failurePolicy.maxRestart", 1, "maxRestart"),
        ("TrainingRuntime/calm-torch", "spec.template.spec.failurePolicy.restartStrategy", "Blocking", "Blocking"),
        ("TrainingRuntime/calm-torch", "spec.template.spec.failurePolicy.rules.0.action", "FailJob", "FailJob"),
        ("TrainingRuntime/calm-torch", "spec.template.spec.failurePolicy.rules.0.onJobFailureReason", [], "Reason'"),
        ("TrainingRuntime/calm-torch", f"{NODE}.podFailurePolicy.rules.0.onExitCode", {}, "onExitCode'"),
        ("TrainingRuntime/calm-torch", f"{NODE}.podFailurePolicy.rules.0.onExitCodes.value", [2], "'value'"),
        ("TrainingRuntime/calm-torch", f"{NODE}.podFailurePolicy.rules.1.onPodConditions.0.typ", "a", "'typ'"),
        (
            "TrainingRuntime/calm-torch",
            f"{POD}.containers.0.securityContext.readOnlyRootFileSystem",
            True,
            "FileSystem",
        ),
        ("TrainingRuntime/calm-torch", f"{POD}.volumes.1.emptyDir.sizelimit", "1Gi", "sizelimit"),
        ("NetworkPolicy/calm-training", "spec.policyType", [], "policyType"),
        ("Deployment/mlflow", "spec.template.spec.containers.0.readinessProb", {}, "readinessProb"),
        ("ResourceQuota/calm", "spec.hards", {}, "hards"),
    ],
)
def test_a_typing_mistake_is_found_at_any_depth(where: str, path: str, value: Any, words: str) -> None:
    found = find(overlay("local"), *where.split("/"))
    assert schemas.errors(found) == []
    _set(found, path, value)
    assert any(words in error for error in schemas.errors(found))


def test_a_typing_mistake_in_a_queue_is_found() -> None:
    [queue] = render(K8S / "components" / "kueue")
    assert schemas.errors(queue) == []
    queue["spec"]["clusterqueue"] = queue["spec"].pop("clusterQueue")
    assert len(schemas.errors(queue)) == 2


def _set(found: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        found = found[int(name)] if isinstance(found, list) else found[name]
    if value is GONE:
        del found[last]
    else:
        found[int(last) if isinstance(found, list) else last] = value
