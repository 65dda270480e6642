"""Faults that a training survives: its weights are those of an undisturbed one, bit for bit on as many ranks.

Which processes are killed at random moments, and what that leaves, is seen by `python -m benchmarks.kills`.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from calm_core.config import TransformerConfig
from calm_core.errors import ArtifactError, CalmError, ConfigError, Interrupted
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import ModelFacts, TransformerFacts
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, parse
from calm_core.training.job import TrainingSpec, check_inputs
from calm_core.training.stage import train
from calm_core.weights.load import WEIGHTS_NAME, load_weights
from pipelines.local.object_store import BUCKET
from tests.data.test_faults import small_disk
from tests.object_store import Trouble, environment, troubled
from tests.training.faulty_ranks import (
    ASKED_TO_STOP,
    KILLED,
    Fault,
    ForkedLauncher,
    emptied,
    filled,
    forked_training,
    mounted,
)
from tests.training.pausing_worker import PAUSED_FILE
from tests.training.test_stages import SHAPE, TRAINING, autoencoder_config, calm_config

STEPS, INTERVAL = 14, 2
AFTER_6 = 7  # the batch with which step 7 begins


def config_of(kind: str, **settings: Any) -> Any:
    settings = {"steps": STEPS, "checkpoint_interval": INTERVAL} | settings
    if kind == "transformer":
        layers = {"num_hidden_layers": 1, "num_attention_heads": 2, **SHAPE}
        return TransformerConfig.model_validate({**TRAINING, **settings, "model": layers})
    return autoencoder_config(**settings) if kind == "autoencoder" else calm_config(**settings)


class Training:
    """One that is started again and again, in one place.

    Args:
        kind: Of the model.
        dataset_uri, autoencoder_uri: Its inputs.
        place: URL of the folder in which it works.
        progress: Where each start tells its progress.

    Attributes:
        said: What the last start has told of itself, line by line.
        first_step: The first step that it has told of.
    """

    def __init__(self, kind: str, dataset_uri: str, autoencoder_uri: str, place: str, progress: Path) -> None:
        self._kind, self._dataset_uri = kind, dataset_uri
        self._autoencoder_uri = autoencoder_uri if kind == "calm" else ""
        self.output, self.checkpoints = f"{place}/{kind}", f"{place}/checkpoints"
        self._progress = progress
        self.said: list[str] = []
        self.first_step = 0

    def start(
        self, faults: Mapping[int, Fault] | None = None, *, resume: bool = False, **settings: Any
    ) -> Artifact[ModelFacts]:
        """Start it, with a point of the curves at each step.

        Raises:
            CalmError: It has not finished.
        """
        self._progress.unlink(missing_ok=True)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(PROGRESS_FILE_VARIABLE, str(self._progress))
                return train(
                    config_of(self._kind, **{"log_interval": 1} | settings),
                    self._dataset_uri,
                    self.output,
                    seed=0,
                    checkpoint_root=self.checkpoints,
                    autoencoder_uri=self._autoencoder_uri,
                    resume=resume,
                    launcher=ForkedLauncher(faults),
                )
        finally:
            events = [parse(line) for line in self._progress.read_text().splitlines()]
            self.first_step = next((event.done for event in events if event.done), 0)
            self.said = [event.note for event in events if not event.done]

    def is_killed(self, batch: int, **settings: Any) -> None:
        """Start it, and kill a rank when it takes its n-th batch."""
        with pytest.raises(CalmError, match="a rank was killed"):
            self.start({batch: KILLED}, **settings)

    def by_torchrun(self, paused: Path, **settings: Any) -> BaseProcess:
        """A process that trains by torchrun; the last rank pauses at its third batch, and a file says so."""
        self._progress.unlink(missing_ok=True)
        return forked_training(
            "tests.training.pausing_worker",
            {PROGRESS_FILE_VARIABLE: str(self._progress), PAUSED_FILE: str(paused)},
            config_of(self._kind, log_interval=1, **settings),
            self._dataset_uri,
            self.output,
            seed=0,
            checkpoint_root=self.checkpoints,
            autoencoder_uri=self._autoencoder_uri,
        )

    @property
    def job(self) -> str:
        """Where its checkpoints lie."""
        (name,) = storage.names_in(self.checkpoints)
        return f"{self.checkpoints}/{name}"

    def checkpoint(self, step: int) -> str:
        return f"{self.job}/step-{step:08d}"


@pytest.fixture(scope="module")
def undisturbed(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact[ModelFacts]]:
    """Makes the undisturbed training of a kind, once."""

    @cache
    def made(kind: str, **settings: Any) -> Artifact[ModelFacts]:
        folder = tmp_path_factory.mktemp(kind)
        autoencoder = made("autoencoder").uri if kind == "calm" else ""
        return Training(kind, dataset_uri, autoencoder, str(folder), folder / "progress").start(**settings)

    return made


@pytest.fixture
def new_training(
    dataset_uri: str, undisturbed: Callable[..., Artifact[ModelFacts]], tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[str, str], Training]:
    def new(kind: str, place: str = "local") -> Training:
        folder = str(tmp_path) if place == "local" else request.getfixturevalue("s3_place")
        return Training(kind, dataset_uri, undisturbed("autoencoder").uri, folder, tmp_path / "progress")

    return new


def check_same(artifact: Artifact[ModelFacts], expected: Artifact[ModelFacts], training: Training) -> None:
    """The weights are the same, and no checkpoint is left."""
    assert artifact.read(WEIGHTS_NAME) == expected.read(WEIGHTS_NAME)
    assert storage.files_below(training.checkpoints) == []


def part_of(checkpoint: str) -> str:
    """A file of tensors."""
    return next(uri for uri in storage.files_below(checkpoint) if uri.endswith(".safetensors"))


def truncated(checkpoint: str) -> None:
    part = part_of(checkpoint)
    storage.write(part, storage.read(part)[:-8])


def flipped(checkpoint: str) -> None:
    """One bit, of a weight."""
    part = part_of(checkpoint)
    data = bytearray(storage.read(part))
    data[-5] ^= 0x10
    storage.write(part, bytes(data))


def with_an_empty_file(checkpoint: str) -> None:
    storage.write(part_of(checkpoint), b"")


def without_a_file(checkpoint: str) -> None:
    storage.remove([part_of(checkpoint)])


def without_a_manifest(checkpoint: str) -> None:
    storage.remove([f"{checkpoint}/manifest.json"])


def with_an_empty_manifest(checkpoint: str) -> None:
    storage.write(f"{checkpoint}/manifest.json", b"")


def with_an_edited_manifest(checkpoint: str) -> None:
    manifest = json.loads(storage.read(f"{checkpoint}/manifest.json"))
    manifest["results"]["position"] += 4
    storage.write(f"{checkpoint}/manifest.json", json.dumps(manifest).encode())


Damage = Callable[[str], None]
REASONS: dict[Damage, str] = {
    truncated: r"\.safetensors: file is damaged \(SHA-256 differs\)",
    flipped: r"\.safetensors: file is damaged \(SHA-256 differs\)",
    with_an_empty_file: r"\.safetensors: file is damaged \(SHA-256 differs\)",
    without_a_file: r"\.safetensors: file is missing",
    without_a_manifest: r" has no manifest\.json, which is written last",
    with_an_empty_manifest: r"manifest\.json: damaged manifest \(.+\)",
    with_an_edited_manifest: r"manifest\.json: damaged manifest \(its checksum differs\)",
}


@pytest.mark.parametrize(
    ("kind", "place", "damages"),
    [
        ("autoencoder", "local", [truncated, flipped, with_an_empty_file, without_a_manifest]),
        ("calm", "s3", [flipped, with_an_edited_manifest]),
        ("transformer", "local", [with_an_edited_manifest, with_an_empty_manifest, without_a_file]),
    ],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    kind: str,
    place: str,
    damages: list[Damage],
    new_training: Callable[[str, str], Training],
    undisturbed: Callable[..., Artifact[ModelFacts]],
) -> None:
    """After each damage the training goes on one interval further than before, and is killed again."""
    training, newest = new_training(kind, place), 4
    training.is_killed(newest + 1)
    for damage in damages:
        damage(training.checkpoint(newest))
        training.is_killed(2 * INTERVAL + 1)
        assert training.first_step == newest - INTERVAL + 1
        (line,) = [line for line in training.said if "left out" in line]
        where = re.escape(f"step-{newest:08d}")
        assert re.fullmatch(rf"the checkpoint of step {newest} is left out: \S+{where}\S*{REASONS[damage]}", line)
        newest += INTERVAL
    check_same(training.start(), undisturbed(kind), training)
    assert training.first_step == newest + 1


def test_where_no_checkpoint_is_whole_training_starts_anew_and_says_so(
    new_training: Callable[[str, str], Training], undisturbed: Callable[..., Artifact[ModelFacts]]
) -> None:
    training = new_training("transformer", "s3")
    training.is_killed(AFTER_6)
    for step in (4, 6):
        flipped(training.checkpoint(step))
    check_same(training.start(), undisturbed("transformer"), training)
    assert training.first_step == 1
    assert "no checkpoint can be used; training starts anew" in training.said


@pytest.mark.parametrize("damage", [flipped, without_a_manifest])
def test_to_resume_where_no_checkpoint_is_whole_is_refused(
    damage: Damage, new_training: Callable[[str, str], Training]
) -> None:
    training = new_training("transformer", "local")
    training.is_killed(AFTER_6)
    for step in (4, 6):
        damage(training.checkpoint(step))
    with pytest.raises(ConfigError, match="resume=True: "):
        training.start(resume=True)
    assert training.first_step == 0
    assert not [line for line in training.said if "starts anew" in line]
    assert {"step-00000004", "step-00000006"} <= set(storage.names_in(training.job))


@pytest.mark.parametrize(("kind", "place"), [("autoencoder", "s3"), ("calm", "local")])
def test_a_training_goes_on_with_other_ranks_stages_and_intervals(
    kind: str,
    place: str,
    new_training: Callable[[str, str], Training],
    undisturbed: Callable[..., Artifact[ModelFacts]],
) -> None:
    """The sums are in another order on another number of ranks, so the weights are as good as equal."""
    training, expected = new_training(kind, place), load_weights(undisturbed(kind))
    training.is_killed(5, processes=2, zero_stage=2)
    training.is_killed(5, zero_stage=1, checkpoint_interval=3)
    assert training.first_step == 5
    made = training.start(processes=2, zero_stage=3, micro_batch_size=1, validation_interval=5)
    assert training.first_step == 7
    difference = max((value - expected[name]).abs().max().item() for name, value in load_weights(made).items())
    assert difference < 0.01 * STEPS * TRAINING["learning_rate"]  # of what AdamW can move a weight


def test_intervals_and_the_stage_of_one_rank_leave_the_weights_as_they_are(
    new_training: Callable[[str, str], Training], undisturbed: Callable[..., Artifact[ModelFacts]]
) -> None:
    training = new_training("transformer", "local")
    training.is_killed(5, zero_stage=0)
    made = training.start(zero_stage=3, log_interval=4, validation_interval=3, checkpoint_interval=5)
    assert training.first_step == 6  # the first that is validated
    check_same(made, undisturbed("transformer"), training)


def test_a_model_that_is_there_may_be_trained_again_in_another_way(
    dataset_uri: str, undisturbed: Callable[..., Artifact[ModelFacts]]
) -> None:
    """Its training was killed when all was written, and goes on with other ranks."""

    def writer(**settings: Any) -> ArtifactWriter[ModelFacts]:
        config, output = config_of("transformer", **settings), undisturbed("transformer").uri
        spec = TrainingSpec(kind="transformer", config=config, dataset_uri=dataset_uri, output_uri=output, seed=0)
        return check_inputs(spec).writer(TransformerFacts)

    writer(processes=2, zero_stage=3, log_interval=7).check()
    with pytest.raises(ArtifactError, match="holds another transformer, of other settings"):
        writer(learning_rate=1e-3).check()


@pytest.mark.parametrize(("kind", "place"), [("calm", "s3"), ("transformer", "local")])
def test_ranks_that_are_asked_to_stop_or_lose_one_go_on_bit_for_bit(
    kind: str,
    place: str,
    new_training: Callable[[str, str], Training],
    undisturbed: Callable[..., Artifact[ModelFacts]],
) -> None:
    """The request comes to one of two ranks, in the middle between two checkpoints; later a rank is killed."""
    training, two = new_training(kind, place), {"processes": 2, "zero_stage": 2}
    with pytest.raises(Interrupted, match=f"stopped after step 3 of {STEPS}; "):
        training.start({3: ASKED_TO_STOP}, **two)
    training.is_killed(4, **two)
    assert training.first_step == 4
    check_same(training.start(**two), undisturbed(kind, **two), training)
    assert training.first_step == 7


def test_whoever_is_killed_no_process_is_left_and_the_training_goes_on(
    new_training: Callable[[str, str], Training],
    undisturbed: Callable[..., Artifact[ModelFacts]],
    tmp_path: Path,
) -> None:
    """torchrun's own ranks; while one waits for the other one, their parent or torchrun is killed, or Ctrl-C comes."""
    training, two = new_training("autoencoder", "local"), {"processes": 2, "zero_stage": 1}
    for number, (victim, exit_code) in enumerate((("parent", -9), ("torchrun", 1), ("Ctrl-C", 75))):
        paused = tmp_path / f"paused-{victim}"
        parent = training.by_torchrun(paused, **two)
        deadline = time.monotonic() + 120  # a hang must not take the test suite with it
        while not paused.exists() and parent.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert paused.exists()
        (torchrun,) = psutil.Process(parent.pid).children()
        ranks = torchrun.children()
        assert len(ranks) == 2
        if victim == "torchrun":
            torchrun.kill()
        else:
            os.kill(parent.pid, signal.SIGKILL if victim == "parent" else signal.SIGINT)
        parent.join(timeout=60)
        _, left = psutil.wait_procs([torchrun, *ranks], timeout=15)  # it takes a moment, though not a second
        assert (victim, parent.exitcode, left) == (victim, exit_code, [])
        saved = (number + 1) * INTERVAL + (victim == "Ctrl-C")
        assert storage.exists(f"{training.checkpoint(saved)}/manifest.json")
    check_same(training.start(**two), undisturbed("autoencoder", **two), training)
    assert training.first_step == 8


@dataclass(frozen=True)
class Disk:
    """A fault of a disk.

    Attributes:
        begins, ends: It, in a rank.
        reason: How it is told.
    """

    begins: Callable[[Path], Fault]
    ends: Callable[[Path], Fault]
    reason: str


FULL = Disk(filled, emptied, "the disk is full")
READ_ONLY = Disk(lambda disk: mounted(disk, "ro"), lambda disk: mounted(disk, "rw"), "Read-only file system")


@pytest.mark.parametrize(("kind", "fault"), [("autoencoder", FULL), ("calm", READ_ONLY)])
def test_what_cannot_be_saved_stops_nothing_and_is_tried_again(
    kind: str,
    fault: Disk,
    dataset_uri: str,
    undisturbed: Callable[..., Artifact[ModelFacts]],
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    training = Training(kind, dataset_uri, undisturbed("autoencoder").uri, str(tmp_path), tmp_path / "progress")
    training.checkpoints = str(disk)
    with small_disk(disk, 4 << 20):
        with pytest.raises(CalmError, match="a rank was killed"):
            training.start({3: fault.begins(disk), 7: fault.ends(disk), 9: KILLED})
        failed = [line for line in training.said if "could not be saved" in line]
        assert [line.partition(":")[0] for line in failed] == [
            f"the checkpoint of step {step} could not be saved" for step in (4, 6)
        ]
        assert all(fault.reason in line for line in failed)
        assert not [name for name in storage.names_in(training.job) if name in ("step-00000004", "step-00000006")]
        made = training.start({3: fault.begins(disk)})  # until the end
        assert training.first_step == 9
        assert [line.partition(":")[0] for line in training.said if "could not be saved" in line] == [
            f"the checkpoint of step {step} could not be saved" for step in (12, STEPS)
        ]
        assert made.read(WEIGHTS_NAME) == undisturbed(kind).read(WEIGHTS_NAME)


@pytest.fixture
def on_s3(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Trouble]]:
    """An s3:// folder, and what becomes of the requests for it; nothing is asked twice."""
    with troubled(s3_endpoint) as (endpoint, trouble), environment(monkeypatch, endpoint, tmp_path / "cache"):
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield f"s3://{BUCKET}/{tmp_path.name}", trouble


def test_a_storage_that_fails_at_a_save_stops_nothing_and_one_that_fails_at_a_load_loses_nothing(
    on_s3: tuple[str, Trouble], dataset_uri: str, undisturbed: Callable[..., Artifact[ModelFacts]], tmp_path: Path
) -> None:
    place, trouble = on_s3
    training = Training("transformer", dataset_uri, "", place, tmp_path / "progress")
    trouble.failing = "/step-00000004/"
    training.is_killed(AFTER_6)
    assert [line.partition(":")[0] for line in training.said if "could not be saved" in line] == [
        "the checkpoint of step 4 could not be saved"
    ]
    trouble.failing = "/step-00000006/"
    with pytest.raises(
        CalmError, match=r"step-00000006/\S+: the storage failed .+ run the same command again"
    ) as caught:
        training.start()
    assert caught.value.can_pass
    assert training.first_step == 0
    trouble.failing = ""
    check_same(training.start(), undisturbed("transformer"), training)
    assert training.first_step == 7
