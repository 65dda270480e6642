"""Starting ranks: nodes with a static rendezvous, exit codes, and what is said of ranks that cannot say it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from calm_core.errors import EXIT_INTERRUPTED, CalmError, ConfigError, Interrupted, Stopped
from calm_core.store.artifact import Artifact
from calm_core.store.facts import OutcomeFacts, SpecFacts
from calm_core.telemetry.processes import SIGNALLED
from calm_core.training import launcher as launcher_module
from calm_core.training.job import Job, TrainingSpec, check_inputs
from calm_core.training.launcher import EXIT_NO_MEETING, Ending, Nodes, TorchrunLauncher
from calm_core.training.stage import train
from calm_core.weights.load import load_weights
from pipelines.local.object_store import free_port
from tests.training.test_stages import autoencoder_config


def job_of(dataset_uri: str, folder: Path) -> Job:
    spec = TrainingSpec(
        kind="autoencoder",
        config=autoencoder_config(),
        dataset_uri=dataset_uri,
        output_uri=str(folder / "out"),
        seed=0,
    )
    return Job.of(check_inputs(spec), str(folder / "checkpoints"))


def test_two_nodes_train_what_two_ranks_of_one_node_train(dataset_uri: str, tmp_path: Path) -> None:
    """The second node runs plain torchrun with the same worker and spec, as a pod of a cluster does."""
    one = train(
        autoencoder_config(processes=2), dataset_uri, str(tmp_path / "one"), seed=0, checkpoint_root=str(tmp_path)
    )
    folder, port = tmp_path / "nodes", free_port()
    job = job_of(dataset_uri, folder)

    def second_node() -> None:
        while not (Path(job.spec_uri) / "manifest.json").exists():
            time.sleep(0.05)
        address = ["--nnodes=2", "--node-rank=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command = [sys.executable, "-m", "torch.distributed.run", *address, "--nproc-per-node=1"]
        # Nothing of what the launcher sets: a pod has the worker's command alone.
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        subprocess.run([*command, "-m", launcher_module.WORKER, job.spec_uri], env=environment, check=True)

    node = threading.Thread(target=second_node, daemon=True)
    node.start()
    two = train(
        autoencoder_config(),
        dataset_uri,
        str(folder / "out"),
        seed=0,
        checkpoint_root=str(folder / "checkpoints"),
        launcher=TorchrunLauncher(Nodes(2, "127.0.0.1", port)),
    )
    node.join(timeout=60)
    for name, expected in load_weights(one).items():  # the second node has more threads: sums in another order
        torch.testing.assert_close(load_weights(two)[name], expected, rtol=1e-4, atol=1e-5)


ADDRESS = {"PET_MASTER_ADDR": "10.0.0.1", "PET_MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "nodes"),
    [
        ({}, None),
        ({"PET_NNODES": "1", "PET_NODE_RANK": "x"}, None),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "1", **ADDRESS}, Nodes(2, "10.0.0.1", 29500, rank=1)),
        (
            {"PET_NNODES": "3", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "4", **ADDRESS},
            Nodes(3, "10.0.0.1", 29500, processes=4),
        ),
        (
            {"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "gpu", **ADDRESS},
            Nodes(2, "10.0.0.1", 29500),
        ),
    ],
)
def test_nodes_are_those_of_torchruns_own_variables(variables: dict[str, str], nodes: Nodes | None) -> None:
    assert Nodes.from_environment(variables) == nodes


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PET_NNODES": "2:4"}, "PET_NNODES: '2:4' is no whole number from 1 to 4096"),
        ({"PET_NODE_RANK": "2"}, "PET_NODE_RANK: '2' is no whole number from 0 to 1"),
        ({"PET_NODE_RANK": ""}, "PET_NODE_RANK is not set, and PET_NNODES is; set it on every node"),
        ({"PET_MASTER_ADDR": ""}, "PET_MASTER_ADDR: '' is no address; give that of node 0 on every node"),
        ({"PET_MASTER_ADDR": "a b"}, "PET_MASTER_ADDR: 'a b' is no address; give that of node 0 on every node"),
        ({"PET_MASTER_PORT": "70000"}, "PET_MASTER_PORT: '70000' is no whole number from 1 to 65535"),
        ({"PET_NPROC_PER_NODE": "-1"}, "PET_NPROC_PER_NODE: '-1' is no whole number from 1 to 1024"),
    ],
)
def test_variables_that_name_no_nodes_are_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Nodes.from_environment({"PET_NNODES": "2", "PET_NODE_RANK": "0", **ADDRESS, **variables})
    assert str(caught.value) == message


def test_ranks_are_counted_on_all_nodes_and_told_once() -> None:
    launcher = TorchrunLauncher(Nodes(3, "10.0.0.1", 29500, processes=1))
    assert launcher.world_size(None) == launcher.world_size(1) == 3
    with pytest.raises(ConfigError, match="processes is 2, PET_NPROC_PER_NODE is 1; leave one of them out"):
        launcher.world_size(2)


class Told:
    """A launcher of no ranks: what they would have left is left by the test."""

    def __init__(self, ending: Ending, outcome: OutcomeFacts | None = None, ranks: int = 1) -> None:
        self.ending, self.outcome, self.ranks = ending, outcome, ranks

    def world_size(self, processes: int | None) -> int:
        return self.ranks

    def is_at_work(self, spec_uri: str) -> bool:
        return False

    def run(self, spec_uri: str, processes: int | None, log: str) -> Ending:
        job, spec = Job.read(spec_uri)
        assert Artifact(spec_uri, SpecFacts).manifest.parents == spec.parents
        if self.outcome:
            job.write_outcome(self.outcome)
        return self.ending


def train_by(launcher: Told, dataset_uri: str, folder: Path) -> None:
    """Train a small autoencoder with a launcher."""
    train(
        autoencoder_config(), dataset_uri, str(folder / "out"), seed=0, checkpoint_root=str(folder), launcher=launcher
    )


class AtWork(Told):
    """Its ranks are at work already; what they have read, and what lies there when they are waited for."""

    def __init__(self, told: TrainingSpec) -> None:
        super().__init__(Ending(75))
        self.told = told

    def is_at_work(self, spec_uri: str) -> bool:
        return True

    def run(self, spec_uri: str, processes: int | None, log: str) -> Ending:
        job, self.found = Job.read(spec_uri)
        job.require_lock()
        Job(job.uri, self.told.lock).require_lock()  # those that are at work may save
        return self.ending


@pytest.mark.parametrize("is_same", [True, False])
def test_ranks_whose_launcher_is_gone_may_save_and_are_waited_for_if_they_do_what_is_asked_for(
    is_same: bool, dataset_uri: str, tmp_path: Path
) -> None:
    spec = check_inputs(
        TrainingSpec(
            kind="autoencoder",
            config=autoencoder_config(log_interval=1 if is_same else 2),
            dataset_uri=dataset_uri,
            output_uri=str(tmp_path / "out"),
            seed=0,
            run_id="theirs",
            lock="a" * 32,
        )
    )
    Job.of(spec, str(tmp_path)).write_spec(spec)
    launcher = AtWork(spec)
    with pytest.raises(Interrupted):
        train(
            autoencoder_config(log_interval=1),
            dataset_uri,
            str(tmp_path / "out"),
            seed=0,
            checkpoint_root=str(tmp_path),
            launcher=launcher,
        )
    assert launcher.found.run_id == ("theirs" if is_same else "")
    assert launcher.found.config.log_interval == 1


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        (
            {"nodes": 2},
            None,
            "autoencoder.nodes is 2, this is one machine; submit the pipeline to a cluster, run `calm ",
        ),
        ({"nodes": 2}, Nodes(4, "a", 1), "autoencoder.nodes is 2, PET_NNODES is 4; submit the pipeline to a cluster"),
        ({"launcher": "trainjob"}, None, "autoencoder.launcher: trainjob is for a pipeline in a cluster; submit it"),
    ],
)
def test_settings_that_need_a_cluster_are_refused_here(
    settings: dict[str, Any], nodes: Nodes | None, message: str
) -> None:
    config = autoencoder_config(micro_batch_size=2, **settings)
    with pytest.raises(ConfigError, match=re.escape(message)):
        launcher_module.require_nodes(config, nodes)
    launcher_module.require_nodes(autoencoder_config(), Nodes(4, "a", 1))
    launcher_module.require_nodes(autoencoder_config(micro_batch_size=2, nodes=2), Nodes(2, "a", 1))


def test_python_is_refused_nodes_without_a_launcher(dataset_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is one machine"):
        train(
            autoencoder_config(micro_batch_size=2, nodes=2),
            dataset_uri,
            str(tmp_path / "out"),
            seed=0,
            checkpoint_root=str(tmp_path),
        )


def test_what_a_launcher_alone_knows_counts_for_more_than_what_other_ranks_met(
    dataset_uri: str, tmp_path: Path
) -> None:
    ending = Ending(1, cause="node 1 was taken away")
    with pytest.raises(
        CalmError, match=r"^train-autoencoder: node 1 was taken away; run the same command again"
    ) as caught:
        train_by(Told(ending, OutcomeFacts(message="a connection was lost", exit_code=1)), dataset_uri, tmp_path)
    assert caught.value.can_pass
    with pytest.raises(ConfigError, match=r"^impossible$"):
        train_by(Told(ending, OutcomeFacts(message="impossible", exit_code=2)), dataset_uri, tmp_path)


@pytest.mark.parametrize(
    ("ending", "outcome", "error", "message"),
    [
        (Ending(1), None, CalmError, "train-autoencoder: a rank ended with exit code 1; what it said before tells why"),
        (Ending(1, "Killed: by somebody"), None, CalmError, "Killed: by somebody"),
        (Ending(1, "Later: of another rank"), OutcomeFacts(message="first", exit_code=1), CalmError, "first"),
        (Ending(1), OutcomeFacts(message="stopped after step 2", exit_code=75), Interrupted, "stopped after step 2"),
        (
            Ending(75),
            None,
            Interrupted,
            "stopped; run again to continue from the last checkpoint, if there is one",
        ),
        (Ending(2), OutcomeFacts(message="too large", exit_code=2), ConfigError, "too large"),
        (
            Ending(EXIT_NO_MEETING, "the client socket has timed out"),
            OutcomeFacts(message="of an earlier start", exit_code=1),
            CalmError,
            "train-autoencoder: the nodes did not meet (the client socket has timed out); start the same command on "
            "every node, with the same PET_MASTER_ADDR and PET_MASTER_PORT",
        ),
    ],
)
def test_whoever_waits_learns_why_the_ranks_ended(
    ending: Ending,
    outcome: OutcomeFacts | None,
    error: type[CalmError],
    message: str,
    dataset_uri: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        train_by(Told(ending, outcome), dataset_uri, tmp_path)
    assert (type(caught.value), str(caught.value)) == (error, message)


@pytest.mark.parametrize(("exit_code", "who"), [(-9, "torchrun"), (137, "a rank")])
def test_what_the_kernel_has_killed_is_said_whatever_the_other_ranks_met(
    exit_code: int, who: str, dataset_uri: str, tmp_path: Path
) -> None:
    lost = OutcomeFacts(message="RuntimeError: Connection closed by peer", exit_code=1)
    with pytest.raises(CalmError) as caught:
        train_by(Told(Ending(exit_code), lost), dataset_uri, tmp_path)
    assert str(caught.value).startswith(f"train-autoencoder: {who} was killed (SIGKILL), perhaps for want of memory: ")
    assert "run the same command again" in str(caught.value)
    assert caught.value.can_pass


def test_ranks_that_cannot_share_a_batch_are_not_started(dataset_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a multiple of micro_batch_size x ranks \(2 x 3\)"):
        train_by(Told(Ending(0), ranks=3), dataset_uri, tmp_path)
    assert not list(tmp_path.glob("autoencoder-*"))


def test_the_first_outcome_stays_and_a_new_try_begins_without_one(dataset_uri: str, tmp_path: Path) -> None:
    job = job_of(dataset_uri, tmp_path)
    job.write_outcome(OutcomeFacts(message="first", exit_code=1))
    job.write_outcome(OutcomeFacts(message="what follows from it", exit_code=1))
    assert job.outcome() == OutcomeFacts(message="first", exit_code=1)
    spec = TrainingSpec(
        kind="autoencoder", config=autoencoder_config(), dataset_uri=dataset_uri, output_uri="o", seed=0
    )
    job.write_spec(spec)
    assert job.outcome() is None


def test_an_error_file_is_one_line_and_a_damaged_one_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    for content, expected in (
        (json.dumps({"message": {"message": "RuntimeError: first\nsecond"}}), "RuntimeError: first"),
        (json.dumps({"message": {"message": ""}}), ""),
        ('{"message": ', ""),
        ("[]", ""),
    ):
        path.write_text(content)
        assert launcher_module._recorded(path) == expected
    assert launcher_module._recorded(tmp_path / "none") == ""


def test_ranks_leave_nothing_where_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun makes a folder for its logs, and torch one for compiled code, when they start."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert TorchrunLauncher().run(str(tmp_path / "no spec"), None).exit_code != 0
    assert list(temporary.iterdir()) == []


def test_what_a_killed_launcher_has_left_goes_with_the_next_one_and_what_a_living_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "calm-training-left" / "inside").mkdir(parents=True)
    (tmp_path / "others").mkdir()
    with launcher_module._temporary_folder() as first:
        Path(first, "used").touch()
        with launcher_module._temporary_folder() as second:
            assert {path.name for path in tmp_path.iterdir()} == {"others", Path(first).name, Path(second).name}
            assert Path(first, "used").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


class OneRankDies:
    """The first rank finishes and says so; another one ends otherwise."""

    def world_size(self, processes: int | None) -> int:
        return 1

    def is_at_work(self, spec_uri: str) -> bool:
        return False

    def run(self, spec_uri: str, processes: int | None, log: str) -> Ending:
        job, _ = Job.read(spec_uri)
        job.write_outcome(OutcomeFacts(message="validation accuracy 99.00%"))
        return Ending(134)


def test_a_rank_that_dies_after_the_first_has_finished_is_no_good_news(dataset_uri: str, tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"^train-autoencoder: a rank was ended by SIGABRT; run the same"):
        train(
            autoencoder_config(),
            dataset_uri,
            str(tmp_path / "out"),
            seed=0,
            checkpoint_root=str(tmp_path),
            launcher=OneRankDies(),
        )


def test_a_training_that_is_asked_to_stop_when_its_model_is_written_has_finished(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    """Ranks that end need a second, in which they no longer listen."""

    class Written(Told):
        def run(self, spec_uri: str, processes: int | None, log: str) -> Ending:
            shutil.copytree(model_uris[0], tmp_path / "out", dirs_exist_ok=True)
            return super().run(spec_uri, processes, log)

    train_by(Written(Ending(75), OutcomeFacts(message="accuracy 99.00%")), dataset_uri, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


SAVES = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep({}), sys.exit(75)))\n"
    "print('begun', flush=True)\ntime.sleep(60)\n"
)


@contextmanager
def saving(seconds: float) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that takes so long to end once it is asked, whose requests come from this one."""
    with subprocess.Popen([sys.executable, "-c", SAVES.format(seconds)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with launcher_module._signals_passed_on(process):
            yield process


def test_ranks_that_are_asked_twice_still_save_what_they_are_at() -> None:
    """A closed terminal is told by the shell and the system, and a group's SIGTERM by who starts it, too."""
    with saving(0.5) as process:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        assert process.wait() == EXIT_INTERRUPTED


def test_a_thread_may_train_too() -> None:
    """Python lets it have no signals."""

    def wait() -> int:
        with saving(0) as process:
            process.terminate()
            return process.wait()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(wait).result(timeout=60) == EXIT_INTERRUPTED


def test_a_later_sigterm_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_module, "_AT_ONCE", 0.1)
    with pytest.raises(Stopped) as stopped, saving(60) as process:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        process.wait()
    assert stopped.value.signal_number == signal.SIGTERM
    assert process.wait() == -signal.SIGKILL


def test_a_process_that_has_just_ended_is_asked_twice_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_module, "_AT_ONCE", 0.0)
    with pytest.raises(Stopped), saving(60) as process:
        process.kill()
        process.wait()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)


class Run:
    """A launcher at work, with ranks of `odd_worker`, in a process of its own."""

    def __init__(self, folder: Path, what: str, **environment: str) -> None:
        self.temporary, self.log = folder / "temporary", folder / "training.log"
        self.temporary.mkdir()
        code = (
            "import sys\nfrom calm_core.training import launcher\n"
            "launcher.WORKER = 'tests.training.odd_worker'\n"
            "print(launcher.TorchrunLauncher().run(sys.argv[1], 2, sys.argv[2]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, what, str(self.log)],
            env=os.environ | {"TMPDIR": str(self.temporary)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, text: str, count: int) -> None:
        """Wait until the log holds a text so often."""
        while not self.log.exists() or self.log.read_text().count(text) < count:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def below(self) -> list[psutil.Process]:
        """The agent, then the ranks."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ended(self, below: list[psutil.Process]) -> tuple[str, str]:
        """What it printed, once all have ended; they have left nothing."""
        told = self.process.communicate(timeout=60)
        assert psutil.wait_procs(below, timeout=60)[1] == []
        assert list(self.temporary.iterdir()) == []
        return told


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts one; it ends with the test, and all below it."""
    runs: list[Run] = []

    def start(what: str, **environment: str) -> Run:
        runs.append(Run(tmp_path, what, **environment))
        return runs[-1]

    yield start
    for one in runs:
        for process in one.below() if one.process.poll() is None else ():
            process.kill()
        one.process.kill()
        one.process.communicate()


def test_what_ranks_print_is_shown_and_kept(run: Callable[..., Run]) -> None:
    one = run("says_something")
    said, shown = one.ended([])
    assert said == "Ending(exit_code=0, message='', for_memory=False, cause='')\n"
    assert shown.count("to standard output\n") == shown.count("to standard error, without an end") == 2
    lines = [line.split(" ", 2)[2] for line in one.log.read_text().splitlines()]
    assert (lines[0], lines[-1]) == ("launcher: start of 2 ranks: says_something", "launcher: end with exit code 0")
    assert sorted(lines[1:-1]) == [
        f"rank {rank}: {line}"
        for rank in (0, 1)
        for line in ("https://***@host/ to standard error, without an end", "to standard output")
    ]


@pytest.mark.parametrize("everyone", [False, True], ids=["the parent", "everyone"])
def test_a_save_takes_the_time_that_it_takes(everyone: bool, run: Callable[..., Run]) -> None:
    """Torch would kill the ranks after a second; where a whole group is told, each rank is told twice."""
    one = run("saves_slowly", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    one.wait_for("ready", 2)
    below = one.below()
    for process in [*(below if everyone else []), psutil.Process(one.process.pid)]:
        process.terminate()
    said, _ = one.ended(below)
    assert said.startswith(f"Ending(exit_code={EXIT_INTERRUPTED},")
    assert one.log.read_text().count("saved, asked") == 2


def test_a_rank_that_is_killed_is_named_before_what_follows_from_it(run: Callable[..., Run]) -> None:
    said, _ = run("one_is_killed").ended([])
    assert said.startswith(f"Ending(exit_code={SIGNALLED + signal.SIGKILL},")


@pytest.mark.parametrize("who", ["parent", "agent"])
def test_no_rank_outlives_who_started_it(who: str, run: Callable[..., Run]) -> None:
    """Not even one that is stopped, and could not see it."""
    if who == "agent" and sys.platform != "linux":
        pytest.skip("only Linux kills a process with its parent")
    one = run("one_is_stopped")
    one.wait_for("process", 2)
    below = one.below()
    (one.process if who == "parent" else below[0]).kill()
    said, _ = one.ended(below)
    if who == "agent":
        assert said.startswith(f"Ending(exit_code={-signal.SIGKILL},")
    else:
        assert "whoever waits for the ranks has gone; they are killed" in one.log.read_text()


@pytest.mark.parametrize("gpu", [False, True])
def test_deepspeed_computes_where_torch_does(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says: with the model on one device and DeepSpeed on another every training fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu" if gpu else "cuda")
    assert launcher_module._environment(1)["DS_ACCELERATOR"] == ("cuda" if gpu else "cpu")
