"""An evaluation that was interrupted goes on where it was, and ends with the same bytes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calm_core.config import EvaluationConfig
from calm_core.errors import CalmError, ConfigError
from calm_core.evaluation import fidelity
from calm_core.evaluation.samplers import CalmSampler
from calm_core.evaluation.stage import evaluate
from calm_core.evaluation.unfinished import Unfinished, folder_of, unfinished
from calm_core.store.artifact import Artifact
from calm_core.store.facts import Accuracy, EvaluationFacts
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, parse

CONFIG = EvaluationConfig(
    samples=2, max_sequences=6, batch_size=1, prompts=("the river",), prompt_tokens=4, temperatures=()
)
PIECES = 6  # of a purpose: a sequence each

# Dies by SIGKILL when it is about to keep a piece, in the middle of scoring the model.
KILLED = """
import os, signal, sys
from calm_core.config import EvaluationConfig
from calm_core.evaluation import stage, unfinished

keep = unfinished.Unfinished._keep
def keep_or_die(self, name, data):
    if name == "brierlm-3":
        os.kill(os.getpid(), signal.SIGKILL)
    keep(self, name, data)
unfinished.Unfinished._keep = keep_or_die
dataset, autoencoder, calm, output, root, config = sys.argv[1:]
stage.evaluate(
    EvaluationConfig.model_validate_json(config), dataset, calm, output,
    seed=0, autoencoder_uri=autoencoder, checkpoint_root=root,
)
"""


@pytest.fixture(scope="module")
def uninterrupted(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Artifact[EvaluationFacts]:
    autoencoder, calm = model_uris
    output = str(tmp_path_factory.mktemp("uninterrupted"))
    return evaluate(CONFIG, dataset_uri, calm, output, seed=0, autoencoder_uri=autoencoder)


@pytest.fixture
def killed(dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path) -> Path:
    """What an evaluation has kept that was killed: the autoencoder's quality, and three of six pieces of the score."""
    root = tmp_path / "checkpoints"
    arguments = [dataset_uri, *model_uris, str(tmp_path / "out"), str(root), CONFIG.model_dump_json()]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=dict(os.environ), capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    (folder,) = root.iterdir()
    assert {*pieces(folder)} == {"autoencoder", "brierlm-0", "brierlm-1", "brierlm-2"}
    return folder


def pieces(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in folder.iterdir() if not file.name.startswith(".")}


def counted(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[None]:
    """A list that grows with each call of a method."""
    calls: list[None] = []
    method: Callable[..., Any] = getattr(kind, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return method(*args, **kwargs)

    monkeypatch.setattr(kind, name, call)
    return calls


def go_on(dataset_uri: str, model_uris: tuple[str, str], folder: Path) -> Artifact[EvaluationFacts]:
    autoencoder, calm = model_uris
    root, output = str(folder.parent), str(folder.parent.parent / "out")
    return evaluate(CONFIG, dataset_uri, calm, output, seed=0, autoencoder_uri=autoencoder, checkpoint_root=root)


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(
    killed: Path,
    uninterrupted: Artifact[EvaluationFacts],
    dataset_uri: str,
    model_uris: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """And says how fast it goes, and how long it takes: of what it measures, and not of what it finds."""
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    draws = counted(monkeypatch, CalmSampler, "draw")
    monkeypatch.setattr(fidelity, "measure", lambda *_, **__: pytest.fail("the autoencoder was measured again"))
    made = go_on(dataset_uri, model_uris, killed)
    assert len(draws) == PIECES - 3
    assert made.digest == uninterrupted.digest
    assert not killed.exists() and killed.parent.exists()
    events = [parse(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    told = [(event.done, event.rate > 0, event.eta > 0) for event in events if event.note == "BrierLM"]
    assert told == [(4, True, True), (5, True, True), (6, True, False)]


def test_a_damaged_piece_is_measured_again(
    killed: Path,
    uninterrupted: Artifact[EvaluationFacts],
    dataset_uri: str,
    model_uris: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    piece = pieces(killed)["brierlm-1"]
    data = piece.read_bytes()
    piece.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    pieces(killed)["brierlm-2"].write_bytes(b"")
    draws = counted(monkeypatch, CalmSampler, "draw")
    made = go_on(dataset_uri, model_uris, killed)
    assert len(draws) == PIECES - 1
    assert made.digest == uninterrupted.digest
    assert f"{piece} is damaged; measuring it again" in capsys.readouterr().err


def test_another_evaluation_begins_anew(
    killed: Path, dataset_uri: str, model_uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And leaves alone what is kept of the first one."""
    draws = counted(monkeypatch, CalmSampler, "draw")
    autoencoder, calm = model_uris
    root = str(killed.parent)
    output = str(tmp_path / "other")
    evaluate(CONFIG, dataset_uri, calm, output, seed=1, autoencoder_uri=autoencoder, checkpoint_root=root)
    assert len(draws) == PIECES
    assert [*killed.parent.iterdir()] == [killed] and "brierlm-0" in pieces(killed)


def test_other_code_measures_anew_and_leaves_nothing_of_what_the_earlier_one_kept(
    killed: Path,
    uninterrupted: Artifact[EvaluationFacts],
    dataset_uri: str,
    model_uris: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("calm_core.evaluation.stage.code_version", lambda: "of another library")
    draws = counted(monkeypatch, CalmSampler, "draw")
    made = go_on(dataset_uri, model_uris, killed)
    assert len(draws) == PIECES
    assert made.digest == uninterrupted.digest
    assert not killed.exists()


def test_pieces_come_back_to_the_bit_and_only_to_their_own_evaluation(tmp_path: Path) -> None:
    arrays = {"a": np.array([[0.1, 1e-300]]), "none": np.zeros((0, 4)), "whole": np.array([2**53 + 1])}
    accuracy = Accuracy(tokens=1 / 3, chunks=0.1)
    root, output, refuse = str(tmp_path / "root"), str(tmp_path / "out"), lambda: pytest.fail("it was measured again")
    with pytest.raises(KeyboardInterrupt), unfinished({"seed": 0}, (), root, output, print) as kept:
        kept.arrays("arrays", lambda: arrays)
        kept.record("record", Accuracy, lambda: accuracy)
        raise KeyboardInterrupt
    with unfinished({"seed": 1}, (), root, output, print) as kept:
        assert kept.record("record", Accuracy, lambda: Accuracy(tokens=0, chunks=0)).tokens == 0
    with unfinished({"seed": 0}, (), root, output, print) as kept:
        again = kept.arrays("arrays", refuse)
        assert {k: (v.dtype, v.shape, v.tolist()) for k, v in again.items()} == {
            k: (v.dtype, v.shape, v.tolist()) for k, v in arrays.items()
        }
        assert kept.record("record", Accuracy, refuse) == accuracy
        with pytest.raises(CalmError, match="is being worked on by"), unfinished({"seed": 0}, (), root, output, print):
            pass
        kept.remove()
    assert not Path(folder_of({"seed": 0}, root)).exists()


def test_without_a_place_nothing_is_kept() -> None:
    kept = Unfinished()
    assert kept.record("a", Accuracy, lambda: Accuracy(tokens=0, chunks=0)).tokens == 0
    assert kept.record("a", Accuracy, lambda: Accuracy(tokens=1, chunks=0)).tokens == 1


def test_an_output_that_would_be_removed_with_the_pieces_is_refused(tmp_path: Path) -> None:
    root = str(tmp_path)
    for output in (folder_of({}, root), f"{folder_of({}, root)}/out", root):
        with pytest.raises(ConfigError, match="would lie in each other"), unfinished({}, (), root, output, print):
            pass
    assert not [*tmp_path.iterdir()]
