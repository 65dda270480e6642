"""A small Kubernetes API over HTTP with Kubeflow's Trainer in it, which a test plays the part of.

What it is asked and what it answers are held against the published models: a name that they do not know is an error.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from kubeflow_trainer_api import models

from components.training import kubernetes_api, pod_log, trainjob

NAMESPACE, TOKEN, OWN_POD, RUN = "team", "token-1", "calm-train-x7-2041", "3f0c8a5e-0000-4000-8000-000000000001"
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "calm-train-x7", "uid": "w-1"}
IMAGE = "registry.example/calm@sha256:" + "0" * 64
RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
_CORE, _TRAINER = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}"
_QUERIES = {
    "pods": {"labelSelector", "limit", "continue"},
    "log": {"container", "follow", "timestamps", "sinceTime", "tailLines"},
    "events": {"fieldSelector", "limit", "continue"},
}


def checked(model: Any, value: dict[str, Any]) -> dict[str, Any]:
    """A value of a published model, which has no field that the model does not know."""
    differing = list(_differing(model.from_dict(value).to_dict(), value, ""))
    assert not differing, f"{model.__name__}: {differing}"
    return value


def _differing(known: Any, given: Any, where: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name not in known:
                yield f"{where}.{name} is unknown"
            else:
                yield from _differing(known[name], value, f"{where}.{name}")
    elif isinstance(given, list) and isinstance(known, list):
        for number, value in enumerate(given):
            yield from _differing(known[number], value, f"{where}[{number}]")
    elif isinstance(known, datetime):
        if datetime.fromisoformat(given.replace("Z", "+00:00")) != known:
            yield f"{where} is another time"
    elif known != given:
        yield f"{where} is {known!r}, not {given!r}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass
class Fault:
    """An answer that is no good one, to so many requests.

    Attributes:
        method, path: Of the requests; the path is a pattern.
        status: 0: the connection is closed without a word.
    """

    method: str
    path: str
    status: int
    times: int = 1
    message: str = "it is not for you"


@dataclass
class Pod:
    """A pod of a node."""

    name: str
    number: int
    job: str
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: str = field(default_factory=now)
    phase: str = "Running"
    state: dict[str, Any] = field(default_factory=lambda: {"running": {"startedAt": now()}})
    conditions: list[dict[str, Any]] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        status = {"name": "node", "image": IMAGE, "imageID": IMAGE, "ready": True, "restartCount": 0}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "uid": self.uid,
                "creationTimestamp": self.created,
                "labels": {
                    "jobset.sigs.k8s.io/jobset-name": self.job,
                    "jobset.sigs.k8s.io/replicatedjob-name": "node",
                    "batch.kubernetes.io/job-completion-index": str(self.number),
                },
            },
            "spec": {"containers": [{"name": "node", "image": IMAGE}]},
            "status": {
                "phase": self.phase,
                "conditions": self.conditions,
                "containerStatuses": [status | {"state": self.state}],
            },
        }

    @property
    def has_ended(self) -> bool:
        return "terminated" in self.state


class Cluster:
    """What is in the namespace; a test changes it.

    Attributes:
        trainjobs: By name.
        deletions: When each was asked for; seconds of the monotonic clock.
        requests: Method and path of each.
        faults: Answers to come.
        tokens: Those that are taken.
        takes_to_delete: Called where a TrainJob is deleted; it is gone afterwards.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.trainjobs: dict[str, dict[str, Any]] = {}
        self.made: list[dict[str, Any]] = []
        self.pods: list[Pod] = []
        self.events: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.mistakes: list[str] = []
        self.deletions: list[float] = []
        self.tokens = {TOKEN}
        self.page = 500
        self.cut = 0
        self.takes_to_delete: Callable[[], object] = lambda: time.sleep(0.1)
        self.own_pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": OWN_POD,
                "namespace": NAMESPACE,
                "labels": {"pipeline/runid": RUN},
                "ownerReferences": [WORKFLOW | {"controller": True, "blockOwnerDeletion": True}],
            },
            "spec": {
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                    {"key": "nvidia.com/gpu", "operator": "Exists"},
                ],
                "containers": [
                    {"name": "wait", "image": "argoexec"},
                    {
                        "name": "main",
                        "image": IMAGE,
                        "resources": {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}},
                        "env": [
                            {"name": "ARGO_TEMPLATE", "value": "{}"},
                            {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                            {"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                            {"name": "OMP_NUM_THREADS", "value": "1"},
                            {
                                "name": "AWS_SECRET_ACCESS_KEY",
                                "valueFrom": {
                                    "secretKeyRef": {
                                        "name": "calm-credentials",
                                        "key": "AWS_SECRET_ACCESS_KEY",
                                        "optional": True,
                                    }
                                },
                            },
                        ],
                    },
                ],
            },
        }
        self.runtimes: dict[str, dict[str, Any]] = {"calm-torch": runtime()}

    # What a test does.

    def job(self, seconds: float = 60) -> dict[str, Any]:
        """The TrainJob, once it has been made."""
        self.wait(lambda: bool(self.trainjobs), seconds)
        return next(iter(self.trainjobs.values()))

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        with self.lock:
            assert self.lock.wait_for(condition, seconds), "it did not come to that"

    def start_pods(self, count: int = 2, suffix: str = "aaaaa") -> list[Pod]:
        """The pods of the TrainJob's nodes; those of an earlier start go."""
        name = self.job()["metadata"]["name"]
        with self.lock:
            self.pods = [Pod(f"{name}-node-0-{number}-{suffix}", number, name) for number in range(count)]
            self.lock.notify_all()
            return self.pods

    def print(self, pod: Pod, line: str, at: str = "") -> None:
        with self.lock:
            at = at or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            pod.lines.append((at, line))
            self.lock.notify_all()

    def end_pod(self, pod: Pod, exit_code: int, reason: str = "") -> None:
        with self.lock:
            reason = reason or ("Error" if exit_code else "Completed")
            terminated = {"exitCode": exit_code, "reason": reason, "startedAt": pod.created, "finishedAt": now()}
            pod.phase, pod.state = "Failed" if exit_code else "Succeeded", {"terminated": terminated}
            self.lock.notify_all()

    def end(self, condition: str, message: str = "jobset failed due to one or more job failures") -> None:
        with self.lock:
            job = self.job()
            job.setdefault("status", {})["conditions"] = [
                {
                    "type": "Suspended",
                    "status": "False",
                    "reason": "Resumed",
                    "message": "",
                    "lastTransitionTime": now(),
                },
                {"type": condition, "status": "True", "reason": "FailedJobs", "message": message}
                | {"lastTransitionTime": now()},
            ]
            self.lock.notify_all()

    def warn(self, name: str, reason: str, message: str) -> None:
        involved = {"kind": "Job", "name": name, "namespace": NAMESPACE}
        event = {"metadata": {"name": f"{name}.1", "namespace": NAMESPACE}, "involvedObject": involved}
        self.events.append(event | {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": now()})

    def asked(self, method: str, pattern: str) -> int:
        """How often something was asked for."""
        return sum(method == used and re.search(pattern, path) is not None for used, path in self.requests)

    # What Kubernetes does.

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        checked(models.TrainerV1alpha1TrainJob, body)
        name, trainer = body["metadata"]["name"], body["spec"]["trainer"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 63
        assert not RESERVED & {one["name"] for one in trainer["env"]} and len(trainer["env"]) <= 128
        assert all(re.fullmatch(r"[a-z0-9.-]+/[^/]+", one["manager"]) for one in body["spec"].get("runtimePatches", []))
        if body["spec"]["runtimeRef"]["name"] not in self.runtimes:
            return 403, status(403, "admission webhook denied the request: specified trainingRuntime must be created")
        if name in self.trainjobs:
            return 409, status(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        body["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "resourceVersion": "1"}
        with self.lock:
            self.trainjobs[name] = body
            self.made.append(body)
            self.lock.notify_all()
        return 201, body

    def delete(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        checked(models.IoK8sApimachineryPkgApisMetaV1DeleteOptions, body)
        assert body["propagationPolicy"] == "Foreground"
        if name not in self.trainjobs:
            return 404, status(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        job = self.trainjobs[name]
        if body["preconditions"]["uid"] != job["metadata"]["uid"]:
            return 409, status(409, "the UID in the precondition does not match the UID in record")
        if "deletionTimestamp" not in job["metadata"]:
            self.deletions.append(time.monotonic())
            job["metadata"] |= {"deletionTimestamp": now(), "finalizers": ["foregroundDeletion"]}
            threading.Thread(target=self._remove, args=(name,), daemon=True).start()
        self.lock.notify_all()
        return 200, job

    def _remove(self, name: str) -> None:
        self.takes_to_delete()
        with self.lock:
            self.trainjobs.pop(name, None)
            self.pods = [pod for pod in self.pods if pod.job != name]
            self.lock.notify_all()

    def page_of(self, kind: str, model: Any, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        first = int(query.get("continue", 0))
        last = first + min(int(query.get("limit", 500)), self.page)
        metadata = {"resourceVersion": "1"} | ({"continue": str(last)} if last < len(items) else {})
        page = {"apiVersion": "v1", "kind": kind, "metadata": metadata, "items": items[first:last]}
        return checked(model, page)


def runtime(resources: dict[str, Any] | None = None) -> dict[str, Any]:
    """A TrainingRuntime."""
    container = {"name": "node", "image": IMAGE} | ({"resources": resources} if resources else {})
    job = {"name": "node", "template": {"spec": {"template": {"spec": {"containers": [container]}}}}}
    value = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": "calm-torch", "namespace": NAMESPACE},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": [job]}}},
    }
    return checked(models.TrainerV1alpha1TrainingRuntime, value)


def status(code: int, message: str) -> dict[str, Any]:
    value = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message}
    return checked(models.IoK8sApimachineryPkgApisMetaV1Status, value | {"code": code})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        with self.cluster.lock:
            self.cluster.requests.append((method, path))
            self.cluster.lock.notify_all()
            for fault in self.cluster.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    if not fault.status:
                        self.close_connection = True
                        return
                    self._send(fault.status, status(fault.status, fault.message))
                    return
            if self.headers.get("Authorization") not in {f"Bearer {token}" for token in self.cluster.tokens}:
                self._send(401, status(401, "Unauthorized"))
                return
        if method == "GET" and path.endswith("/log"):
            self._log(path.split("/")[-2], query)
            return
        try:
            with self.cluster.lock:
                self._send(*self._handled(method, path, query, body))
        except AssertionError as mistake:
            self.cluster.mistakes.append(f"{method} {self.path}: {mistake}")
            self._send(422, status(422, f"strict: {mistake}"))

    def _handled(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        cluster, name = self.cluster, path.rpartition("/")[2]
        if not (method == "GET" and name in _QUERIES):
            assert not query, query
        else:
            assert query.keys() <= _QUERIES[name], query
        match method, path:
            case "POST", p if p == f"{_TRAINER}/trainjobs":
                return cluster.create(body)
            case "GET", p if p == f"{_CORE}/pods":
                wanted = dict(part.split("=") for part in query["labelSelector"].split(","))
                pods = [pod.to_dict() for pod in cluster.pods]
                pods = [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
                return 200, cluster.page_of("PodList", models.IoK8sApiCoreV1PodList, pods, query)
            case "GET", p if p == f"{_CORE}/events":
                wanted = dict(part.split("=") for part in query["fieldSelector"].split(","))
                events = [
                    one for one in cluster.events if one["involvedObject"]["name"] == wanted["involvedObject.name"]
                ]
                return 200, cluster.page_of("EventList", models.IoK8sApiCoreV1EventList, events, query)
            case "GET", p if p == f"{_CORE}/pods/{OWN_POD}":
                return 200, checked(models.IoK8sApiCoreV1Pod, cluster.own_pod)
            case "GET", p if p.startswith(f"{_CORE}/pods/"):
                pod = next((pod for pod in cluster.pods if pod.name == name), None)
                return (200, pod.to_dict()) if pod else (404, status(404, f'pods "{name}" not found'))
            case "GET", p if p.startswith(f"{_TRAINER}/trainingruntimes/"):
                found = cluster.runtimes.get(name)
                return (200, found) if found else (404, status(404, f'trainingruntimes "{name}" not found'))
            case "GET", p if p.startswith(f"{_TRAINER}/trainjobs/"):
                if name not in cluster.trainjobs:
                    return 404, status(404, f'trainjobs "{name}" not found')
                return 200, checked(models.TrainerV1alpha1TrainJob, cluster.trainjobs[name])
            case "DELETE", p if p.startswith(f"{_TRAINER}/trainjobs/"):
                return cluster.delete(name, body)
        raise AssertionError(f"nothing is there: {method} {path}")

    def _send(self, code: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        with suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _log(self, name: str, query: dict[str, str]) -> None:
        cluster = self.cluster
        if not query.keys() <= _QUERIES["log"]:
            cluster.mistakes.append(f"log: {query}")
        pod = next((pod for pod in cluster.pods if pod.name == name), None)
        if pod is None or pod.phase == "Pending":
            code = 404 if pod is None else 400
            self._send(code, status(code, "no such pod" if pod is None else "is waiting to start: ContainerCreating"))
            return
        since = query.get("sinceTime", "")
        if since:
            assert datetime.fromisoformat(since.replace("Z", "+00:00"))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        with suppress(OSError):
            while True:
                with cluster.lock:
                    until = time.monotonic() + 5
                    while not (len(pod.lines) > sent or pod.has_ended or cluster.cut) and time.monotonic() < until:
                        cluster.lock.wait(0.2)
                    lines, sent = pod.lines[sent:], len(pod.lines)
                    cut, cluster.cut = cluster.cut, 0
                    is_over = pod.has_ended or "follow" not in query
                text = "".join(
                    f"{at} {line}\n" if query.get("timestamps") else f"{line}\n"
                    for at, line in lines
                    if at[:19] >= since[:19]
                ).encode()
                if cut:  # in the middle of a line
                    text = text[:-cut] if text else b""
                if text:
                    self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
                    self.wfile.flush()
                if cut:
                    self.close_connection = True
                    return
                if is_over:
                    self.wfile.write(b"0\r\n\r\n")
                    return


@contextmanager
def kubernetes_cluster(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """A cluster, and kubectl's configuration for it."""
    cluster = Cluster()
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    config = folder / "kubeconfig"
    write_config(config, server.server_port, TOKEN)
    try:
        yield cluster, config
    finally:
        server.shutdown()
        server.server_close()
        assert cluster.mistakes == []


@contextmanager
def hurried_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that this process is a task of, and asks often."""
    with kubernetes_cluster(folder) as (cluster, config):
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(config))
        monkeypatch.setenv("KFP_POD_NAME", OWN_POD)
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setattr(trainjob, "_POLL_SECONDS", 0.1)
        monkeypatch.setattr(pod_log, "_PAUSE", 0.1)
        monkeypatch.setattr(kubernetes_api, "_FIRST_PAUSE", 0.05)
        yield cluster


def write_config(path: Path, port: int, token: str) -> None:
    """Write kubectl's configuration."""
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(value))
