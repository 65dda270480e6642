"""`calm submit --wait` and `calm runs ... --host`: runs as Kubeflow tells of them."""

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from calm_cli import cluster as watching
from calm_cli.board import stages_of
from calm_core.errors import CalmError
from pipelines.cluster import runs, workflow
from pipelines.cluster.client import Cluster, connect
from pipelines.compile import TRAIN_PIPELINE
from tests.cluster.conftest import Call
from tests.cluster.servers import Handler, Kubeflow, Kubernetes, refuse, stamp
from tests.cluster.test_submit import SUBMIT

WORKFLOW = "calm-train-x7k2p"
BEGUN = 1_780_000_000


class Nodes:
    """Argo's nodes of tasks as Kubeflow compiles them, one a driver, one an executor; a task's own is above the latter.

    Args:
        retried: Whether Argo tries executors again.
        compressed: Whether the workflow is above 1 MiB.
    """

    def __init__(self, retried: bool = False, compressed: bool = False) -> None:
        self._nodes: dict[str, dict[str, Any]] = {}
        self._retried, self._compressed = retried, compressed
        self.add(WORKFLOW, "DAG", "Running")
        self.add(f"{WORKFLOW}.root-driver", "Pod", seconds=5)
        self.add(f"{WORKFLOW}.root", "DAG", "Running")

    def add(
        self, path: str, kind: str, phase: str = "Succeeded", start: int = 0, seconds: int = 60, **more: str
    ) -> dict[str, Any]:
        number = "" if path == WORKFLOW else f"-{zlib.crc32(path.encode())}"
        node = self._nodes[f"{WORKFLOW}{number}"] = {
            "id": f"{WORKFLOW}{number}",
            "name": path,
            "displayName": path.rpartition(".")[2],
            "type": kind,
            "phase": phase,
            "startedAt": stamp(BEGUN + start),
            "finishedAt": None if phase in ("Running", "Pending") else stamp(BEGUN + start + seconds),
            "inputs": {"parameters": [{"name": "component", "value": "{}"}]},
            **more,
        }
        return node

    def task(
        self, name: str, phase: str = "Succeeded", start: int = 0, seconds: int = 60, above: str = "", message: str = ""
    ) -> str:
        """A component's task, `Cached` being a phase as well; returns its last pod's name."""
        path = f"{WORKFLOW}.root{above}.{name}"
        template, own = (f"{'retry-' * self._retried}system-container-{each}" for each in ("impl", "executor"))
        self.add(f"{path}-driver", "Pod", start=start, seconds=5, templateName="system-container-driver")
        if phase == "Cached":
            self.add(path, "DAG", "Succeeded", start, 0, templateName=own)
            self.add(f"{path}.executor", "Skipped", "Skipped", start, 0, message="when 'true != true' evaluated false")
            return ""
        self.add(path, "DAG", phase, start, seconds, templateName=own)
        executor = f"{path}.executor"
        if self._retried:
            self.add(executor, "Retry", phase, start, seconds, templateName=template)
            self.add(f"{executor}(0)", "Pod", "Failed", start, 1, templateName=template, message="pod deleted")
            executor = f"{executor}(1)"
        node = self.add(executor, "Pod", phase, start, seconds, templateName=template, message=message)
        return f"{WORKFLOW}-{template}-{node['id'].rpartition('-')[2]}"

    @property
    def workflow(self) -> str:
        nodes = {"nodes": self._nodes}
        status: dict[str, Any] = {"compressedNodes": compressed(self._nodes)} if self._compressed else nodes
        return json.dumps({"metadata": {"name": WORKFLOW}, "spec": {"templates": []}, "status": status})


def compressed(nodes: object) -> str:
    return base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()


def run_of(kubeflow: Kubeflow, call: Call) -> dict[str, Any]:
    assert call(*SUBMIT, "--host", kubeflow.url)[0] == 0
    return kubeflow.runs[-1]


def failed_run(kubeflow: Kubeflow, call: Call, nodes: Nodes) -> dict[str, Any]:
    """Preparing has come from the cache in part, the autoencoder is trained, CALM has failed.

    Kubeflow's list of tasks has stopped while the first one ran, as it does where Argo compresses nodes."""
    run = run_of(kubeflow, call)
    nodes.task("plan-partitions", seconds=30)
    nodes.add(f"{WORKFLOW}.root.for-loop-2", "DAG")
    for number in range(2):
        nodes.task("scan-partition", "Cached", start=40, above=f".for-loop-2.iteration-iterations({number}:{number})")
    nodes.task("merge-partitions", start=50, seconds=20)
    nodes.task("train-autoencoder", "Cached", start=100)
    pod = nodes.task("train-calm", "Failed", start=101, message="main: Error (exit code 1)")
    for name in ("evaluate-driver", "evaluate"):
        node = nodes.add(f"{WORKFLOW}.root.{name}", "Skipped", "Omitted", 161, 0)
        node |= {"templateName": "system-container-executor", "message": "omitted: depends condition not met"}
    stopped = {"display_name": "plan-partitions", "state": "RUNNING", "start_time": stamp(BEGUN)}
    run |= {"state": "FAILED", "finished_at": stamp(BEGUN + 200), "run_details": {"task_details": [stopped]}}
    kubeflow.workflows[run["run_id"]] = nodes.workflow
    kubeflow.logs[pod] = b"time=... launcher\nstep 7 loss 2.5\nerror: train-calm: loss is not finite\nexit status 1\n"
    return run


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "above 1 MiB"])
@pytest.mark.parametrize("retried", [False, True], ids=["one try", "tries of Argo's"])
def test_a_failed_run_says_which_stage_and_why(retried: bool, is_large: bool, kubeflow: Kubeflow, call: Call) -> None:
    run = failed_run(kubeflow, call, Nodes(retried, is_large))
    code, out, _ = call("runs", "show", run["run_id"], "--host", kubeflow.url)
    assert code == 0
    lines = {line.split("  ")[0]: line for line in out.splitlines() if line}
    assert "train-calm: loss is not finite" in lines["why"]
    assert "failed, after" in lines["state"]
    words = [line.split()[:2] for line in out.split("stage", 1)[1].splitlines()[1:] if line]
    assert words[:-2] == [["prepare", "done"], ["train-autoencoder", "cached"], ["train-calm", "failed"]]
    code, out, _ = call("runs", "logs", run["run_id"], "train-calm", "--host", kubeflow.url)
    assert code == 0
    assert "train-calm | step 7 loss 2.5\n" in out


def test_runs_are_listed_newest_first_and_found_by_the_beginning_of_an_id(kubeflow: Kubeflow, call: Call) -> None:
    kubeflow.most = 2
    assert "nothing of ours has run there yet" in call("runs", "list", "--host", kubeflow.url)[1]
    for _ in range(5):
        run_of(kubeflow, call)
    kubeflow.runs[0]["storage_state"] = "ARCHIVED"
    kubeflow.runs[1] |= {"state": "SUCCEEDED", "finished_at": stamp(kubeflow.clock)}
    kubeflow.runs[2]["state"] = "PAUSED"
    listed = json.loads(call("runs", "list", "--json", "--host", kubeflow.url)[1])
    assert [each["id"] for each in listed] == [each["run_id"] for each in kubeflow.runs[:0:-1]]
    assert [each["state"] for each in listed] == ["waiting", "waiting", "paused", "done"]
    out = call("runs", "--host", kubeflow.url)[1]
    assert out.splitlines()[1].startswith(kubeflow.runs[-1]["run_id"][:8])
    code, out, _ = call("runs", kubeflow.runs[1]["run_id"][:8], "--json", "--host", kubeflow.url)
    assert (code, json.loads(out)["state"]) == (0, "done")
    assert json.loads(out)["settings"]["seed"] == 0


def test_every_task_of_the_pipeline_belongs_to_a_stage() -> None:
    spec = next(yaml.load_all(TRAIN_PIPELINE.read_text(), yaml.CSafeLoader))
    dags = [each["dag"] for each in (spec["root"], *spec["components"].values()) if "dag" in each]
    tasks = [(name, task["componentRef"]["name"]) for dag in dags for name, task in dag["tasks"].items()]
    assert {name for name, of in tasks if "dag" not in spec["components"][of]} == set(runs._STAGE_OF)
    assert set(runs._STAGE_OF.values()) == set(stages_of(train_baseline=True))


UNKNOWN = "3f2a0c1e-0000-4000-8000-000000000000"


def test_runs_that_are_not_there_or_not_one_are_one_line(kubeflow: Kubeflow, call: Call) -> None:
    for wanted, says in ((UNKNOWN, "has no run of this id"), ("zzz", "no run has this name, or an id that begins so")):
        code, _, err = call("runs", "show", wanted, "--host", kubeflow.url)
        assert (code, len(err.splitlines())) == (1, 1)
        assert says in err
    for _ in range(2):
        run_of(kubeflow, call)
        kubeflow.runs[-1]["display_name"] = "twice"
    assert "2 runs are called so" in call("runs", "show", "twice", "--host", kubeflow.url)[2]


def test_an_answer_about_another_run_is_not_believed(kubeflow: Kubeflow, call: Call) -> None:
    other = run_of(kubeflow, call)
    run = run_of(kubeflow, call)
    kubeflow.fail("GET", f".*/runs/{run['run_id']}", lambda request: request.give(200, other))
    with pytest.raises(CalmError, match="tells of another run"):
        runs.get_run(connect(kubeflow.url), run["run_id"])


DAMAGE: dict[str, dict[str, Any]] = {
    "no details": {"run_details": None},
    "tasks of another type": {"run_details": {"task_details": 7}},
    "no time": {"created_at": "yesterday"},
    "another time": {"created_at": 7},
    "parameters of another type": {"runtime_config": {"parameters": [1]}},
    "no reference": {"pipeline_version_reference": None, "state": "FAILED"},
    "no name": {"display_name": None},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_shown_or_is_one_line(name: str, kubeflow: Kubeflow, call: Call) -> None:
    run = run_of(kubeflow, call)
    run |= DAMAGE[name]
    for command in ("show", "logs"):
        code, out, err = call("runs", command, run["run_id"], "--host", kubeflow.url)
        assert (code == 0 and out) or (code == 1 and len(err.splitlines()) == 1), err
        assert "Traceback" not in err
    kubeflow.wrong.clear()


NODE = {"id": f"{WORKFLOW}-1", "name": "train-calm", "type": "DAG", "templateName": "system-container-executor"}
PACKED = gzip.compress(json.dumps({"a": NODE}).encode())


def large(text: str) -> str:
    return json.dumps({"status": {"compressedNodes": text}})


DAMAGED_WORKFLOWS = {
    "no JSON": '{"status": ',
    "no object": "[]",
    "too large": '{"status": {}' + " " * workflow._LARGEST + "}",
    "nested without end": '{"status": ' + '{"nodes": ' * 100_000,
    "nodes of another type": '{"status": {"nodes": [1]}}',
    "a node without a name": json.dumps({"status": {"nodes": {"a": {"id": "a", "type": "Pod"}}}}),
    "another time": json.dumps({"status": {"nodes": {"a": NODE | {"startedAt": "yesterday"}}}}),
    "no base64": large("%%%"),
    "no text": '{"status": {"compressedNodes": 7}}',
    "no gzip": large(base64.b64encode(b"nodes").decode()),
    "cut off": large(base64.b64encode(PACKED[:-4]).decode()),
    "another checksum": large(base64.b64encode(PACKED[:-8] + bytes(8)).decode()),
    "no nodes inside": large(compressed("nodes")),
    "a bomb": large(base64.b64encode(gzip.compress(bytes(workflow._LARGEST + 1))).decode()),
}


@pytest.mark.parametrize("name", DAMAGED_WORKFLOWS)
def test_a_damaged_workflow_leaves_the_state_of_the_run(name: str, quick: None, kubeflow: Kubeflow, call: Call) -> None:
    as_it_is_read(kubeflow, [{"state": "FAILED", "workflow": DAMAGED_WORKFLOWS[name]}])
    says = f"its stages cannot be read ({kubeflow.url}: what it keeps of the run's workflow is damaged or too large)"
    code, _, err = call(*SUBMIT, "--host", kubeflow.url, "--wait")
    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith(f"error {says} (all of it: calm runs logs ")
    [run] = kubeflow.runs
    code, out, _ = call("runs", "show", run["run_id"], "--json", "--host", kubeflow.url)
    told = json.loads(out)
    assert (code, told["state"], told["stages"], told["trouble"]) == (0, "failed", [], says)
    run["state"] = "RUNNING"
    assert says in call("runs", "show", run["run_id"], "--host", kubeflow.url)[1]
    code, _, err = call("runs", "logs", run["run_id"], "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert says in err


def test_a_workflow_unpacks_into_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "_LARGEST", 1 << 20)
    bomb = base64.b64encode(gzip.compress(bytes(64 << 20))).decode()
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^$"):
        workflow._unpacked(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_workflow_of_another_run_is_not_believed(kubeflow: Kubeflow, call: Call) -> None:
    run = failed_run(kubeflow, call, Nodes())
    path, other = f"/apis/v1beta1/runs/{run['run_id']}", {"run": {"id": UNKNOWN}}
    kubeflow.fail("GET", path, lambda request: request.give(200, other))
    assert "damaged" in call("runs", "logs", run["run_id"], "--host", kubeflow.url)[2]


def test_a_kubeflow_without_its_older_api_shows_the_state(kubeflow: Kubeflow, call: Call) -> None:
    run = failed_run(kubeflow, call, Nodes())
    kubeflow.fail("GET", "/apis/v1beta1/.*", refuse(404))
    code, out, _ = call("runs", "show", run["run_id"], "--host", kubeflow.url)
    assert code == 0
    assert "failed, after" in out and "its stages cannot be read (" in out and "there is none (404: no)" in out


def test_a_driver_that_failed_fails_its_task(kubeflow: Kubeflow, call: Call) -> None:
    run, nodes = run_of(kubeflow, call), Nodes()
    path = f"{WORKFLOW}.root.train-calm"
    nodes.add(f"{path}-driver", "Pod", "Failed", templateName="system-container-driver", message="Error (exit code 1)")
    nodes.add(path, "Skipped", "Omitted", templateName="system-container-executor")
    nodes.add(f"{WORKFLOW}.root.evaluate-driver", "Skipped", "Omitted")
    kubeflow.workflows[run["run_id"]], run["state"] = nodes.workflow, "FAILED"
    [stage] = json.loads(call("runs", "show", run["run_id"], "--json", "--host", kubeflow.url)[1])["stages"]
    assert (stage["stage"], stage["state"], stage["reason"]) == ("train-calm", "failed", "Error (exit code 1)")
    pod = f"{WORKFLOW}-system-container-driver-{zlib.crc32(f'{path}-driver'.encode())}"
    kubeflow.logs[pod] = b"no such config map\n"
    out = call("runs", "logs", run["run_id"], "train-calm", "--host", kubeflow.url)[1]
    assert out == "train-calm | no such config map\n"


def test_a_pipeline_within_a_pipeline_is_no_stage(kubeflow: Kubeflow, call: Call) -> None:
    run, nodes = run_of(kubeflow, call), Nodes()
    for path in ("condition-1", "condition-1.calm-train"):
        nodes.add(f"{WORKFLOW}.root.{path}-driver", "Pod", templateName="system-dag-driver")
        nodes.add(f"{WORKFLOW}.root.{path}", "DAG", "Running", templateName=f"comp-{path}")
    nodes.task("train-calm", "Running", above=".condition-1.calm-train")
    kubeflow.workflows[run["run_id"]] = nodes.workflow
    stages = json.loads(call("runs", "show", run["run_id"], "--json", "--host", kubeflow.url)[1])["stages"]
    assert [(stage["stage"], stage["state"]) for stage in stages] == [("train-calm", "running")]


def test_a_pod_that_was_killed_says_so(kubeflow: Kubeflow, call: Call) -> None:
    run, nodes = run_of(kubeflow, call), Nodes(retried=True, compressed=True)
    kubeflow.logs[nodes.task("train-calm", "Failed", message="OOMKilled (exit code 137)")] = b"step 7\n"
    kubeflow.workflows[run["run_id"]], run["state"] = nodes.workflow, "FAILED"
    out = call("runs", "show", run["run_id"], "--host", kubeflow.url)[1]
    assert "train-calm: OOMKilled (exit code 137)" in out


def test_a_null_in_a_list_is_one_line(kubeflow: Kubeflow, call: Call) -> None:
    run_of(kubeflow, call)
    kubeflow.fail("GET", "/apis/v2beta1/runs", lambda request: request.give(200, {"runs": [None]}))
    code, _, err = call("runs", "list", "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "an answer is damaged, or of a version that this SDK does not know (null in a list)" in err


# --- logs


def test_logs_of_all_tasks_come_in_their_order_and_safely(kubeflow: Kubeflow, call: Call) -> None:
    run, nodes = run_of(kubeflow, call), Nodes()
    for name, start in (("train-calm", 50), ("plan-partitions", 0)):
        text = f"{name} \x1b[31mred s3://me:hunter2@bucket/x " + "ä" * 70_000 + "\nlast, without an end"
        kubeflow.logs[nodes.task(name, start=start)] = text.encode()
    kubeflow.workflows[run["run_id"]] = nodes.workflow
    code, out, _ = call("runs", "logs", run["run_id"], "--host", kubeflow.url)
    assert code == 0
    assert "hunter2" not in out and "\x1b" not in out
    assert out.index("plan-partitions | plan-partitions") < out.index("train-calm | train-calm")
    assert out.count("last, without an end\n") == 2
    assert out.count("ä") == 140_000


def test_the_page_of_kubeflow_has_logs_where_its_api_has_none(kubeflow: Kubeflow, call: Call) -> None:
    run, nodes = run_of(kubeflow, call), Nodes()
    pod = nodes.task("train-calm")
    kubeflow.workflows[run["run_id"]] = nodes.workflow

    def page(request: Handler) -> bool:
        if request.place == "/k8s/pod/logs" and request.query["podname"] == pod:
            assert request.query == {"podname": pod, "runid": run["run_id"], "podnamespace": "kubeflow"}
            request.give(200, b"from the page\n", "text/plain")
            return True
        return False

    kubeflow.faults.append(page)
    assert call("runs", "logs", run["run_id"], "--host", kubeflow.url)[1] == "train-calm | from the page\n"


def test_follow_shows_a_line_when_it_is_printed(kubeflow: Kubeflow, call: Call) -> None:
    run, nodes = run_of(kubeflow, call), Nodes()
    nodes.task("train-calm", "Running")
    kubeflow.workflows[run["run_id"]] = nodes.workflow
    seen = threading.Event()

    def talk(request: Handler) -> bool:
        if not request.place.endswith("/log"):
            return False
        assert request.query == {"follow": "true"}
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for text in (b"one\n", b"two\n", b""):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            request.wfile.flush()
            assert seen.wait(20)
        return True

    kubeflow.faults.append(talk)
    cluster = connect(kubeflow.url)
    [(name, parts)] = [next(runs.logs(cluster, runs.get_run(cluster, run["run_id"]), follow=True))]
    assert (name, next(parts)) == ("train-calm", b"one\n")
    seen.set()
    assert b"".join(parts) == b"two\n"


def test_what_storage_keeps_is_shown_once_the_pods_are_gone(
    kubeflow: Kubeflow, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, nodes = run_of(kubeflow, call), Nodes()
    nodes.task("train-calm")
    root = tmp_path / "root"
    run["runtime_config"]["pipeline_root"] = str(root)
    kubeflow.workflows[run["run_id"]] = nodes.workflow
    code, _, err = call("runs", "logs", run["run_id"], "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "train-calm: its pods have gone, and what Kubeflow keeps of them cannot be read (" in err
    assert "has no executor-logs)" in err
    for attempt in range(2):
        file = root / "calm-train" / run["run_id"] / "train-calm" / "salt" / f"executor-logs-{attempt}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"try {attempt}\n")
    out = call("runs", "logs", run["run_id"], "--host", kubeflow.url)[1]
    assert out == "train-calm | try 0\ntrain-calm | try 1\n"


def test_a_stage_that_has_not_begun_is_one_line(kubeflow: Kubeflow, call: Call) -> None:
    run = failed_run(kubeflow, call, Nodes())
    code, _, err = call("runs", "logs", run["run_id"], "evaluate", "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "evaluate: no such stage of this run has begun; begun have: prepare, train-autoencoder, train-calm" in err


# --- waiting


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(watching, "_REDRAW_SECONDS", 0.01)


def as_it_is_read(kubeflow: Kubeflow, states: list[dict[str, Any]]) -> None:
    """Let a run go one state on each time it is read."""

    def step(request: Handler) -> bool:
        if request.command == "GET" and "/v2beta1/runs/" in request.place and states:
            state = states.pop(0)
            kubeflow.workflows[kubeflow.runs[-1]["run_id"]] = state.pop("workflow", "")
            kubeflow.runs[-1].update(state)
        return False

    kubeflow.faults.append(step)


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "above 1 MiB"])
def test_wait_shows_each_stage_and_ends_well(is_large: bool, quick: None, kubeflow: Kubeflow, call: Call) -> None:
    first, second = Nodes(), Nodes(compressed=is_large)
    first.task("plan-partitions", "Running")
    for name in ("plan-partitions", "merge-partitions", "train-autoencoder", "train-calm", "evaluate"):
        second.task(name)
    second.task("register-model")
    second.task("report-2")
    as_it_is_read(
        kubeflow,
        [
            {"state": "RUNNING", "workflow": first.workflow},
            {"state": "SUCCEEDED", "finished_at": stamp(BEGUN), "workflow": second.workflow},
        ],
    )
    code, out, err = call(*SUBMIT, "--host", kubeflow.url, "--wait")
    assert (code, err) == (0, "")
    assert "prepare: running" in out and "report: done" in out
    assert "\ndone after " in out


def test_wait_fails_with_the_run_and_says_why(quick: None, kubeflow: Kubeflow, call: Call) -> None:
    failed = failed_run(kubeflow, call, Nodes())
    as_it_is_read(kubeflow, [{"state": "FAILED", "workflow": kubeflow.workflows[failed["run_id"]]}])
    code, _, err = call(*SUBMIT, "--host", kubeflow.url, "--wait")
    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith("error train-calm: loss is not finite (all of it: calm runs logs ")


def test_wait_ends_when_somebody_stops_the_run(quick: None, kubeflow: Kubeflow, call: Call) -> None:
    as_it_is_read(kubeflow, [{"state": "CANCELING"}, {"state": "CANCELED"}])
    code, _, err = call(*SUBMIT, "--host", kubeflow.url, "--wait")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "somebody has stopped it (stopped)" in err


def test_waiting_outlasts_an_api_that_is_away_and_no_longer(
    quick: None, kubeflow: Kubeflow, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeflow.fail("GET", "/apis/v2beta1/runs/.*", refuse(503), times=20)
    as_it_is_read(kubeflow, [{"state": "RUNNING"}] * 30 + [{"state": "SUCCEEDED"}])
    assert call(*SUBMIT, "--host", kubeflow.url, "--wait")[0] == 0
    monkeypatch.setattr(watching, "_PATIENCE_SECONDS", 0.1)
    kubeflow.fail("GET", "/apis/v2beta1/runs/.*", refuse(503), times=10**6)
    code, _, err = call(*SUBMIT, "--host", kubeflow.url, "--wait")
    assert code == 1
    assert f"the run goes on in the cluster; to end it: calm runs stop {kubeflow.runs[-1]['run_id']}" in err


def test_an_expired_token_ends_the_waiting_at_once(quick: None, kubeflow: Kubeflow, call: Call) -> None:
    kubeflow.fail("GET", "/apis/v2beta1/runs/.*", refuse(401), times=10**6)
    code, _, err = call(*SUBMIT, "--host", kubeflow.url, "--wait")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "has expired (401)" in err and "the run goes on in the cluster" in err


def test_ctrl_c_leaves_the_run_and_says_how_to_stop_it(kubeflow: Kubeflow, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "calm_cli.start", *SUBMIT, "--host", kubeflow.url, "--wait"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 100
    while kubeflow.count("GET", "/apis/v2beta1/runs/.*") < 2 and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    [run] = kubeflow.runs
    assert err == (
        f"stopped (Ctrl-C); the run goes on in the cluster; to end it: calm runs stop {run['run_id']} "
        f"--host {kubeflow.url}\n"
    )
    assert run["state"] == "PENDING"


# --- stopping


def test_stop_ends_the_run_and_deletes_its_train_jobs(kubeflow: Kubeflow, kubernetes: Kubernetes, call: Call) -> None:
    run = run_of(kubeflow, call)
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs"
    kubernetes.objects[path] = {"items": [{"metadata": {"name": "calm-1"}}, {"metadata": {"name": "calm-2"}}]}
    code, out, err = call("runs", "stop", run["run_id"][:8], "--host", kubeflow.url)
    assert (code, err) == (0, "")
    assert "2 TrainJobs of it deleted" in out
    assert run["state"] == "CANCELING"
    assert kubernetes.deleted == [f"{path}/calm-1", f"{path}/calm-2"]
    [query] = [query for method, place, query, _ in kubernetes.requests if (method, place) == ("GET", path)]
    assert query == {"labelSelector": f"calm-pipelines/run={run['run_id']}"}


def test_stop_says_what_is_left_where_kubernetes_is_not_reached(kubeflow: Kubeflow, call: Call) -> None:
    run = run_of(kubeflow, call)
    code, _, err = call("runs", "stop", run["run_id"], "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (0, 1)
    assert f"kubectl delete trainjobs -n kubeflow -l calm-pipelines/run={run['run_id']}" in err
    run["state"] = "CANCELED"
    code, _, err = call("runs", "stop", run["run_id"], "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "has ended already (stopped)" in err


def test_a_run_of_this_machine_shows_its_log(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "logs" / "run-20261124-180511-abcdefgh"
    folder.mkdir(parents=True)
    (folder / "pipeline.log").write_bytes(b"begun \x1b[31m http://me:hunter2@host/\nended \xff\n")
    code, out, err = call("runs", "logs", "1")
    assert (code, err) == (0, "")
    assert out == "begun \\x1b[31m http://***@host/\nended \ufffd\n"
    code, _, err = call("runs", "logs", "1", "train-calm")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "train-calm: a run of this machine has one log: " in err
    (folder / "pipeline.log").unlink()
    code, _, err = call("runs", "logs", "1")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "pipeline.log: cannot be read: No such file or directory" in err


def test_help_imports_nothing_of_kubeflow() -> None:
    code = (
        "import sys\nfrom calm_cli.main import main\n"
        "for words in (['--help'], ['submit', '--help'], ['schedule', '--help'], ['runs', '--help']):\n"
        "    try: main(words)\n    except SystemExit: pass\n"
        "sys.exit(', '.join({'kfp', 'kfp_server_api', 'kubernetes', 'torch'} & set(sys.modules)) or 0)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert told.returncode == 0, told.stderr


def test_a_run_of_this_machine_is_not_stopped_so(call: Call) -> None:
    code, _, err = call("runs", "stop", "1")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--host: is missing; a run of this machine is stopped with Ctrl-C" in err


def test_an_enormous_run_is_shown(kubeflow: Kubeflow, call: Call) -> None:
    """64 partitions in two loops, three tries each, and 20 KB of inputs a node."""
    run, nodes = run_of(kubeflow, call), Nodes(retried=True, compressed=True)
    pods = []
    for loop, name in (("for-loop-2", "scan-partition"), ("for-loop-4", "tokenize-partition")):
        above = [f".{loop}.iteration-iterations({number}:{number})" for number in range(64)]
        pods += [nodes.task(name, "Running", above=each) for each in above]
    for node in nodes._nodes.values():
        node["inputs"] = {"parameters": [{"name": "pod-spec-patch", "value": node["name"] * 400}]}
    kubeflow.workflows[run["run_id"]], run["state"] = nodes.workflow, "RUNNING"
    began = time.monotonic()
    found = runs.get_run(connect(kubeflow.url), run["run_id"])
    assert time.monotonic() - began < 20
    assert set(pods) <= {pod for task in found.tasks for pod in task.pods}
    [state] = found.stages
    assert (state.stage, state.state, state.tasks, state.finished) == ("prepare", "running", 128, 0)


def test_a_long_run_is_asked_about_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(runs, "get_run", lambda *_: asked.append(now[0]))
    for _ in watching._polled(cast(Cluster, None), "r"):
        if now[0] > 86_400:
            break
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert (gaps[0], max(gaps), gaps[-1]) == (3, 60, 60)
    assert all(gap <= 3.25 or gap <= 0.01 * at + 0.25 for gap, at in zip(gaps, asked, strict=False))
