"""Two containers that train together: as the pods of a TrainJob, and by the container backend of Trainer's SDK."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import docker
import fsspec
import pytest
import torch
import yaml
from kubeflow.trainer import ContainerBackendConfig, CustomTrainer, TrainerClient, TrainingRuntimeSource
from kubeflow.trainer.types.types import TrainJob

from calm_core.errors import CalmError
from calm_core.store import storage
from calm_core.training.launcher import Ending, Launcher
from calm_core.training.stage import train
from components.training.trainjob import launcher_of
from pipelines.local.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, s3_server
from tests.components.kubernetes_cluster import NAMESPACE, hurried_cluster
from tests.components.test_trainjob_nodes import until
from tests.docker.pods import RUNTIME, Nodes, Values, nodes_of
from tests.object_store import environment
from tests.training.test_stages import autoencoder_config, weights

pytestmark = pytest.mark.timeout(900)  # several starts of two machines, on one
Weights = dict[str, torch.Tensor]
INTERVALS = {"checkpoint_interval": 10, "validation_interval": 60, "log_interval": 30}
SETTINGS = {"steps": 120, "micro_batch_size": 2, **INTERVALS}
MOST = 0.01 * SETTINGS["steps"] * autoencoder_config().learning_rate
"""By which a weight may differ where another number of ranks sums: a hundredth of what AdamW can move it, about."""


@pytest.fixture(scope="module")
def one(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """What one process trains."""
    return trained_here(dataset_uri, tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """What two undisturbed ranks of one machine train."""
    return trained_here(dataset_uri, tmp_path_factory.mktemp("two"), 2)


def trained_here(dataset_uri: str, folder: Path, processes: int) -> Weights:
    config = autoencoder_config(**SETTINGS, processes=processes)
    return weights(train(config, dataset_uri, f"{folder}/out", seed=0, checkpoint_root=f"{folder}/checkpoints"))


@dataclass(frozen=True)
class Network:
    """A network of containers, and a real S3 server that they and this machine reach.

    Attributes:
        name: Of the network.
        endpoint: Of the server.
    """

    name: str
    endpoint: str

    @property
    def values(self) -> Values:
        """What the ConfigMap and the Secret of a namespace say of it."""
        return {
            "calm-environment": {"AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": "us-east-1"},
            "calm-credentials": {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
        }


@pytest.fixture(scope="module")
def network(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A network without a way out of this machine."""
    made = engine.networks.create(f"calm-{secrets.token_hex(4)}", internal=True)
    try:
        made.reload()
        gateway = made.attrs["IPAM"]["Config"][0]["Gateway"]
        with s3_server(tmp_path_factory.mktemp("s3"), gateway) as endpoint:
            yield Network(made.name, endpoint)
    finally:
        made.remove()


@pytest.fixture
def place(network: Network, dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An s3:// folder with the data set in it."""
    with environment(monkeypatch, network.endpoint, tmp_path / "cache"):
        place = f"s3://{BUCKET}/{tmp_path.name}"
        fsspec.filesystem("s3").put(dataset_uri, f"{place}/dataset", recursive=True)
        yield place


def train_there(place: str, launcher: Launcher) -> Weights:
    """The same training, by ranks in containers."""
    output, checkpoints = f"{place}/out", f"{place}/checkpoints"
    config = autoencoder_config(**SETTINGS, nodes=2)
    made = train(config, f"{place}/dataset", output, seed=0, checkpoint_root=checkpoints, launcher=launcher)
    assert not storage.files_below(checkpoints)
    return weights(made)


def saved(place: str) -> int:
    """After which step the last checkpoint was saved; 0: there is none."""
    found = storage.glob(f"{place}/checkpoints/*/step-*/manifest.json")
    return max((int(uri.split("/")[-2].removeprefix("step-")) for uri in found), default=0)


def assert_that_of_others(made: Weights, one: Weights, two: Weights) -> None:
    """Bit for bit what two ranks train that nobody disturbs, and what one process does but for the order of sums."""
    assert made.keys() == one.keys() == two.keys()
    assert all(value.equal(two[name]) for name, value in made.items())
    assert max((value - one[name]).abs().max().item() for name, value in made.items()) < MOST


# As the pods of a TrainJob.


def test_pods_of_a_trainjob_are_killed_and_stopped_and_train_what_one_process_does(
    engine: docker.DockerClient,
    image: str,
    network: Network,
    place: str,
    one: Weights,
    two: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One is lost, so the other ends; then one is asked to stop, so both save; each time both start again, as JobSet
    has it. A user without a name, a root file system that cannot be written, and no rights, as `restricted` wants it.
    """

    with hurried_cluster(tmp_path, monkeypatch) as cluster, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        cluster.own_pod["spec"]["containers"][1]["image"] = image
        runtime = yaml.safe_load(RUNTIME.read_text())
        runtime["metadata"]["namespace"] = NAMESPACE
        cluster.runtimes = {runtime["metadata"]["name"]: runtime}
        stack.callback(cluster.end, "Failed")  # so that nobody waits where a check fails
        launcher = launcher_of(autoencoder_config(**SETTINGS, nodes=2), {})
        assert launcher
        made = pool.submit(train_there, place, launcher)

        def start() -> Nodes:
            return stack.enter_context(nodes_of(cluster, engine, network.name, network.values))

        first = start()
        first.until(lambda: saved(place) > 0)
        first.containers[1].kill()
        lost, killed = first.codes()
        assert killed == 137 and lost not in (0, 2, 75)
        at = saved(place)
        assert at < SETTINGS["steps"]

        second = start()
        second.until(lambda: saved(place) > at)
        second.containers[1].kill("SIGTERM")
        assert second.codes() == [75, 75]
        at = saved(place)
        assert at < SETTINGS["steps"]

        third = start()
        assert third.codes() == [0, 0]
        assert f"continues from step {at:,} of" in third.said(0)
        cluster.end("Complete")
        assert_that_of_others(made.result(30), one, two)
    assert capsys.readouterr().err.count("nodes have been started again") == 2


# By Trainer's SDK.


def rank(spec_uri: str) -> None:
    """What the SDK sends to each node, for torchrun: the lines of this function."""
    import runpy
    import sys

    sys.argv = ["worker", spec_uri]
    runpy.run_module("calm_core.training.worker", run_name="__main__", alter_sys=True)


@dataclass
class BySdk:
    """A launcher whose ranks run in containers that Trainer's SDK starts.

    Attributes:
        jobs: What the SDK has told of each in the end.
        names: Of the jobs.
    """

    client: TrainerClient
    image: str
    variables: dict[str, str]
    names: list[str] = field(default_factory=list)
    jobs: list[TrainJob] = field(default_factory=list)

    def world_size(self, processes: int | None) -> int:
        return 2

    def is_at_work(self, spec_uri: str) -> bool:
        return False

    def run(self, spec_uri: str, processes: int | None, log: str) -> Ending:
        trainer = CustomTrainer(
            func=rank, func_args={"spec_uri": spec_uri}, image=self.image, num_nodes=2, env=self.variables
        )
        name = self.client.train(runtime=self.client.get_runtime("calm-torch"), trainer=trainer)
        self.names.append(name)
        try:
            job = self.client.wait_for_job_status(name, {"Complete", "Failed"}, timeout=300, polling_interval=1)
            self.jobs.append(job)
            print(*self.client.get_job_logs(name))
        finally:
            self.client.delete_job(name)
        return Ending(int(job.status != "Complete"))


def test_trainers_sdk_trains_in_two_containers_of_which_one_is_killed(
    engine: docker.DockerClient,
    image: str,
    network: Network,
    place: str,
    one: Weights,
    two: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From our own runtime; nothing is fetched: neither images nor packages nor other runtimes."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where it makes a folder for each job
    backend = ContainerBackendConfig(
        container_runtime="docker",
        pull_policy="Never",
        runtime_source=TrainingRuntimeSource(sources=[str(RUNTIME)]),
    )
    variables = {name: value for each in network.values.values() for name, value in each.items()}
    launcher = BySdk(TrainerClient(backend), image, variables | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})

    def kill_one() -> None:
        until(lambda: saved(place), 300)
        engine.containers.get(f"{launcher.names[0]}-node-1").kill()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one)
        with pytest.raises(CalmError, match="train-autoencoder: "):
            train_there(place, launcher)
        killed.result(10)
    made = train_there(place, launcher)
    assert [job.status for job in launcher.jobs] == ["Failed", "Complete"]
    job = launcher.jobs[1]
    assert (job.runtime.name, job.num_nodes) == ("calm-torch", 2)
    assert [(step.name, step.status) for step in job.steps] == [("node-0", "Complete"), ("node-1", "Complete")]
    assert_that_of_others(made, one, two)
