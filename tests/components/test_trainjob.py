"""A TrainJob as its task sees it: made, found, waited for, and deleted, over an API that is away at times."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from calm_core.errors import CalmError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import SpecFacts
from calm_core.training.job import Job, TrainingSpec
from calm_core.training.launcher import Ending
from components.training import kubernetes_api, pod_log, trainjob
from components.training.template import Toleration, TrainJobSettings, name_of
from components.training.trainjob import TrainJobLauncher, launcher_of
from tests.components.kubernetes_cluster import (
    IMAGE,
    OWN_POD,
    RUN,
    TOKEN,
    WORKFLOW,
    Cluster,
    Fault,
    kubernetes_cluster,
    runtime,
    write_config,
)
from tests.training.test_stages import autoencoder_config

JOBS, LOG = r"/trainjobs$", r"/log$"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that this process is a task of, in a hurry."""
    with kubernetes_cluster(tmp_path) as (cluster, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(config))
        monkeypatch.setenv("KFP_POD_NAME", OWN_POD)
        monkeypatch.setenv("CALM_CODE_VERSION", "image@sha256:1")
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        for module, name, seconds in (
            (trainjob, "_POLL_SECONDS", 0.05),
            (trainjob, "_LOOK_SECONDS", 0.0),
            (pod_log, "_PAUSE", 0.05),
            (kubernetes_api, "_FIRST_PAUSE", 0.02),
            (kubernetes_api, "_LONGEST_PAUSE", 0.1),
        ):
            monkeypatch.setattr(module, name, seconds)
        yield cluster


@pytest.fixture
def spec_uri(tmp_path: Path) -> str:
    return job_in(tmp_path).spec_uri


def job_in(folder: Path, run_id: str = "") -> Job:
    spec = TrainingSpec(
        kind="autoencoder",
        config=autoencoder_config(),
        dataset_uri="dataset",
        output_uri="out",
        seed=0,
        run_id=run_id,
    )
    job = Job.of(spec, str(folder / "checkpoints"))
    job.write_spec(spec)
    return job


def ended(spec_uri: str, play: Callable[[], object], nodes: int = 2, **settings: Any) -> Ending:
    """Wait for a TrainJob whose part is played meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        played = pool.submit(play)
        ending = TrainJobLauncher(nodes, TrainJobSettings(**settings)).run(spec_uri, None)
        played.result(60)
    return ending


def test_a_trainjob_is_like_the_task_that_waits_for_it(cluster: Cluster, spec_uri: str) -> None:
    def play() -> None:
        cluster.job()
        cluster.end("Complete")

    assert ended(spec_uri, play) == Ending(0)
    (made,) = cluster.made
    assert made["metadata"]["name"] == name_of(spec_uri)
    assert re.fullmatch(r"autoencoder-[0-9a-f]{16}-[0-9a-f]{8}", made["metadata"]["name"])
    assert made["metadata"]["labels"] == {"app.kubernetes.io/part-of": "calm-pipelines", "calm-pipelines/run": RUN}
    assert made["metadata"]["annotations"] == {"calm-pipelines/spec": Artifact(spec_uri, SpecFacts).digest}
    assert made["metadata"]["ownerReferences"] == [WORKFLOW]
    spec, trainer = made["spec"], made["spec"]["trainer"]
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "calm-torch",
    }  # fmt: skip
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 1, IMAGE)
    assert [*trainer["command"], *trainer["args"]] == ["python3", "-m", "components.training.node", spec_uri]
    assert trainer["resourcesPerNode"] == cluster.own_pod["spec"]["containers"][1]["resources"]
    variables = {one["name"]: one.get("value") or one["valueFrom"] for one in trainer["env"]}
    assert variables == {
        "OMP_NUM_THREADS": "1",
        "AWS_SECRET_ACCESS_KEY": {
            "secretKeyRef": {"name": "calm-credentials", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}
        },
        "CALM_CODE_VERSION": "image@sha256:1",
    }
    (job,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"] == {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
    assert "activeDeadlineSeconds" not in spec


def test_nodes_are_made_as_the_settings_say(cluster: Cluster, spec_uri: str) -> None:
    resources = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "4"}
    settings = TrainJobSettings(
        resources=resources,
        node_selector={"pool": "big"},
        tolerations=[Toleration(key="big", operator="Exists")],
        queue="team",
        deadline_seconds=60,
    )
    launcher = TrainJobLauncher(3, settings)
    assert (launcher.world_size(None), launcher.world_size(2)) == (12, 6)
    with pytest.raises(ConfigError, match="processes is 8, a node of the TrainJob has 4 GPUs; lower it"):
        launcher.world_size(8)
    made = launcher._template.trainjob(spec_uri, None)
    assert made["spec"]["trainer"]["resourcesPerNode"] == {
        "requests": resources, "limits": {"memory": "64Gi", "nvidia.com/gpu": "4"},
    }  # fmt: skip
    assert made["spec"]["trainer"]["numProcPerNode"] == 4
    assert made["spec"]["activeDeadlineSeconds"] == 60
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    job = made["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    assert job["template"]["spec"]["template"]["spec"] == {
        "nodeSelector": {"pool": "big"}, "tolerations": [{"key": "big", "operator": "Exists"}],
    }  # fmt: skip


def test_the_gpus_of_the_runtime_count_where_nothing_else_says(cluster: Cluster) -> None:
    """Trainer 2.2 takes a TrainJob's resources instead of the runtime's, 2.3 merges them: they are told as merged."""
    cluster.runtimes["calm-torch"] = runtime(
        {"requests": {"cpu": "2", "nvidia.com/gpu": "8"}, "limits": {"nvidia.com/gpu": "8"}}
    )
    own = cluster.own_pod["spec"]["containers"][1]["resources"]
    own["limits"]["nvidia.com/gpu"] = own["requests"]["nvidia.com/gpu"] = "0"  # a pipeline whose tasks ask for none
    launcher = TrainJobLauncher(2, TrainJobSettings())
    assert launcher.world_size(None) == 16
    assert launcher._template.node_resources() == {
        "requests": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "8"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "8"},
    }


def test_no_limit_of_a_node_is_below_its_request(cluster: Cluster) -> None:
    """Kubeflow sets GPUs as limits alone, and the runtime both; whoever merges has to get equal ones."""
    cluster.runtimes["calm-torch"] = runtime(
        {"requests": {"cpu": "2", "nvidia.com/gpu": "1"}, "limits": {"cpu": "2", "nvidia.com/gpu": "1"}}
    )
    own = cluster.own_pod["spec"]["containers"][1]["resources"]
    own["limits"]["nvidia.com/gpu"] = "8"
    assert TrainJobLauncher(2, TrainJobSettings())._template.node_resources() == {
        "requests": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "8"},
        "limits": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "8"},
    }


def test_one_pod_trains_where_nothing_else_is_asked_for() -> None:
    assert launcher_of(autoencoder_config(), {}) is None
    for wrong, said in {
        "runtim": "unknown setting runtim",
        "resources": "resources.cpu",
        "tolerations": "tolerations.0.*oprator",
    }.items():
        value = {"resources": {"cpu": "many"}, "tolerations": [{"key": "a", "oprator": "Exists"}]}.get(wrong, "x")
        with pytest.raises(ConfigError, match=said):
            launcher_of(autoencoder_config(), {wrong: value})


def test_a_laptop_has_no_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(
        ConfigError, match=r"^no Kubernetes cluster is known here .*; nodes above 1 and launcher: train"
    ):
        launcher_of(autoencoder_config(nodes=2), {})


def test_an_answer_that_was_lost_makes_no_second_one(cluster: Cluster, spec_uri: str) -> None:
    """The server has made it, and the task does not know: it is found by its name."""
    lost = Fault("GET", r"/trainjobs/", 500, times=3)

    def play() -> None:
        cluster.wait(lambda: cluster.asked("POST", JOBS) > 1)
        cluster.end("Complete")

    create = cluster.create

    def create_and_hang_up(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = create(body)
        return (503, answer[1]) if cluster.asked("POST", JOBS) == 1 else answer

    cluster.create = create_and_hang_up  # type: ignore[method-assign]
    cluster.faults = [lost]
    assert ended(spec_uri, play) == Ending(0)
    assert len(cluster.made) == 1 and lost.times == 0


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_an_api_that_is_away_for_a_while_is_asked_again(
    status: int, cluster: Cluster, spec_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    away = [Fault("POST", JOBS, status, 4), Fault("GET", r"/trainjobs/", status, 4), Fault("GET", "/pods$", status, 4)]
    cluster.faults = away

    def play() -> None:
        cluster.wait(lambda: not any(fault.times for fault in away))
        cluster.end("Complete")

    assert ended(spec_uri, play) == Ending(0)
    said = capsys.readouterr().err
    assert "trainjob: the Kubernetes API does not answer (" in said and "it is asked again" in said
    assert "trainjob: the Kubernetes API answers again" in said
    assert len(cluster.made) == 1


def test_an_api_that_never_answers_ends_the_start(
    cluster: Cluster, spec_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "AT_THE_START", kubernetes_api.Patience(0.3))
    cluster.faults = [Fault("POST", JOBS, 0, 1000)]
    with pytest.raises(CalmError, match=r"^the Kubernetes API does not answer ") as caught:
        TrainJobLauncher(2, TrainJobSettings()).run(spec_uri, None)
    assert caught.value.can_pass


def test_the_log_of_the_first_node_is_told_once_over_lost_connections(
    cluster: Cluster, spec_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut in the middle of a line, refused for a while, with several lines of one moment."""
    at = "2026-11-25T07:00:00.100000000Z"

    def play() -> None:
        cluster.job()
        first, second = cluster.start_pods()
        cluster.print(second, "of the other node")
        for number in range(3):
            cluster.print(first, f"first {number}", at)
        cluster.wait(lambda: cluster.asked("GET", LOG) == 1)
        time.sleep(0.2)
        with cluster.lock:
            cluster.faults = [Fault("GET", LOG, 500, 2), Fault("GET", LOG, 0, 1)]
            cluster.cut = 4
            cluster.print(first, "cut in the middle", at)
            cluster.print(first, "of one moment", at)
        cluster.wait(lambda: cluster.asked("GET", LOG) == 5)
        cluster.print(first, "later", "2026-11-25T07:00:00.1+00:00")  # the same moment, written otherwise
        cluster.print(first, "\x1b[2Jlast")
        cluster.end_pod(first, 0)
        cluster.end_pod(second, 0)
        cluster.end("Complete")

    assert ended(spec_uri, play) == Ending(0)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("trainjob: ")]
    assert lines == [
        "first 0", "first 1", "first 2", "cut in the middle", "of one moment", "later", r"\x1b[2Jlast",
    ]  # fmt: skip


def test_nodes_that_are_lost_start_again_without_a_word_from_the_task(
    cluster: Cluster, spec_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only Complete or Failed ends it: not pods that fail or go."""

    def play() -> None:
        cluster.job()
        first, second = cluster.start_pods()
        cluster.print(first, "of the first start")
        cluster.wait(lambda: cluster.asked("GET", LOG) == 1)
        cluster.end_pod(second, 137)
        cluster.end_pod(first, 1)
        time.sleep(0.2)
        cluster.pods = []
        time.sleep(0.2)
        first, second = cluster.start_pods(suffix="bbbbb")
        cluster.print(first, "of the second start")
        cluster.wait(lambda: cluster.asked("GET", rf"bbbbb{LOG}") > 0)
        for pod in (first, second):
            cluster.end_pod(pod, 0)
        cluster.end("Complete")

    assert ended(spec_uri, play) == Ending(0)
    said = capsys.readouterr().err
    assert said.index("of the first start") < said.index("nodes have been started again") < said.index("second start")


def test_what_nodes_wait_for_is_told(cluster: Cluster, spec_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    def play() -> None:
        name = cluster.job()["metadata"]["name"]
        cluster.warn(f"{name}-node-0", "FailedCreate", "exceeded quota: team")
        cluster.wait(lambda: cluster.asked("GET", "/events$") > 1)
        for pod in cluster.start_pods():
            pod.phase, pod.state = "Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}
        time.sleep(0.3)
        cluster.end("Complete")

    assert ended(spec_uri, play) == Ending(0)
    said = capsys.readouterr().err
    assert "0 of 2 nodes run; FailedCreate: exceeded quota: team" in said
    assert said.count("0 of 2 nodes run; node 0: ImagePullBackOff: Back-off") == 1


@pytest.mark.parametrize(
    ("codes", "reason", "expected"),
    [
        ((1, 2), "", (2, "")),
        ((75, 75), "", (75, "")),
        ((1, 137), "OOMKilled", (1, "node 1 was killed for want of memory (OOMKilled); give the nodes more")),
        ((137, 1), "", (1, "node 0 of TrainJob {} was killed (SIGKILL)")),
        ((69, 69), "", (1, "the nodes of TrainJob {} did not reach each other")),
    ],
)
def test_a_failure_has_the_exit_code_that_tells_best(
    codes: tuple[int, int], reason: str, expected: tuple[int, str], cluster: Cluster, spec_uri: str
) -> None:
    def play() -> None:
        cluster.job()
        for pod, code in zip(cluster.start_pods(), codes, strict=True):
            cluster.end_pod(pod, code, reason if code == 137 else "")
        cluster.end("Failed", "jobset failed")

    ending = ended(spec_uri, play)
    assert (ending.exit_code, ending.cause) == (expected[0], expected[1].format(name_of(spec_uri)))
    assert "jobset failed" in ending.message
    assert list(cluster.trainjobs)  # it stays, to be looked at


def test_a_node_that_was_taken_away_is_told(cluster: Cluster, spec_uri: str) -> None:
    def play() -> None:
        cluster.job()
        first, pod = cluster.start_pods()
        cluster.end_pod(first, 1)
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "why"}
        pod.conditions = [condition]
        cluster.end_pod(pod, 143)
        cluster.end("Failed")

    assert ended(spec_uri, play).cause == "node 1 was taken away (PreemptionByScheduler: why)"


def test_a_failure_of_another_node_comes_with_its_last_lines(
    cluster: Cluster, spec_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def play() -> None:
        cluster.job()
        first, second = cluster.start_pods()
        cluster.print(second, "what it was")
        cluster.end_pod(second, 2)
        cluster.end_pod(first, 1)
        cluster.end("Failed")

    assert ended(spec_uri, play).exit_code == 2
    assert "node 1: what it was" in capsys.readouterr().err


def test_all_pages_of_pods_are_looked_at(cluster: Cluster, spec_uri: str) -> None:
    cluster.page = 2

    def play() -> None:
        cluster.job()
        pods = cluster.start_pods(7)
        for pod in pods:
            cluster.end_pod(pod, 2 if pod.number == 6 else 1)
        cluster.faults = [Fault("GET", "/pods$", 410, 0)]
        cluster.end("Failed")

    assert ended(spec_uri, play, nodes=7).exit_code == 2


def test_pages_that_have_become_too_old_are_asked_for_from_the_start(cluster: Cluster) -> None:
    api = kubernetes_api.KubernetesApi(lambda line: None)
    asked: list[dict[str, Any]] = []

    def get(path: str, patience: Any, **query: Any) -> dict[str, Any]:
        asked.append(query)
        if len(asked) == 2:
            raise kubernetes_api.Refusal(410, "The provided continue parameter is too old")
        return {"items": [len(asked)], "metadata": {"continue": "" if len(asked) == 4 else "more"}}

    api.get = get  # type: ignore[method-assign, assignment]
    assert api.all("/x", kubernetes_api.AT_THE_START) == [3, 4]
    assert ["continue" in query for query in asked] == [False, True, False, True]


def test_the_one_of_an_earlier_start_goes_first(cluster: Cluster, tmp_path: Path) -> None:
    """Its spec is another one by now: another task has taken the job over."""
    spec_uri = job_in(tmp_path).spec_uri

    def play_first() -> None:
        cluster.job()
        cluster.end("Failed")

    ended(spec_uri, play_first)
    job_in(tmp_path, run_id="another")

    def play() -> None:
        cluster.wait(lambda: len(cluster.made) == 2)
        cluster.end("Complete")

    assert not TrainJobLauncher(2, TrainJobSettings()).is_at_work(spec_uri)
    assert ended(spec_uri, play) == Ending(0)
    assert len(cluster.deletions) == 1


def test_one_that_is_at_work_is_waited_for(cluster: Cluster, spec_uri: str) -> None:
    """The task was killed, and is tried again."""
    launcher = TrainJobLauncher(2, TrainJobSettings())
    assert not launcher.is_at_work(spec_uri)
    cluster.create(json.loads(json.dumps(launcher._template.trainjob(spec_uri, None))))
    assert launcher.is_at_work(spec_uri)
    assert ended(spec_uri, lambda: cluster.end("Complete")) == Ending(0)
    assert len(cluster.made) == 1 and cluster.deletions == []


def test_somebody_elses_of_the_same_name_is_left_alone(cluster: Cluster, spec_uri: str) -> None:
    launcher = TrainJobLauncher(2, TrainJobSettings())
    theirs = launcher._template.trainjob(spec_uri, None)
    theirs["metadata"]["labels"] = {}
    cluster.create(theirs)
    for ask in (launcher.is_at_work, lambda uri: launcher.run(uri, None)):
        with pytest.raises(CalmError, match=r"^team: TrainJob .* is there, and not of this pipeline; delete or rename"):
            ask(spec_uri)
    assert cluster.deletions == []


def test_one_that_somebody_deletes_was_stopped(cluster: Cluster, spec_uri: str) -> None:
    def play() -> None:
        job = cluster.job()
        cluster.start_pods()
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": job["metadata"]["uid"]}}
        with cluster.lock:
            cluster.delete(job["metadata"]["name"], options)

    assert ended(spec_uri, play).exit_code == 75
    assert len(cluster.made) == 1


def test_a_token_that_has_expired_is_read_anew(
    cluster: Cluster, spec_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(os.environ["KUBECONFIG"])
    port = int(yaml.safe_load(config.read_text())["clusters"][0]["cluster"]["server"].rpartition(":")[2])

    def play() -> None:
        cluster.job()
        cluster.tokens = {"token-2"}
        time.sleep(0.3)
        write_config(config, port, "token-2")
        seen = len(cluster.requests)
        cluster.wait(lambda: len(cluster.requests) > seen + 20)
        cluster.end("Complete")

    assert ended(spec_uri, play) == Ending(0)
    cluster.tokens = {"token-3"}
    with pytest.raises(CalmError, match=r"^team: Kubernetes refuses this task's token \(Unauthorized\); run it again"):
        TrainJobLauncher(2, TrainJobSettings()).world_size(None)
    assert TOKEN not in cluster.tokens


def test_a_pod_asks_with_its_service_account_and_its_newest_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"token": "one", "ca.crt": "certificate", "namespace": "of-the-pod\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kubernetes_api, "_NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("urllib3.PoolManager.request", answer := _Refused())
    api = kubernetes_api.KubernetesApi(lambda line: None)
    monkeypatch.setattr(kubernetes_api, "_FIRST_PAUSE", 0.01)
    assert api.namespace == "of-the-pod"
    (tmp_path / "token").write_text("two")
    assert api.get("/x", kubernetes_api.AT_THE_START) == {"kind": "X"}
    assert answer.asked == [("https://10.0.0.1:443/x", "bearer one"), ("https://10.0.0.1:443/x", "bearer two")]


class _Refused:
    """Refuses what is asked with the first token."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, method: str, url: str, *, headers: dict[str, str], **how: Any) -> urllib3.HTTPResponse:
        self.asked.append((url, headers["authorization"]))
        is_refused = headers["authorization"] == "bearer one"
        body = b'{"message": "Unauthorized"}' if is_refused else b'{"kind": "X"}'
        return urllib3.HTTPResponse(io.BytesIO(body), status=401 if is_refused else 200, preload_content=False)


@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("GET", rf"/pods/{OWN_POD}$", "get pods"),
        ("GET", r"/trainingruntimes/", "get trainingruntimes"),
        ("POST", JOBS, "create trainjobs"),
    ],
)
def test_a_missing_right_is_one_line(method: str, path: str, right: str, cluster: Cluster, spec_uri: str) -> None:
    message = f'User "system:serviceaccount:team:x" cannot {right} in API group "" in the namespace "team"'
    cluster.faults = [Fault(method, path, 403, 1000, message)]
    with pytest.raises(ConfigError) as caught:
        TrainJobLauncher(2, TrainJobSettings()).run(spec_uri, None)
    assert str(caught.value) == (
        f"team: the task's service account may not {right}; apply k8s/ and run the pipeline with calm-pipeline "
        f"({message})"
    )
    assert cluster.asked(method, path) == 1


def test_a_cluster_without_trainer_or_runtime_is_one_line(cluster: Cluster, spec_uri: str) -> None:
    launcher = TrainJobLauncher(2, TrainJobSettings())
    cluster.faults = [Fault("POST", JOBS, 404, 1, "the server could not find the requested resource")]
    with pytest.raises(
        ConfigError, match=r"^team: the cluster knows no trainjobs; install Kubeflow Trainer 2.2 or newer"
    ):
        launcher.run(spec_uri, None)
    cluster.runtimes = {}
    with pytest.raises(ConfigError, match=r"^team: has no TrainingRuntime calm-torch; apply k8s/ to this namespace"):
        TrainJobLauncher(2, TrainJobSettings()).world_size(None)


WAITING = """
import sys
from components.training import pod_log, trainjob
trainjob._POLL_SECONDS = 0.1
pod_log._PAUSE = 0.05
print(trainjob.TrainJobLauncher(2, trainjob.TrainJobSettings()).run(sys.argv[1], None).exit_code)
"""


def test_a_task_that_is_stopped_deletes_at_once_and_waits_until_the_ranks_have_saved(
    cluster: Cluster, spec_uri: str
) -> None:
    """A pod of a pipeline has about a second after SIGTERM."""
    saved = threading.Event()
    cluster.takes_to_delete = lambda: saved.wait(30)
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, spec_uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        cluster.wait(lambda: bool(cluster.trainjobs), 120)
        pod = cluster.start_pods()[0]
        cluster.wait(lambda: cluster.asked("GET", LOG) > 0)
        with cluster.lock:
            cluster.faults = [Fault("DELETE", "/trainjobs/", 500, 1)]
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        cluster.wait(lambda: bool(cluster.deletions))
        assert cluster.deletions[0] - asked < 1.0
        cluster.print(pod, "a checkpoint is saved")
        time.sleep(0.3)
        assert process.poll() is None
        cluster.end_pod(pod, 75)
        saved.set()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, "75")
    assert "a checkpoint is saved" in err


def test_what_a_model_does_not_know_is_a_mistake(cluster: Cluster) -> None:
    """So that the tests above would find it."""
    api = kubernetes_api.KubernetesApi(lambda line: None)
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
    wrong = {"metadata": {"name": "x"}, "spec": {"runtimeRef": {"name": "calm-torch"}, "trainer": {"numNode": 1}}}
    with pytest.raises(kubernetes_api.Refusal, match="numNode is unknown"):
        api.create(path, wrong, kubernetes_api.AT_THE_START)
    with pytest.raises(kubernetes_api.Refusal, match="422"):
        api.all("/api/v1/namespaces/team/pods", kubernetes_api.AT_THE_START, labelselector="a=b")
    assert len(cluster.mistakes) == 2
    cluster.mistakes.clear()
