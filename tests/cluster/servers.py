"""Servers that answer as Kubeflow Pipelines and Kubernetes do, over HTTP, and hold requests against their models.

A request with an unknown field, a wrong type or an unknown query is refused, as Kubeflow refuses it, and noted in
`wrong`; so is an answer of ours that the models do not have.
"""

import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kfp_server_api
import yaml

JSON = "application/json"
Answer = tuple[int, Any]
Fault = Callable[["Handler"], bool]

_PLAIN = {"str": str, "bool": bool, "int": int, "float": (int, float), "datetime": str}


def mistakes(models: Any, kind: str, value: Any, where: str = "") -> Iterator[str]:
    """What in a JSON value is not of a kind of a generated client's models."""
    if kind == "object" or value is None:
        return
    if listed := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{where}: no list"
            return
        for number, each in enumerate(value):
            yield from mistakes(models, listed[1], each, f"{where}[{number}]")
    elif mapped := re.fullmatch(r"dict\((\w+), (.*)\)", kind):
        if not isinstance(value, dict):
            yield f"{where}: no object"
            return
        for name, each in value.items():
            yield from mistakes(models, mapped[2], each, f"{where}.{name}")
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{where}: {value!r} is no {kind}"
    else:
        model = getattr(models, kind)
        if not model.openapi_types:  # an enumeration
            if value not in model.allowable_values:
                yield f"{where}: {value!r} is none of {model.allowable_values}"
            return
        if not isinstance(value, dict):
            yield f"{where}: no {kind}"
            return
        names = {key: name for name, key in model.attribute_map.items()}
        for key, each in value.items():
            if key in names:
                yield from mistakes(models, model.openapi_types[names[key]], each, f"{where}.{key}")
            else:
                yield f"{where}.{key}: {kind} has no such field"


class Handler(BaseHTTPRequestHandler):
    """One request, which the server's `answer` answers, unless a fault does."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = urllib.parse.urlsplit(self.path)
        self.place, self.query = parts.path, dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        with self.server.lock:
            self.server.requests.append((self.command, self.place, self.query, self.body))
            fault = next((each for each in self.server.faults if each(self)), None)
        if fault is None:
            status, told = self.server.answer(self)
            self.give(status, told)

    def give(self, status: int, told: Any, content_type: str = JSON, **headers: str) -> None:
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_PATCH = _answer


class Server(ThreadingHTTPServer):
    """A server on a free port of this machine.

    Attributes:
        requests: All that have come: method, path, query, body.
        faults: Each answers a request itself and returns True, or returns False.
        wrong: What was not as the models have it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.faults: list[Fault] = []
        self.wrong: list[str] = []
        self.lock = threading.RLock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may close a connection in any state."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, request: Handler) -> Answer:
        raise NotImplementedError

    def count(self, method: str, path: str) -> int:
        """Requests of a method, to paths that a pattern matches."""
        return sum(m == method and bool(re.fullmatch(path, p)) for m, p, _, _ in self.requests)

    def fail(self, method: str, path: str, do: Callable[[Handler], None], times: int = 1) -> None:
        """Let the next requests to a path be answered otherwise."""
        left = [times]

        def fault(request: Handler) -> bool:
            if left[0] and request.command == method and re.fullmatch(path, request.place):
                left[0] -= 1
                do(request)
                return True
            return False

        self.faults.append(fault)


@contextmanager
def running(server: Server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def refuse(status: int, message: str = "no") -> Callable[[Handler], None]:
    """An error in the form that Kubeflow gives it."""
    return lambda request: request.give(status, {"code": 2, "message": message, "details": []})


def close_in_the_middle(request: Handler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", JSON)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"runs": [')
    request.close_connection = True


# path, method, the kind of the body, the kind of the answer, names in the query
_PAGES = {"page_token", "page_size", "sort_by", "filter"}
_API: tuple[tuple[str, str, str | None, str | None, set[str]], ...] = (
    ("POST", r"/pipelines", "V2beta1Pipeline", "V2beta1Pipeline", set()),
    ("GET", r"/pipelines/names/(?P<name>[^/]+)", None, "V2beta1Pipeline", {"namespace"}),
    ("GET", r"/pipelines/(?P<id>[^/]+)", None, "V2beta1Pipeline", set()),
    ("GET", r"/pipelines/(?P<id>[^/]+)/versions", None, "V2beta1ListPipelineVersionsResponse", _PAGES),
    ("POST", r"/pipelines/upload_version", "file", "V2beta1PipelineVersion", {"name", "pipelineid", "description"}),
    ("GET", r"/experiments", None, "V2beta1ListExperimentsResponse", _PAGES | {"namespace"}),
    ("POST", r"/experiments", "V2beta1Experiment", "V2beta1Experiment", set()),
    ("GET", r"/runs", None, "V2beta1ListRunsResponse", _PAGES | {"namespace", "experiment_id"}),
    ("POST", r"/runs", "V2beta1Run", "V2beta1Run", {"experiment_id"}),
    ("GET", r"/runs/(?P<id>[^/:]+)", None, "V2beta1Run", {"experiment_id"}),
    ("POST", r"/runs/(?P<id>[^/:]+):terminate", None, None, {"experiment_id"}),
    ("GET", r"/recurringruns", None, "V2beta1ListRecurringRunsResponse", _PAGES | {"namespace", "experiment_id"}),
    ("POST", r"/recurringruns", "V2beta1RecurringRun", "V2beta1RecurringRun", set()),
    ("POST", r"/recurringruns/(?P<id>[^/:]+):(?P<what>enable|disable)", None, None, set()),
    ("DELETE", r"/recurringruns/(?P<id>[^/:]+)", None, None, {"propagation_policy"}),
)


class Kubeflow(Server):
    """Kubeflow Pipelines' API server.

    Attributes:
        users: Whether namespaces have pipelines of their own.
        token, cookie: What a request has to bring; empty: nothing.
        most: Entries of a page at most.
        logs: What pods have printed, by their names.
        workflows: Argo's workflows as JSON, by the ids of runs.
    """

    def __init__(self, users: bool = False, version: str = "2.17.0") -> None:
        super().__init__()
        self.users, self.version = users, version
        self.token = self.cookie = ""
        self.most = 200
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.schedules: list[dict[str, Any]] = []
        self.logs: dict[str, bytes] = {}
        self.workflows: dict[str, str] = {}
        self.clock = 1_780_000_000

    def now(self) -> str:
        self.clock += 1
        return stamp(self.clock)

    def answer(self, request: Handler) -> Answer:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, _error(16, "Unauthenticated: Request header error: there is no user identity header")
        if self.cookie and request.headers.get("Cookie") != self.cookie:
            return 302, b""
        if request.place == "/apis/v2beta1/healthz":
            return 200, {"commit_sha": "0", "tag_name": self.version, "multi_user": self.users}
        if log := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", request.place):
            told = self.logs.get(log[2])
            return 200, {"error_message": "Failed to read logs", "error_details": "..."} if told is None else told
        if older := re.fullmatch(r"/apis/v1beta1/runs/([^/:]+)", request.place):
            status, told = _one(self.runs, "run_id", older[1])
            runtime = {"workflow_manifest": self.workflows.get(older[1], "{}")}
            return (200, {"run": {"id": older[1]}, "pipeline_runtime": runtime}) if status == 200 else (status, told)
        for method, path, takes, gives, queries in _API:
            match = re.fullmatch(f"/apis/v2beta1{path}", request.place)
            if match and method == request.command:
                with self.lock:
                    return self._checked(request, match, takes, gives, queries)
        return 404, _error(5, "Not Found")

    def _checked(
        self, request: Handler, match: re.Match[str], takes: str | None, gives: str | None, queries: set[str]
    ) -> Answer:
        wrong = [f"query {name}" for name in request.query if name not in queries]
        body: Any = None
        if takes == "file":
            body = _file_of(request)
        elif takes:
            body = json.loads(request.body)
            wrong += mistakes(kfp_server_api.models, takes, body)
        elif request.body and request.body != b"null":
            wrong.append(f"a body: {request.body[:50]!r}")
        if wrong:
            self.wrong += [f"{request.command} {request.place}: {each}" for each in wrong]
            return 400, _error(3, f"Invalid input error: {wrong[0]}")
        name = re.sub(r"\W+", "_", f"{request.command.lower()}_{match.re.pattern[len('/apis/v2beta1/') :]}")
        handler = getattr(self, f"_{_NAMES[match.re.pattern, request.command]}", None)
        assert handler, name
        status, told = handler(request, body, **match.groupdict())
        if status == 200 and gives:
            self.wrong += [
                f"answer of {request.place}: {each}" for each in mistakes(kfp_server_api.models, gives, told)
            ]
        return status, told

    def _create_pipeline(self, request: Handler, body: dict[str, Any]) -> Answer:
        namespace = body.get("namespace", "") if self.users else ""
        if any((each["name"], each.get("namespace", "")) == (body["name"], namespace) for each in self.pipelines):
            return 409, _error(6, f"Already exist error: The name {body['name']} already exist")
        made = body | {"pipeline_id": str(uuid.uuid4()), "created_at": self.now()}
        self.pipelines.append(made)
        return 200, made

    def _pipeline_named(self, request: Handler, body: None, name: str) -> Answer:
        namespace = request.query.get("namespace", "") if self.users else ""
        for each in self.pipelines:
            if each["name"] == name and (not self.users or each.get("namespace", "") == namespace):
                return 200, each
        return 404, _error(5, f"ResourceNotFoundError: Namespace/Pipeline {namespace}/{name} not found.")

    def _pipeline(self, request: Handler, body: None, id: str) -> Answer:
        return _one(self.pipelines, "pipeline_id", id)

    def _list_versions(self, request: Handler, body: None, id: str) -> Answer:
        own = [each for each in self.versions if each["pipeline_id"] == id]
        return self._page(request, own, "pipeline_versions")

    def _upload(self, request: Handler, body: bytes) -> Answer:
        name, pipeline = request.query["name"], request.query["pipelineid"]
        if any((each["display_name"], each["pipeline_id"]) == (name, pipeline) for each in self.versions):
            return 409, {"error_message": "Failed to create a pipeline version", "error_details": ""}
        made = {"pipeline_id": pipeline, "pipeline_version_id": str(uuid.uuid4()), "display_name": name, "name": name}
        spec, *platform = yaml.load_all(body, yaml.CSafeLoader)
        whole = {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec
        made |= {"created_at": self.now(), "pipeline_spec": whole}
        self.versions.append(made)
        return 200, made

    def _list_experiments(self, request: Handler, body: None) -> Answer:
        namespace = request.query.get("namespace", "")
        if self.users and not namespace:
            return 400, _error(
                3, "Invalid input error: An experiment cannot have an empty namespace in multi-user mode"
            )
        own = [each for each in self.experiments if not self.users or each["namespace"] == namespace]
        return self._page(request, own, "experiments")

    def _create_experiment(self, request: Handler, body: dict[str, Any]) -> Answer:
        key = body["display_name"], body.get("namespace", "")
        if any((each["display_name"], each.get("namespace", "")) == key for each in self.experiments):
            return 409, _error(6, "Already exist error: experiment")
        self.experiments.append(body | {"experiment_id": str(uuid.uuid4()), "created_at": self.now()})
        return 200, self.experiments[-1]

    def _list_runs(self, request: Handler, body: None) -> Answer:
        own = [each for each in self.runs if each["experiment_id"] == request.query.get("experiment_id")]
        return self._page(request, own, "runs")

    def _create_run(self, request: Handler, body: dict[str, Any]) -> Answer:
        source = body["pipeline_version_reference"]
        [version] = [v for v in self.versions if v["pipeline_version_id"] == source["pipeline_version_id"]]
        if refusal := _inputs_refused(version, body["runtime_config"]):
            return 400, refusal
        made = body | {"run_id": str(uuid.uuid4()), "created_at": self.now(), "finished_at": stamp(0)}
        self.runs.append(made | {"state": "PENDING", "storage_state": "AVAILABLE"})
        return 200, self.runs[-1]

    def _run(self, request: Handler, body: None, id: str) -> Answer:
        return _one(self.runs, "run_id", id)

    def _terminate(self, request: Handler, body: None, id: str) -> Answer:
        status, run = _one(self.runs, "run_id", id)
        run["state"] = "CANCELING"
        return status, {}

    def _list_schedules(self, request: Handler, body: None) -> Answer:
        own = [each for each in self.schedules if each["experiment_id"] == request.query.get("experiment_id")]
        return self._page(request, own, "recurringRuns")

    def _create_schedule(self, request: Handler, body: dict[str, Any]) -> Answer:
        source = body["pipeline_version_reference"]
        newest = [each for each in self.versions if each["pipeline_id"] == source["pipeline_id"]][-1]
        if refusal := _inputs_refused(newest, body["runtime_config"]):
            return 400, refusal
        mode = body["mode"]
        made = {name: value for name, value in body.items() if name != "mode"}
        made |= {"recurring_run_id": str(uuid.uuid4()), "created_at": self.now(), "status": f"{mode}D"}
        self.schedules.append(made)
        return 200, made

    def _switch_schedule(self, request: Handler, body: None, id: str, what: str) -> Answer:
        status, schedule = _one(self.schedules, "recurring_run_id", id)
        schedule["status"] = f"{what.upper()}D"
        return status, {}

    def _delete_schedule(self, request: Handler, body: None, id: str) -> Answer:
        status, schedule = _one(self.schedules, "recurring_run_id", id)
        if status == 200:
            self.schedules.remove(schedule)
        return status, {} if status == 200 else schedule

    def _page(self, request: Handler, entries: list[dict[str, Any]], name: str) -> Answer:
        query = request.query
        if query.get("filter"):
            spec = json.loads(query["filter"])
            self.wrong += mistakes(kfp_server_api.models, "V2beta1Filter", spec, "filter")
            for predicate in spec["predicates"]:
                entries = [each for each in entries if each.get(predicate["key"]) == predicate["string_value"]]
        if query.get("sort_by", "").endswith(" desc"):
            entries = entries[::-1]
        start, size = int(query.get("page_token") or 0), min(int(query["page_size"]), self.most)
        page = {name: entries[start : start + size], "total_size": len(entries)}
        if start + size < len(entries):
            page["next_page_token"] = str(start + size)
        return 200, {key: value for key, value in page.items() if value}


_NAMES = {
    (f"/apis/v2beta1{path}", method): name
    for (method, path, *_), name in zip(
        _API,
        (
            "create_pipeline",
            "pipeline_named",
            "pipeline",
            "list_versions",
            "upload",
            "list_experiments",
            "create_experiment",
            "list_runs",
            "create_run",
            "run",
            "terminate",
            "list_schedules",
            "create_schedule",
            "switch_schedule",
            "delete_schedule",
        ),
        strict=True,
    )
}


def stamp(seconds: int) -> str:
    """A moment as Kubeflow writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _error(code: int, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "details": []}


def _one(entries: list[dict[str, Any]], key: str, id: str) -> Answer:
    found = [each for each in entries if each[key] == id]
    return (200, found[0]) if found else (404, _error(5, f"ResourceNotFoundError: {id} not found."))


def _inputs_refused(version: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """As Kubeflow holds a run's parameters against the pipeline's."""
    spec = version["pipeline_spec"].get("pipeline_spec", version["pipeline_spec"])
    inputs, given = spec["root"].get("inputDefinitions", {}).get("parameters", {}), config.get("parameters", {})
    kinds = {"STRUCT": dict, "STRING": str, "NUMBER_INTEGER": int, "BOOLEAN": bool, "LIST": list}
    for name, value in given.items():
        if name not in inputs:
            return _error(3, f"Invalid input error: parameter {name} is not defined")
        if not isinstance(value, kinds[inputs[name]["parameterType"]]):
            return _error(3, f"Invalid input error: parameter {name} is of another type")
    missing = [name for name, spec in inputs.items() if name not in given and not spec.get("isOptional")]
    return _error(3, f"Invalid input error: parameter {missing[0]} is missing") if missing else None


def _file_of(request: Handler) -> bytes:
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + request.body)
    [part] = message.iter_parts()
    assert part.get_param("name", header="content-disposition") == "uploadfile"
    data: bytes = part.get_payload(decode=True)
    return data


class Kubernetes(Server):
    """Kubernetes' API server.

    Attributes:
        objects: What it answers to GET, by path: an object, or a function that makes one.
        pods: Those that were created.
        deleted: Paths of what was deleted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, Any] = {"/version": {"gitVersion": "v1.34.0"}}
        self.forbidden: set[str] = set()
        self.pods: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.log = b""
        self.pod_status: dict[str, Any] = {"phase": "Succeeded"}

    def answer(self, request: Handler) -> Answer:
        from kubernetes.client import models

        path = request.place
        if any(re.fullmatch(each, path) for each in self.forbidden):
            return 403, _status(403, f"{path} is forbidden: User cannot do this")
        if request.command == "POST":
            body = json.loads(request.body)
            self.wrong += mistakes(models, "V1Pod", body)
            self.pods.append(body)
            return 201, body
        if request.command == "DELETE":
            self.deleted.append(path)
            return 200, _status(200, "")
        if path.endswith("/log"):
            return 200, self.log
        if re.search(r"/pods/", path):
            return 200, {"status": self.pod_status}
        if path in self.objects:
            return 200, self.objects[path]
        return 404, _status(404, f"{path} not found")


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}
