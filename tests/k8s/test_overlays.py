"""Every overlay renders, is what a Kubernetes API takes, and keeps to the policies."""

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

import mlflow.cli
import pytest
import yaml

from components.image import IMAGE
from components.training import pods, template
from pipelines.dags.pods import ENVIRONMENT
from tests.k8s import policies, schemas
from tests.k8s.rendered import (
    K8S,
    OVERLAYS,
    OWN_NAMESPACE,
    Object,
    arguments,
    containers,
    find,
    overlay,
    render,
    secrets_of_local,
)

SECRETS = {
    "local": set(secrets_of_local()),
    "production": {"calm-credentials", "mlflow-credentials"},
    "gpu": {"calm-credentials", "mlflow-credentials"},
    "standalone": {"calm-credentials"},
}
"""Those that somebody has made before; docs/cluster.md says how."""


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_what_a_cluster_takes(name: str) -> None:
    objects = overlay(name)
    assert [error for each in objects for error in schemas.errors(each)] == []
    assert {each["metadata"]["namespace"] for each in objects} == {"kubeflow" if name == "standalone" else "calm"}


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("check", policies.CHECKS, ids=lambda check: check.__name__)
def test_a_policy_holds(check: Callable[[list[Object]], policies.Problems], name: str) -> None:
    assert list(check(overlay(name))) == []


@pytest.mark.parametrize("name", OWN_NAMESPACE)
def test_a_namespace_of_ours_is_closed_and_has_a_quota(name: str) -> None:
    assert list(policies.own_namespace(overlay(name))) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_is_named_that_nobody_makes(name: str) -> None:
    assert list(policies.closed(overlay(name), SECRETS[name])) == []


def test_kubeflows_own_namespace_gets_no_rule_for_pods_of_others() -> None:
    for each in overlay("standalone"):
        assert each["kind"] not in ("ResourceQuota", "LimitRange")
        if each["kind"] == "NetworkPolicy":
            assert not policies.selects(each["spec"]["podSelector"], {"workflows.argoproj.io/workflow": "anybody's"})


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_names_that_pipelines_use_are_there(name: str) -> None:
    objects = overlay(name)
    settings = find(objects, "ConfigMap", "calm-environment")["data"]
    assert settings.keys() == ENVIRONMENT.keys()
    assert find(objects, "TrainingRuntime", "calm-torch")["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    for kind in ("ServiceAccount", "Role", "RoleBinding"):
        assert find(objects, kind, "calm-pipeline")
    ours = {each["image"] for _, each, _ in containers(objects) if "calm-pipelines" in each["image"]}
    assert ours == ({IMAGE, f"{IMAGE}-cuda"} if name == "gpu" else {IMAGE})


def test_the_runtime_runs_what_this_library_has() -> None:
    """Container, command and name are those that the launcher of TrainJobs counts on."""
    runtime = find(overlay("production"), "TrainingRuntime", template.RUNTIME)
    [job] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    [node] = job["template"]["spec"]["template"]["spec"]["containers"]
    assert (job["name"], node["name"], node["command"][:2]) == (pods.NODE, pods.NODE, ["python3", "-m"])
    assert importlib.util.find_spec(node["command"][2])


def test_an_overlay_of_ones_own_sets_namespace_image_addresses_and_queue(tmp_path: Path) -> None:
    """As docs/cluster.md writes it; the JSON path of an image in the TrainingRuntime is not kustomize's own."""
    page = (K8S.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    [written] = re.findall(r"^```text\n(apiVersion: kustomize.*?)^```", page, re.MULTILINE | re.DOTALL)
    own = yaml.safe_load(written)
    place = tmp_path / "own"
    place.mkdir()
    for field in ("resources", "components"):
        own[field] = [os.path.relpath(K8S / "overlays" / "mine" / each, place.resolve()) for each in own[field]]
    (place / "kustomization.yaml").write_text(yaml.safe_dump(own))
    objects = render(place)
    assert {each["metadata"]["namespace"] for each in objects} == {own["namespace"]}
    assert [error for each in objects for error in schemas.errors(each)] == []
    assert list(policies.least_rights(objects)) == []  # a RoleBinding's subjects move too
    assert {each["image"] for _, each, _ in containers(objects)} == {
        f"{own['images'][0]['newName']}@{own['images'][0]['digest']}"
    }
    assert find(objects, "LocalQueue", "calm")
    for changed in own["configMapGenerator"]:
        [settings] = [each["data"] for each in objects if each["metadata"]["name"].startswith(changed["name"])]
        assert dict(each.split("=", 1) for each in changed["literals"]).items() <= settings.items()


def test_mlflow_takes_its_arguments_and_answers_to_the_names_that_runs_use() -> None:
    objects = overlay("local")
    server = find(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    with mlflow.cli.server.make_context("server", arguments(objects, server)) as context:
        assert context.params["artifacts_destination"] == "s3://mlflow"
        hosts = context.params["allowed_hosts"].split(",")
    for name in OVERLAYS:
        uri = find(overlay(name), "ConfigMap", "calm-environment")["data"]["MLFLOW_TRACKING_URI"]
        assert uri.removeprefix("http://") in hosts
    assert not any("*" in host for host in hosts)


@pytest.mark.parametrize(
    ("exit_code", "is_disrupted", "expected"),
    [
        (2, False, "fails"),  # wrong settings
        (1, False, "restarts, counted"),
        (137, False, "restarts, counted"),  # killed, e.g. for memory
        (69, False, "restarts, counted"),  # the nodes did not meet
        (75, False, "restarts"),  # asked to stop, together with a pod that is disrupted
        (75, True, "restarts"),
        (143, True, "restarts"),
        (1, True, "restarts"),
    ],
)
def test_what_a_failed_pod_does_to_a_training(exit_code: int, is_disrupted: bool, expected: str) -> None:
    spec = find(overlay("production"), "TrainingRuntime", "calm-torch")["spec"]["template"]["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    assert _reaction(spec, exit_code, is_disrupted) == expected


def test_only_the_message_tells_a_permanent_failure_from_a_disruption() -> None:
    """Both fail the Job for the same reason."""
    spec = find(overlay("production"), "TrainingRuntime", "calm-torch")["spec"]["template"]["spec"]
    del spec["failurePolicy"]["rules"][0]["onJobFailureMessagePatterns"]
    assert _reaction(spec, 75, False) == "fails"


def _reaction(spec: Object, exit_code: int, is_disrupted: bool) -> str:
    """As Kubernetes' Job controller and then JobSet's decide, for a pod that has failed."""
    [job] = spec["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["backoffLimit"] == 0
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for number, rule in enumerate(job["podFailurePolicy"]["rules"]):
        conditions = [(each["type"], each["status"]) for each in rule.get("onPodConditions", [])]
        codes = rule.get("onExitCodes", {})
        how = f"matching {rule['action']} rule at index {number}"
        if exit_code in codes.get("values", []):
            assert codes["operator"] == "In" and codes["containerName"] == "node" and rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            message = f"Container node for pod calm/a-node-0-1-x2 failed with exit code {exit_code} {how}"
            break
        if is_disrupted and ("DisruptionTarget", "True") in conditions:
            assert rule["action"] == "FailJob"
            reason, message = "PodFailurePolicy", f"Pod calm/a-node-0-1-x2 has condition DisruptionTarget {how}"
            break
    actions = {
        "FailJobSet": "fails",
        "RestartJobSet": "restarts, counted",
        "RestartJobSetAndIgnoreMaxRestarts": "restarts",
    }
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(each, message) for each in patterns):
            return actions[rule["action"]]
    return actions["RestartJobSet"]
