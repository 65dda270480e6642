"""What has to hold for all that is applied. Each check yields what is wrong, one line each."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from tests.k8s.rendered import Object, containers, pod_templates

Problems = Iterator[str]
PART_OF = ("app.kubernetes.io/part-of", "calm-pipelines")
NAME_LABEL = "app.kubernetes.io/name"

RIGHTS = {
    ("trainer.kubeflow.org", "trainjobs"): "create delete get list watch",
    ("trainer.kubeflow.org", "trainingruntimes"): "get list",
    ("", "pods"): "get list watch",
    ("", "pods/log"): "get",
    ("", "events"): "get list watch",
    ("argoproj.io", "workflows"): "get",
    ("argoproj.io", "workflowtaskresults"): "create patch",
    ("", "configmaps"): "get",
    ("", "secrets"): "get",
}
"""What a run's pods do: the TrainJob of a training, then Kubeflow's driver and launcher and Argo's executor."""
_NAMED = ("configmaps", "secrets")
_VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|ACCESS_KEY", re.IGNORECASE)
_OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|Users|work|workspace)/|\bfile://|://localhost|://127\.0\.0\.1")


def restricted(objects: list[Object]) -> Problems:
    """Pods pass Kubernetes' standard `restricted` (https://kubernetes.io/docs/concepts/security/pod-security-standards/)."""
    for where, template in pod_templates(objects):
        spec = template["spec"]
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(name):
                yield f"{where}: {name}"
        for volume in spec.get("volumes", []):
            if not any(kind in volume for kind in _VOLUMES):
                yield f"{where}: volume {volume['name']}"
        yield from _user(where, spec)
        if "sysctls" in spec.get("securityContext", {}):
            yield f"{where}: sysctls"
    for where, container, _ in containers(objects):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{where}: privileges"
        if context.get("capabilities", {}).get("drop") != ["ALL"] or context["capabilities"].get("add"):
            yield f"{where}: capabilities"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where}: hostPort"


def _user(where: str, spec: Object) -> Problems:
    contexts = [each.get("securityContext", {}) for each in [*spec.get("initContainers", []), *spec["containers"]]]
    merged = [spec.get("securityContext", {}) | context for context in contexts]
    for context in merged:
        if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
            yield f"{where}: may run as root"
        if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{where}: no seccomp profile"


def read_only(objects: list[Object]) -> Problems:
    """Root file systems are read-only, and /tmp is a folder of the pod."""
    for where, container, _ in containers(objects):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: its root file system may be written"
        if not any(mount["mountPath"] == "/tmp" for mount in container.get("volumeMounts", [])):
            yield f"{where}: has no /tmp"


def pinned(objects: list[Object]) -> Problems:
    """Images have a registry, and a version or a digest."""
    for where, container, _ in containers(objects):
        image = container.get("image", "")
        name, _, digest = image.partition("@")
        tag = name.rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
        if not digest and tag in ("", "latest"):
            yield f"{where}: {image or 'no image'} may be another image tomorrow"
        if "/" not in image or "." not in image.partition("/")[0]:
            yield f"{where}: {image} is of no registry"


def probed(objects: list[Object]) -> Problems:
    """A server says when it has started, is ready, and is stuck."""
    for where, container, is_server in containers(objects):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe") if is_server else ():
            if probe not in container:
                yield f"{where}: no {probe}"


def sized(objects: list[Object]) -> Problems:
    """Containers request CPU and memory, and get no more memory than their limit; folders on a node have a limit."""
    for where, container, _ in containers(objects):
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
            yield f"{where}: requests no CPU or memory"
        if "memory" not in resources.get("limits", {}):
            yield f"{where}: no limit of memory"
    for where, template in pod_templates(objects):
        for volume in template["spec"].get("volumes", []):
            if volume.get("emptyDir", {}).get("medium") == "Memory" and "sizeLimit" not in volume["emptyDir"]:
                yield f"{where}: volume {volume['name']} has no limit"


def labelled(objects: list[Object]) -> Problems:
    """All objects and pods are part of calm-pipelines; pods have a name."""
    for each in objects:
        if each["metadata"].get("labels", {}).get(PART_OF[0]) != PART_OF[1]:
            yield f"{each['kind']}/{each['metadata']['name']}: is part of nothing"
    for where, template in pod_templates(objects):
        labels = template["metadata"]["labels"]
        if labels.get(PART_OF[0]) != PART_OF[1] or NAME_LABEL not in labels:
            yield f"{where}: its pods lack a label"


def least_rights(objects: list[Object]) -> Problems:
    """Roles give what is used and no more, in this namespace, to our accounts; other pods have no token."""
    accounts = {each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount"}
    for each in objects:
        where = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"].startswith("Cluster"):
            yield f"{where}: is for all namespaces"
        for rule in each.get("rules", []) if each["kind"] == "Role" else ():
            yield from _excess(where, rule)
        if each["kind"] == "RoleBinding":
            for subject in each["subjects"]:
                is_ours = subject["kind"] == "ServiceAccount" and subject["name"] in accounts
                if not is_ours or subject.get("namespace") != each["metadata"]["namespace"]:
                    yield f"{where}: gives them to {subject}"
    for where, template in pod_templates(objects):
        if template["spec"].get("automountServiceAccountToken") is not False:
            yield f"{where}: has a token"
        if template["spec"].get("serviceAccountName", "default") == "default":
            yield f"{where}: runs as default"


def _excess(where: str, rule: Object) -> Problems:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            excess = set(rule["verbs"]) - set(RIGHTS.get((group, resource), "").split())
            if excess:
                yield f"{where}: {', '.join(sorted(excess))} of {group}/{resource}"
            if resource in _NAMED and not rule.get("resourceNames"):
                yield f"{where}: all {resource}"


def isolated(objects: list[Object]) -> Problems:
    """Every pod is under a policy in both directions, and no rule lets everything in or out."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    for where, template in pod_templates(objects):
        for direction in ("Ingress", "Egress"):
            if not any(
                direction in policy["spec"]["policyTypes"]
                and selects(policy["spec"]["podSelector"], template["metadata"]["labels"])
                for policy in policies
            ):
                yield f"{where}: {direction} is open"
    for policy in policies:
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []):
                if not rule.get(peers) and not (direction == "egress" and rule.get("ports")):
                    yield f"NetworkPolicy/{policy['metadata']['name']}: {direction} of everything"


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a selector of labels matches."""
    wanted = selector.get("matchLabels", {})
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    for each in selector.get("matchExpressions", []):
        found = labels.get(each["key"])
        if each["operator"] == "In" and found not in each["values"]:
            return False
        if each["operator"] == "Exists" and found is None:
            return False
        if each["operator"] not in ("In", "Exists"):
            raise NotImplementedError(each["operator"])
    return True


def own_namespace(objects: list[Object]) -> Problems:
    """A namespace of ours denies what no policy allows, and has a quota, and requests for pods that name none."""
    denying = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if not any(each["kind"] == "NetworkPolicy" and each["spec"] == denying for each in objects):
        yield "nothing is denied by default"
    quotas = [each["spec"]["hard"] for each in objects if each["kind"] == "ResourceQuota"]
    if not any(
        {"pods", "requests.cpu", "requests.memory", "requests.nvidia.com/gpu"} <= hard.keys() for hard in quotas
    ):
        yield "no quota"
    for each in objects:
        for limit in each["spec"]["limits"] if each["kind"] == "LimitRange" else ():
            if not {"cpu", "memory"} <= limit.get("defaultRequest", {}).keys():
                yield f"LimitRange/{each['metadata']['name']}: pods that request nothing are refused by the quota"
    if not any(each["kind"] == "LimitRange" for each in objects):
        yield "pods that request nothing are refused by the quota"


def drained(objects: list[Object]) -> Problems:
    """A Deployment has a disruption budget, which keeps no node from being drained."""
    budgets = [each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"]
    for each in objects:
        if each["kind"] == "Deployment":
            labels = each["spec"]["template"]["metadata"]["labels"]
            found = [budget for budget in budgets if selects(budget["selector"], labels)]
            if not found or any(budget.get("maxUnavailable", 0) < 1 for budget in found):
                yield f"Deployment/{each['metadata']['name']}: no disruption budget, or one that stops everybody"


def no_secrets(objects: list[Object]) -> Problems:
    """What is secret comes from a Secret that is made elsewhere."""
    for each in objects:
        where = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Secret":
            yield f"{where}: is applied"
        for name, value in (each.get("data") or {}).items() if each["kind"] == "ConfigMap" else ():
            if _is_secret(name, value):
                yield f"{where}: {name}"
    for where, container, _ in containers(objects):
        for variable in container.get("env", []):
            if _is_secret(variable["name"], variable.get("value", "")):
                yield f"{where}: {variable['name']}"
        for argument in [*container.get("command", []), *container.get("args", [])]:
            if _is_secret("", argument):
                yield f"{where}: an argument has a password"


def _is_secret(name: str, value: str) -> bool:
    return bool(value) and bool(_SECRET_NAME.search(name) or ("://" in value and urlsplit(value).password))


def of_no_machine(objects: list[Object]) -> Problems:
    """Nothing names a folder or an address of somebody's machine."""
    for where, text in _texts(objects, ""):
        if _OF_A_MACHINE.search(text):
            yield f"{where}: {text}"


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, f"{where}.{name}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _texts(each, f"{where}.{number}")


def saves_before_it_ends(objects: list[Object]) -> Problems:
    """A training's pods start again only by the JobSet's rules, and more time than torchrun gives its ranks."""
    for where, template in pod_templates(objects):
        if not where.startswith("TrainingRuntime"):
            continue
        spec = template["spec"]
        node = next(each for each in spec["containers"] if each["name"] == "node")
        seconds = {each["name"]: each.get("value") for each in node["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
        if spec["terminationGracePeriodSeconds"] < int(seconds) + 30:
            yield f"{where}: is killed while its ranks save"
        if spec["restartPolicy"] != "Never":
            yield f"{where}: restarts by itself"
        places = {mount["mountPath"]: mount["name"] for mount in node["volumeMounts"]}
        volumes = {each["name"]: each for each in spec["volumes"]}
        if volumes.get(places.get("/dev/shm", ""), {}).get("emptyDir", {}).get("medium") != "Memory":
            yield f"{where}: /dev/shm is not in memory"


def in_its_region(objects: list[Object]) -> Problems:
    """What has keys of S3 has the region by the name that botocore reads: of AWS_REGION it knows nothing."""
    for where, container, _ in containers(objects):
        variables = {each["name"]: each for each in container.get("env", [])}
        from_secrets = [each for each in container.get("envFrom", []) if "secretRef" in each]
        if ("AWS_ACCESS_KEY_ID" in variables or from_secrets) and "AWS_DEFAULT_REGION" not in variables:
            yield f"{where}: has no region"


def closed(objects: list[Object], secrets: set[str]) -> Problems:
    """What pods name is applied, or known to be made; Services find pods and ports."""
    known = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    for where, template in pod_templates(objects):
        spec = template["spec"]
        named = [("ServiceAccount", spec["serviceAccountName"])]
        named += [("Secret", each["secret"]["secretName"]) for each in spec.get("volumes", []) if "secret" in each]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            for source in container.get("envFrom", []):
                named += [(kind, ref["name"]) for kind, ref in _references(source)]
            for variable in container.get("env", []):
                for kind, ref in _references(variable.get("valueFrom", {})):
                    named.append((kind, ref["name"]))
                    if kind == "ConfigMap" and ref["key"] not in known.get((kind, ref["name"]), {}).get("data", {}):
                        yield f"{where}: {kind}/{ref['name']} has no {ref['key']}"
        for kind, name in named:
            if (kind, name) not in known and not (kind == "Secret" and name in secrets):
                yield f"{where}: {kind}/{name} is nowhere"
    for each in objects:
        if each["kind"] == "Service":
            yield from _unserved(each, objects)


def _references(source: Object) -> Iterator[tuple[str, Object]]:
    for field, kind in (
        ("configMapRef", "ConfigMap"),
        ("secretRef", "Secret"),
        ("configMapKeyRef", "ConfigMap"),
        ("secretKeyRef", "Secret"),
    ):
        if field in source:
            yield kind, source[field]


def _unserved(service: Object, objects: list[Object]) -> Problems:
    selector = {"matchLabels": service["spec"]["selector"]}
    found = [template for _, template in pod_templates(objects) if selects(selector, template["metadata"]["labels"])]
    ports = {port["name"] for template in found for each in template["spec"]["containers"] for port in each["ports"]}
    for port in service["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"Service/{service['metadata']['name']}: no pod has a port {port['targetPort']}"


CHECKS: list[Callable[[list[Object]], Problems]] = [
    restricted,
    read_only,
    pinned,
    probed,
    sized,
    labelled,
    least_rights,
    isolated,
    drained,
    no_secrets,
    of_no_machine,
    saves_before_it_ends,
    in_its_region,
]
"""What holds in every overlay; `own_namespace` and `closed` have conditions."""
