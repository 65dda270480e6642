"""Starting ranks: nodes with a static rendezvous, exit codes, and what is said of ranks that cannot say it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from calm_core.errors import EXIT_INTERRUPTED, CalmError, ConfigError, Interrupted
from calm_core.store.artifact import Artifact
from calm_core.store.facts import OutcomeFacts, SpecFacts
from calm_core.training import launcher as launcher_module
from calm_core.training.job import Job, TrainingSpec, check_inputs
from calm_core.training.launcher import Ending, Nodes, TorchrunLauncher
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


class Told:
    """A launcher of no ranks: what they would have left is left by the test."""

    def __init__(self, ending: Ending, outcome: OutcomeFacts | None = None, ranks: int = 1) -> None:
        self.ending, self.outcome, self.ranks = ending, outcome, ranks

    def world_size(self, processes: int | None) -> int:
        return self.ranks

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


class OneRankDies:
    """The first rank finishes and says so; another one ends otherwise."""

    def world_size(self, processes: int | None) -> int:
        return 1

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


def test_ranks_that_are_asked_twice_still_save_what_they_are_at() -> None:
    """A closed terminal is told by the shell and the system; and who ends a pod may ask again."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(75)))\n"
        "print('begun', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with launcher_module._signals_passed_on(process):
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
                time.sleep(0.05)
            assert process.wait() == EXIT_INTERRUPTED
