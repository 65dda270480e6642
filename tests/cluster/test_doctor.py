"""`calm doctor`: of a machine, and of a cluster."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_core.store import storage
from pipelines.checks import Check
from pipelines.cluster import doctor
from pipelines.local import doctor as of_machine
from pipelines.local.object_store import BUCKET
from tests.cluster.conftest import Call
from tests.cluster.servers import Kubeflow, Kubernetes, refuse
from tests.object_store import environment

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
TEAM = "namespaces/kubeflow"


def rows_of(call: Call, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code, out, err = call("doctor", "--json", *arguments)
    assert err == ""
    return code, {row["name"]: row for row in json.loads(out)}


def test_a_machine_that_has_all_is_well(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_machine, "_LEAST_SHARED_MEMORY", 0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, rows = rows_of(call, "--storage", str(tmp_path))
    assert code == 0, rows
    assert {name: row["state"] for name, row in rows.items()} == {
        **dict.fromkeys(("Python", "packages", "home", "temporary files", "shared memory", "storage"), "ok"),
        "MLflow": "unknown",
    }
    code, out, _ = call("doctor")
    assert code == 0
    assert out.splitlines()[0].startswith("ok      Python  ")


def test_what_a_machine_lacks_fails_with_how_to_mend_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_machine, "requires", lambda name: ["torch>=2", "no-such-package>=1; extra == 'train'"])
    monkeypatch.setattr(of_machine, "_LEAST_SHARED_MEMORY", 1 << 60)
    monkeypatch.setattr(of_machine, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    code, rows = rows_of(call, "--storage", str(tmp_path / "file"))
    assert code == 1
    failed = {name for name, row in rows.items() if row["state"] == "failed"}
    assert failed == {"packages", "home", "storage", "MLflow"}
    assert "fine for one rank" in rows["shared memory"]["told"]
    assert all(rows[name]["mend"] for name in failed)
    assert rows["packages"]["told"] == "no-such-package: not installed"
    assert "hunter2" not in json.dumps(rows)


def test_storage_gives_back_what_was_written_to_it(
    s3_endpoint: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    with environment(monkeypatch, s3_endpoint, tmp_path / "cache"):
        _, rows = rows_of(call, "--storage", uri)
        assert rows["storage"]["told"] == f"{uri}: written, read and removed"
        assert storage.glob(f"{uri}/*") == []


@pytest.fixture
def whole(kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> Kubernetes:
    """A cluster that has all; its pod has found all."""
    monkeypatch.setattr(doctor, "_POLL_SECONDS", 0.01)
    patches = {"runtimePatches": {}, "trainerStatus": {}}
    kubernetes.objects |= {
        TRAINER: {"resources": [{"name": "trainjobs"}, {"name": "trainjobs/status"}, {"name": "trainingruntimes"}]},
        f"/openapi/v3{TRAINER}": {"components": {"schemas": {"TrainJob": {"properties": patches}}}},
        f"{TRAINER}/{TEAM}/trainingruntimes/calm-torch": {},
        f"/api/v1/{TEAM}/serviceaccounts/calm-pipeline": {},
        f"/apis/rbac.authorization.k8s.io/v1/{TEAM}/rolebindings/calm-pipeline": {},
        f"/api/v1/{TEAM}/configmaps/calm-environment": {
            "data": {"AWS_ENDPOINT_URL": "http://s3:8333", "MLFLOW_TRACKING_URI": "http://me:hunter2@mlflow"}
        },
        f"/api/v1/{TEAM}/secrets/calm-credentials": {"kind": "PartialObjectMetadata"},
        "/api/v1/nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "8"}}}, {"status": {}}]},
        f"/api/v1/{TEAM}/resourcequotas": {
            "items": [{"metadata": {"name": "q"}, "status": {"hard": {"pods": "50"}, "used": {"pods": "3"}}}]
        },
    }
    kubernetes.log = (
        b"[W] a library says [so]\n"
        + json.dumps([vars(Check("storage", "ok", "s3://bucket/calm: written, read and removed"))]).encode()
    )
    return kubernetes


IN_A_CLUSTER = ("--cluster", "--storage", "s3://bucket/calm")


def test_a_cluster_that_has_all_is_well(kubeflow: Kubeflow, whole: Kubernetes, call: Call) -> None:
    code, rows = rows_of(call, *IN_A_CLUSTER, "--host", kubeflow.url)
    assert code == 0, rows
    assert {row["state"] for row in rows.values()} == {"ok"}
    assert rows["Trainer"]["told"].endswith("2.3 or newer")
    assert rows["GPU nodes"]["told"] == "8 GPUs on 1 of 2 nodes"
    assert rows["quota"]["told"] == "pods 3 of 50"
    assert rows["in a pod: storage"]["told"].startswith("s3://bucket/calm")
    assert "hunter2" not in json.dumps(rows)
    [pod] = whole.pods
    assert whole.deleted == [f"/api/v1/{TEAM}/pods/{pod['metadata']['name']}"]
    accepts = [place for _, place, _, _ in whole.requests if place.endswith("/secrets/calm-credentials")]
    assert len(accepts) == 1


def test_the_pod_keeps_to_the_restricted_standard_and_holds_no_secret(
    kubeflow: Kubeflow, whole: Kubernetes, call: Call
) -> None:
    call("doctor", *IN_A_CLUSTER, "--host", kubeflow.url)
    [pod] = whole.pods
    spec, [container] = pod["spec"], pod["spec"]["containers"]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["command"] == ["calm", "doctor", "--json", "--storage", "s3://bucket/calm"]
    assert container["env"] == [{"name": "HOME", "value": "/tmp/home"}]


Change = Callable[[Kubernetes], object]
LACKS: dict[str, tuple[Change, str, str, str]] = {
    "no Trainer": (lambda it: it.objects.pop(TRAINER), "Trainer", "failed", f"{TRAINER[6:]}: is not there"),
    "an old Trainer": (
        lambda it: it.objects.update({f"/openapi/v3{TRAINER}": {}}),
        "Trainer",
        "failed",
        "is older than 2.2",
    ),
    "a Trainer without runtimes": (
        lambda it: it.objects.update({TRAINER: {"resources": [{"name": "trainjobs"}]}}),
        "Trainer",
        "failed",
        "lacks trainingruntimes",
    ),
    "no runtime of ours": (
        lambda it: it.objects.pop(f"{TRAINER}/{TEAM}/trainingruntimes/calm-torch"),
        "runtime calm-torch",
        "failed",
        "trainingruntimes/calm-torch in kubeflow: is not there",
    ),
    "no service account": (
        lambda it: it.objects.pop(f"/api/v1/{TEAM}/serviceaccounts/calm-pipeline"),
        "service account",
        "failed",
        "serviceaccounts/calm-pipeline in kubeflow: is not there",
    ),
    "settings without an endpoint": (
        lambda it: it.objects.update({f"/api/v1/{TEAM}/configmaps/calm-environment": {"data": None}}),
        "settings calm-environment",
        "failed",
        "lacks AWS_ENDPOINT_URL, MLFLOW_TRACKING_URI",
    ),
    "no right to see Secrets": (
        lambda it: it.forbidden.add(".*/secrets/.*"),
        "credentials calm-credentials",
        "unknown",
        "you have no right to read it",
    ),
    "no right to see nodes": (lambda it: it.forbidden.add("/api/v1/nodes"), "GPU nodes", "unknown", "no right"),
    "no GPUs": (lambda it: it.objects.update({"/api/v1/nodes": {"items": []}}), "GPU nodes", "unknown", "none of 0"),
    "a quota that is used up": (
        lambda it: it.objects.update(
            {
                f"/api/v1/{TEAM}/resourcequotas": {
                    "items": [{"metadata": {"name": "q"}, "status": {"hard": {"pods": "5"}, "used": {"pods": "5"}}}]
                }
            }
        ),
        "quota",
        "failed",
        "q: pods is used up, 5 of 5",
    ),
    "a damaged list of nodes": (
        lambda it: it.objects.update({"/api/v1/nodes": {"items": [7]}}),
        "GPU nodes",
        "failed",
        "an answer is damaged (AttributeError)",
    ),
    "a damaged state of the pod": (
        lambda it: setattr(it, "pod_status", {"containerStatuses": [7]}),
        "a pod",
        "failed",
        "an answer is damaged",
    ),
    "no right to start a pod": (lambda it: it.forbidden.add(f"/api/v1/{TEAM}/pods"), "a pod", "unknown", "no right"),
    "an image that is not there": (
        lambda it: setattr(
            it,
            "pod_status",
            {
                "phase": "Pending",
                "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}],
            },
        ),
        "a pod",
        "failed",
        "it does not start: ErrImagePull not found",
    ),
    "a pod that says something else": (
        lambda it: setattr(it, "log", b'[{"name": "a", "state": "great", "told": "", "mend": ""}]\n'),
        "a pod",
        "failed",
        "without an answer",
    ),
    "a pod that says nothing": (lambda it: setattr(it, "log", b"oops\n"), "a pod", "failed", "without an answer: oops"),
}


@pytest.mark.parametrize("name", LACKS)
def test_what_a_cluster_lacks_is_one_row(name: str, kubeflow: Kubeflow, whole: Kubernetes, call: Call) -> None:
    change, row, state, says = LACKS[name]
    change(whole)
    code, rows = rows_of(call, *IN_A_CLUSTER, "--host", kubeflow.url)
    assert rows[row]["state"] == state
    assert says in rows[row]["told"]
    assert code == (1 if state == "failed" else 0)
    assert state != "failed" or rows[row]["mend"]
    assert [each["state"] for each in rows.values()].count("ok") >= 8
    assert len(whole.deleted) == len(whole.pods)


def test_a_cluster_that_is_away_is_told_and_nothing_is_guessed(call: Call) -> None:
    code, rows = rows_of(call, "--cluster", "--host", "http://127.0.0.1:9")
    assert code == 1
    assert "nothing answers there" in rows["Kubeflow Pipelines"]["told"]
    assert rows["Kubernetes"]["state"] == "unknown"
    assert {row["state"] for name, row in rows.items() if name != "Kubeflow Pipelines"} == {"unknown"}


def test_a_kubernetes_that_asks_for_a_login_is_one_row(kubeflow: Kubeflow, whole: Kubernetes, call: Call) -> None:
    whole.fail("GET", ".*", refuse(401), times=10**6)
    _, rows = rows_of(call, *IN_A_CLUSTER, "--host", kubeflow.url)
    assert "has expired (401); log in again, as for kubectl" in rows["Kubernetes"]["told"]
    assert "kube-secret" not in json.dumps(rows)
