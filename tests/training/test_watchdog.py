"""A rank without progress: a real training of two ranks, one of which gets stuck."""

from pathlib import Path

import pytest

from calm_core.errors import CalmError
from calm_core.training import launcher
from calm_core.training.stage import train
from tests.training.test_stages import autoencoder_config

_SECONDS = 20  # no pause of a start on a busy machine takes so long


def test_a_stuck_rank_ends_the_training_and_the_log_has_the_stacks_of_all(
    dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "WORKER", "tests.training.stuck_worker")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(launcher.tempfile, "tempdir", str(temporary))
    with pytest.raises(CalmError) as caught:
        train(
            autoencoder_config(processes=2, stuck_after_seconds=_SECONDS),
            dataset_uri,
            str(tmp_path / "out"),
            seed=0,
            checkpoint_root=str(tmp_path / "checkpoints"),
            log_folder=str(tmp_path / "logs"),
        )
    [log] = (tmp_path / "logs").glob("*.log")
    assert str(caught.value) == (
        f"train-autoencoder: a rank was stuck: no step for {_SECONDS} s (stuck_after_seconds); the stacks of all ranks "
        f"are in the log; run the same command again to continue from the last checkpoint (log: {log})"
    )
    assert caught.value.can_pass
    lines = log.read_text().splitlines()
    assert any("rank 1: " in line and line.endswith("in get_stuck") for line in lines)
    assert any("rank 0: " in line and line.endswith("in all_reduce_sum") for line in lines)
    assert list(temporary.iterdir()) == []
