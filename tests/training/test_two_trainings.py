"""`calm train` twice, in real processes: the second one is refused, a dead one's job is taken over and goes on."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from calm_core.errors import Interrupted
from calm_core.store import lock, storage
from calm_core.training.job import Job
from calm_core.training.stage import train
from tests.cli.test_stopping import MINI, Program, at_work
from tests.store.test_lock import wait_for
from tests.training.test_stages import autoencoder_config
from tests.training.test_unfinished_training import Stopped

TRAINING = ["autoencoder.steps=1000000", "autoencoder.log_interval=1", "autoencoder.checkpoint_interval=2"]


@contextmanager
def training(folder: Path, dataset_uri: str, root: str, *options: str) -> Iterator[Program]:
    folder.mkdir()
    command = ["train", "autoencoder", "--profile", str(MINI), "--dataset", dataset_uri, "--output", "out"]
    settings = [word for setting in TRAINING for word in ("--set", setting)]
    with at_work(folder, *command, "--checkpoints", root, *settings, *options) as program:
        yield program


def locks(root: str) -> list[str]:
    return [uri for uri in storage.files_below(root) if "/.calm-lock-" in uri]


def is_saved(root: str) -> bool:
    return any("/step-" in uri and uri.endswith("/manifest.json") for uri in storage.files_below(root))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_the_second_is_refused_and_a_killed_one_is_taken_over(
    place: str, request: pytest.FixtureRequest, dataset_uri: str, tmp_path: Path
) -> None:
    root = f"{request.getfixturevalue('s3_place')}/checkpoints" if place == "s3" else str(tmp_path / "checkpoints")
    with training(tmp_path / "first", dataset_uri, root) as first:
        first.wait_until(lambda: is_saved(root))
        with training(tmp_path / "second", dataset_uri, root) as second:
            exit_code, error = second.ended()
        assert exit_code == 1
        assert f": is being worked on by process {first.process.pid} on " in error
        assert "wait for it, or stop it, then run the same command again" in error
        assert [(event.state, event.can_pass) for event in second.events()] == [("failed", True)]

        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        with training(tmp_path / "third", dataset_uri, root, "--resume", "--set", "autoencoder.zero_stage=0") as third:
            third.said(lambda event: event.done > 2)
            third.process.send_signal(signal.SIGTERM)
            exit_code, error = third.ended()
    assert exit_code == 75
    assert any(event.note.startswith("continues from step ") for event in third.events())
    assert is_saved(root)
    assert locks(root) == []


_ELSEWHERE = """
import sys
from calm_core.config import AutoencoderConfig
from calm_core.store import lock
from calm_core.training.stage import train
lock.machine = lambda: "another machine"
lock.BEAT_SECONDS = 0.1
config = AutoencoderConfig.model_validate_json(sys.argv[1])
try:
    train(config, *sys.argv[2:4], seed=0, checkpoint_root=sys.argv[4])
except lock.LockLostError as error:
    print(error)
"""


def test_one_that_stood_still_ends_once_another_one_has_come_and_removes_nothing(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on two machines, neither of which sees the other one's processes: on the first one all stops that shows it is
    alive, while its ranks go on."""
    monkeypatch.setattr(lock, "DEAD_SECONDS", 2.0)
    root, config = str(tmp_path / "checkpoints"), autoencoder_config(steps=1_000_000, checkpoint_interval=2)
    command = [sys.executable, "-c", _ELSEWHERE, config.model_dump_json(), dataset_uri, str(tmp_path / "a"), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            wait_for(lambda: is_saved(root))
            first.send_signal(signal.SIGSTOP)

            def meanwhile(job: Job) -> None:
                first.send_signal(signal.SIGCONT)
                said, _ = first.communicate(timeout=60)
                assert "its lock is held by another one now" in said
                job.require_lock()
                assert is_saved(root)

            with pytest.raises(Interrupted):
                train(
                    config, dataset_uri, str(tmp_path / "b"), seed=0, checkpoint_root=root, launcher=Stopped(meanwhile)
                )
        finally:
            first.kill()
    assert is_saved(root)
    assert locks(root) == []
