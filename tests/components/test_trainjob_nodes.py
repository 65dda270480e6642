"""Two nodes of a TrainJob as real processes, with the command and the environment that its pods get."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api import models

from calm_core.store.facts import OutcomeFacts
from calm_core.telemetry.progress import ProgressEvent
from calm_core.training.launcher import Ending, TorchrunLauncher
from calm_core.training.stage import train
from calm_core.weights.load import load_weights
from components.training import node
from components.training.trainer_status import status_of, status_pushed
from components.training.trainjob import launcher_of
from pipelines.local.object_store import free_port
from tests.components.kubernetes_cluster import Cluster, Pod, checked, hurried_cluster
from tests.training.test_launcher import job_of
from tests.training.test_stages import autoencoder_config
from tests.training.test_unfinished_training import spec_of

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with hurried_cluster(tmp_path, monkeypatch) as cluster:
        yield cluster


class Nodes:
    """The pods of a TrainJob, as processes of this machine."""

    def __init__(self, cluster: Cluster, suffix: str) -> None:
        self._cluster = cluster
        trainer, port = cluster.job()["spec"]["trainer"], free_port()
        assert trainer["command"][0] == "python3"
        command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        told = {one["name"]: one["value"] for one in trainer["env"] if "value" in one}
        count = trainer["numNodes"]
        self.pods = cluster.start_pods(count, suffix)
        self.processes: list[subprocess.Popen[str]] = []
        self._threads = []
        for pod in self.pods:
            torchrun = {
                "PET_NNODES": str(count),
                "PET_NODE_RANK": str(pod.number),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
            environment = {name: value for name, value in os.environ.items() if not name.startswith(("KFP_", "MLFLOW"))}
            process = subprocess.Popen(
                command,
                env=environment | told | torchrun | {"PYTHONPATH": str(Path.cwd())},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.processes.append(process)
            self._threads.append(threading.Thread(target=self._pump, args=(pod, process), daemon=True))
            self._threads[-1].start()

    def _pump(self, pod: Pod, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        for line in process.stdout:
            self._cluster.print(pod, line.rstrip("\n"))
        code = process.wait()
        self._cluster.end_pod(pod, 128 - code if code < 0 else code)

    def codes(self) -> list[int]:
        """How they have ended."""
        for thread in self._threads:
            thread.join(200)
        return [process.wait() for process in self.processes]


def until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_two_nodes_one_of_which_is_lost_train_what_one_process_group_does(
    cluster: Cluster,
    dataset_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One is killed after a checkpoint, the other ends with it, and both are started again, as JobSet does."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = {"steps": 60, "checkpoint_interval": 10, "micro_batch_size": 2}
    one = train(
        autoencoder_config(**settings, processes=2),
        dataset_uri,
        str(tmp_path / "one"),
        seed=0,
        checkpoint_root=str(tmp_path / "a"),
    )
    checkpoints = tmp_path / "checkpoints"

    def play() -> None:
        first = Nodes(cluster, "aaaaa")
        until(lambda: list(checkpoints.glob("*/step-*/manifest.json")))
        first.processes[1].send_signal(signal.SIGKILL)
        codes = first.codes()
        assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2, 75)
        second = Nodes(cluster, "bbbbb")
        assert second.codes() == [0, 0]
        cluster.end("Complete")

    config = autoencoder_config(**settings, nodes=2)
    with ThreadPoolExecutor(1) as pool:
        played = pool.submit(play)
        two = train(
            config,
            dataset_uri,
            str(tmp_path / "two"),
            seed=0,
            checkpoint_root=str(checkpoints),
            launcher=launcher_of(config, {}),
        )
        played.result(10)
    expected, trained = load_weights(one), load_weights(two)
    assert all(expected[name].equal(trained[name]) for name in expected)
    assert not list(checkpoints.glob("*/*"))
    said = capsys.readouterr().err
    assert "nodes have been started again" in said
    assert "continues from step" in said
    assert "accuracy" in said.splitlines()[-1]  # what rank 0 said last, not what was said of the first start


@pytest.mark.parametrize(
    ("number", "ended", "said", "expected"),
    [
        (0, 0, None, 0),
        (1, 1, 2, 2),  # another node's settings were wrong; this one has lost its connection
        (1, 1, 75, 75),
        (1, 1, 1, 1),
        (0, 1, None, 1),
        (0, 137, 1, 137),
        (1, -9, None, 137),
        (1, 69, 2, 69),  # what was said is of an earlier start: the nodes have not met
    ],
)
def test_all_nodes_end_with_the_exit_code_that_tells_what_to_start_again(
    number: int,
    ended: int,
    said: int | None,
    expected: int,
    dataset_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(dataset_uri, tmp_path)
    job.write_spec(spec_of(autoencoder_config(), dataset_uri))
    job.write_outcome(OutcomeFacts(message="of an earlier start", exit_code=75))

    class Ended(TorchrunLauncher):
        def run(self, spec_uri: str, processes: int | None, log: str = "") -> Ending:
            assert (job.outcome() is None) == (number == 0) and processes == 3
            job.forget_outcome()
            if said is not None:
                job.write_outcome(OutcomeFacts(message="why", exit_code=said))
            return Ending(ended)

    monkeypatch.setattr("calm_core.training.stage.TorchrunLauncher", Ended)
    for name, value in {"NNODES": "2", "NODE_RANK": str(number), "NPROC_PER_NODE": "3", **ADDRESS}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    assert node.main(job.spec_uri) == expected


def test_a_node_without_its_variables_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"NNODES": "2", **ADDRESS}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    monkeypatch.delenv("PET_NODE_RANK", raising=False)
    assert node.main("nowhere") == 2
    assert capsys.readouterr().err == "error: PET_NODE_RANK is not set, and PET_NNODES is; set it on every node\n"


@contextmanager
def status_server(answers: list[int]) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Trainer's server for the status of a TrainJob: where it is, and what it was sent, with which token."""
    sent: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append(
                (self.headers["Authorization"], checked(models.TrainerV1alpha1UpdateTrainJobStatusRequest, body))
            )
            self.send_response(answers.pop(0) if answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/status", sent
    finally:
        server.shutdown()
        server.server_close()


def event(done: int) -> ProgressEvent:
    return ProgressEvent(
        time=1.8e9,
        stage="train-calm",
        state="running",
        done=done,
        total=40,
        rate=1234.5,
        eta=60.4,
        note="accuracy 12.5%",
        detail="loss 3.25, gradient norm 0.5, learning rate 0.0003, 1.00 GiB",
    )


def test_progress_is_told_as_the_trainer_takes_it() -> None:
    assert status_of(event(10)) == {
        "trainerStatus": {
            "progressPercentage": 25,
            "estimatedRemainingSeconds": 60,
            "metrics": [
                {"name": "loss", "value": "3.25"},
                {"name": "gradient_norm", "value": "0.5"},
                {"name": "learning_rate", "value": "0.0003"},
                {"name": "tokens_per_second", "value": "1234.5"},
            ],
            "lastUpdatedTime": "2027-01-15T08:00:00+00:00",
        }
    }


def test_progress_is_pushed_with_a_token_that_is_renewed_and_a_server_that_refuses_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("components.training.trainer_status._SECONDS", 0.5)
    token = tmp_path / "token"
    token.write_text("one\n")
    with status_server([503]) as (url, sent):
        environment = {"KUBEFLOW_TRAINER_SERVER_URL": url, "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token)}
        with status_pushed(tmp_path, environment):
            file = Path(os.environ["CALM_PROGRESS_FILE"])
            for done in (10, 20, 40):
                with file.open("a") as lines:
                    lines.write(event(done).model_dump_json() + "\n")
                if done < 40:
                    until(lambda done=done: len(sent) == done // 10)
                token.write_text("two\n")
        assert "CALM_PROGRESS_FILE" not in os.environ
    assert [name for name, _ in sent] == ["Bearer one", "Bearer two", "Bearer two"]
    assert [body["trainerStatus"]["progressPercentage"] for _, body in sent] == [25, 50, 100]
    assert capsys.readouterr().err.splitlines()[0] == str(event(10))


def test_without_a_server_nothing_is_pushed(tmp_path: Path) -> None:
    with status_pushed(tmp_path, {}):
        assert "CALM_PROGRESS_FILE" not in os.environ
