"""`calm submit --wait` and `calm runs ... --host`: runs as Kubeflow tells of them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from calm_cli import cluster as watching
from calm_cli.board import stages_of
from calm_core.errors import CalmError
from pipelines.cluster import runs
from pipelines.cluster.client import connect
from pipelines.compile import TRAIN_PIPELINE
from tests.cluster.conftest import Call
from tests.cluster.servers import Handler, Kubeflow, Kubernetes, refuse, stamp
from tests.cluster.test_submit import SUBMIT

WORKFLOW = "calm-train-x7k2p"
BEGUN = 1_780_000_000


def fnv(text: str) -> int:
    """FNV-1a of 32 bits, as its authors define it."""
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) % 2**32
    return value


def test_the_hash_is_that_of_its_authors() -> None:
    vectors = {"": 0x811C9DC5, "a": 0xE40C292C, "foobar": 0xBF9CF968}
    assert {text: fnv(text) for text in vectors} == {text: runs._fnv(text.encode()) for text in vectors} == vectors


class Tasks:
    """Tasks as Kubeflow's persistence agent tells of Argo's nodes: names and ids of children, and no pod."""

    def __init__(self, retried: bool = False) -> None:
        self.told: list[dict[str, Any]] = []
        self._retried = retried
        for path, child in ((WORKFLOW, ".root-driver"), (f"{WORKFLOW}.root-driver", ".root")):
            self.add(path, "RUNNING", children=[f"{WORKFLOW}{child}"])
        self.add(f"{WORKFLOW}.root", "RUNNING")

    def add(
        self, path: str, state: str = "SUCCEEDED", start: int = 0, seconds: int = 60, children: Sequence[str] = ()
    ) -> None:
        """A node at a path, and by its state the one above it."""
        end = stamp(BEGUN + start + seconds) if state in ("SUCCEEDED", "FAILED", "SKIPPED") else stamp(0)
        task = {
            "run_id": "r",
            "task_id": str(len(self.told)),
            "display_name": path.rpartition(".")[2],
            "create_time": stamp(BEGUN + start),
            "start_time": stamp(BEGUN + start),
            "end_time": end,
            "state": state,
            "child_tasks": [{"pod_name": f"{WORKFLOW}-{fnv(child)}"} for child in children],
        }
        self.told.append({key: value for key, value in task.items() if value not in ([], None)})

    def task(self, name: str, state: str = "SUCCEEDED", start: int = 0, seconds: int = 60, above: str = "") -> str:
        """A component's task with its driver and its pod; returns the pod's node."""
        top = f"{WORKFLOW}.root{above}"
        path, driver = f"{top}.{name}", f"{top}.{name}-driver"
        self.add(top, "RUNNING", children=[driver])
        self.add(driver, "SUCCEEDED", start, 5, children=[path])
        node = f"{path}.executor"
        self.add(path, state, start, seconds, children=[node])
        if self._retried:
            self.add(node, state, start, seconds, children=[f"{node}(0)", f"{node}(1)"])
            return f"{node}(1)"
        self.add(node, state, start, seconds)
        return node


def run_of(kubeflow: Kubeflow, call: Call) -> dict[str, Any]:
    assert call(*SUBMIT, "--host", kubeflow.url)[0] == 0
    return kubeflow.runs[-1]


def failed_run(kubeflow: Kubeflow, call: Call, retried: bool = False) -> dict[str, Any]:
    """Preparing has come from the cache in part, the autoencoder is trained, CALM has failed."""
    run, tasks = run_of(kubeflow, call), Tasks(retried)
    tasks.task("plan-partitions", seconds=30)
    tasks.add("for-loop-2", children=[f"{WORKFLOW}.root.for-loop-2(0:0)"])
    for number in range(2):
        tasks.task("scan-partition", start=40, seconds=1, above=f".for-loop-2({number}:{number})")
    tasks.task("merge-partitions", start=50, seconds=20)
    tasks.task("train-autoencoder", start=100, seconds=0)
    node = tasks.task("train-calm", "FAILED", start=101)
    run |= {"state": "FAILED", "finished_at": stamp(BEGUN + 200), "run_details": {"task_details": tasks.told}}
    pod = f"{WORKFLOW}-system-container-impl-{fnv(node)}"
    kubeflow.logs[pod] = b"time=... launcher\nstep 7 loss 2.5\nerror: train-calm: loss is not finite\nexit status 1\n"
    return run


@pytest.mark.parametrize("retried", [False, True], ids=["one try", "tries of Argo's"])
def test_a_failed_run_says_which_stage_and_why(retried: bool, kubeflow: Kubeflow, call: Call) -> None:
    run = failed_run(kubeflow, call, retried)
    code, out, _ = call("runs", "show", run["run_id"], "--host", kubeflow.url)
    assert code == 0
    lines = {line.split("  ")[0]: line for line in out.splitlines() if line}
    assert "train-calm: loss is not finite" in lines["why"]
    assert "failed, after" in lines["state"]
    words = [line.split()[:2] for line in out.split("stage", 1)[1].splitlines()[1:5]]
    assert words[:3] == [["prepare", "done"], ["train-autoencoder", "cached"], ["train-calm", "failed"]]
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
    dags = [spec["root"], *spec["components"].values()]
    names = {name for dag in dags for name in dag.get("dag", {}).get("tasks", {})}
    assert {name for name in names if not runs._OF_KUBEFLOW.fullmatch(name)} == set(runs._STAGE_OF)
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
    "null tasks": {"run_details": {"task_details": [None]}},
    "tasks of another type": {"run_details": {"task_details": 7}},
    "a task without anything": {"run_details": {"task_details": [{}]}},
    "null children": {"run_details": {"task_details": [{"display_name": "train-calm", "child_tasks": [None, {}]}]}},
    "children that are no nodes": {
        "run_details": {"task_details": [{"display_name": "train-calm", "child_tasks": [{"pod_name": "-"}]}]}
    },
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


def test_a_null_in_a_list_is_one_line(kubeflow: Kubeflow, call: Call) -> None:
    run_of(kubeflow, call)
    kubeflow.fail("GET", "/apis/v2beta1/runs", lambda request: request.give(200, {"runs": [None]}))
    code, _, err = call("runs", "list", "--host", kubeflow.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "an answer is damaged, or of a version that this SDK does not know (null in a list)" in err


# --- logs


def test_logs_of_all_tasks_come_in_their_order_and_safely(kubeflow: Kubeflow, call: Call) -> None:
    run, tasks = run_of(kubeflow, call), Tasks()
    for name, start in (("train-calm", 50), ("plan-partitions", 0)):
        node = tasks.task(name, start=start)
        text = f"{name} \x1b[31mred s3://me:hunter2@bucket/x " + "ä" * 70_000 + "\nlast, without an end"
        kubeflow.logs[f"{WORKFLOW}-system-container-impl-{fnv(node)}"] = text.encode()
    run["run_details"] = {"task_details": tasks.told}
    code, out, _ = call("runs", "logs", run["run_id"], "--host", kubeflow.url)
    assert code == 0
    assert "hunter2" not in out and "\x1b" not in out
    assert out.index("plan-partitions | plan-partitions") < out.index("train-calm | train-calm")
    assert out.count("last, without an end\n") == 2
    assert out.count("ä") == 140_000


def test_the_page_of_kubeflow_has_logs_where_its_api_has_none(kubeflow: Kubeflow, call: Call) -> None:
    run, tasks = run_of(kubeflow, call), Tasks()
    pod = f"{WORKFLOW}-system-container-impl-{fnv(tasks.task('train-calm'))}"
    run["run_details"] = {"task_details": tasks.told}

    def page(request: Handler) -> bool:
        if request.place == "/k8s/pod/logs" and request.query["podname"] == pod:
            assert request.query == {"podname": pod, "runid": run["run_id"], "podnamespace": "kubeflow"}
            request.give(200, b"from the page\n", "text/plain")
            return True
        return False

    kubeflow.faults.append(page)
    assert call("runs", "logs", run["run_id"], "--host", kubeflow.url)[1] == "train-calm | from the page\n"


def test_follow_shows_a_line_when_it_is_printed(kubeflow: Kubeflow, call: Call) -> None:
    run, tasks = run_of(kubeflow, call), Tasks()
    tasks.task("train-calm", "RUNNING")
    run["run_details"] = {"task_details": tasks.told}
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
    run, tasks = run_of(kubeflow, call), Tasks()
    tasks.task("train-calm")
    root = tmp_path / "root"
    run["runtime_config"]["pipeline_root"] = str(root)
    run["run_details"] = {"task_details": tasks.told}
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
    run = failed_run(kubeflow, call)
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
        if request.command == "GET" and "/runs/" in request.place and states:
            kubeflow.runs[-1].update(states.pop(0))
        return False

    kubeflow.faults.append(step)


def test_wait_shows_each_stage_and_ends_well(quick: None, kubeflow: Kubeflow, call: Call) -> None:
    first, second = Tasks(), Tasks()
    first.task("plan-partitions", "RUNNING")
    for tasks, state in ((second, "SUCCEEDED"),):
        for name in ("plan-partitions", "merge-partitions", "train-autoencoder", "train-calm", "evaluate"):
            tasks.task(name, state)
        tasks.task("register-model", state)
        tasks.task("report-2", state)
    as_it_is_read(
        kubeflow,
        [
            {"state": "RUNNING", "run_details": {"task_details": first.told}},
            {"state": "SUCCEEDED", "finished_at": stamp(BEGUN), "run_details": {"task_details": second.told}},
        ],
    )
    code, out, err = call(*SUBMIT, "--host", kubeflow.url, "--wait")
    assert (code, err) == (0, "")
    assert "prepare: running" in out and "report: done" in out
    assert "\ndone after " in out


def test_wait_fails_with_the_run_and_says_why(quick: None, kubeflow: Kubeflow, call: Call) -> None:
    failed = failed_run(kubeflow, call)
    as_it_is_read(kubeflow, [{"state": "FAILED", "run_details": failed["run_details"]}])
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
    """64 partitions, three nodes for each of two loops, and their logs found by hash."""
    run, tasks = run_of(kubeflow, call), Tasks(retried=True)
    nodes = []
    for loop, name in (("for-loop-2", "scan-partition"), ("for-loop-4", "tokenize-partition")):
        for number in range(64):
            item = f"{loop}({number}:{number})"
            tasks.add(item, children=[f"{WORKFLOW}.root.{item}"])
            nodes.append(tasks.task(name, "RUNNING", above=f".{item}"))
    run |= {"state": "RUNNING", "run_details": {"task_details": tasks.told}}
    began = time.monotonic()
    found = runs._pods(runs.get_run(connect(kubeflow.url), run["run_id"]))
    assert time.monotonic() - began < 20
    assert {f"{WORKFLOW}-system-container-impl-{fnv(node)}" for node in nodes} <= {
        pod for pods in found.values() for pod in pods
    }
