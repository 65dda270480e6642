"""Training with real torchrun and DeepSpeed processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from calm_core.config import (
    AutoencoderConfig,
    CalmConfig,
    EvaluationConfig,
    MlpAutoencoderConfig,
)
from calm_core.errors import CalmError
from calm_core.evaluation.stage import evaluate
from calm_core.store.artifact import Artifact
from calm_core.training.stage import train

SHAPE = {"hidden_size": 32, "intermediate_size": 48}
TRAINING = {
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "precision": "fp32",
    "warmup_steps": 2,
    "learning_rate": 5e-3,
    "log_interval": 2,
    "validation_interval": 4,
    "validation_sequences": 8,
}


def autoencoder_config(**settings: int) -> AutoencoderConfig:
    model = MlpAutoencoderConfig(chunk_size=4, latent_size=8, **SHAPE)
    return AutoencoderConfig.model_validate({"steps": 8, **TRAINING, **settings, "model": model})


def calm_config(head: dict[str, Any] | None = None, **settings: int) -> CalmConfig:
    head = head or {"target_samples": 4}
    model = {"num_hidden_layers": 1, "num_attention_heads": 2, **SHAPE}
    model["head"] = {"num_layers": 1, "model_samples": 2, **head}
    return CalmConfig.model_validate({"steps": 6, **TRAINING, **settings, "model": model})


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(artifact.read("weights.safetensors"))


@pytest.fixture(scope="module")
def autoencoder(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("autoencoder")
    return train(
        autoencoder_config(), dataset_uri, str(folder / "out"), seed=0, checkpoint_root=str(folder / "checkpoints")
    )


def test_the_autoencoder_learns_and_says_so(autoencoder: Artifact) -> None:
    curves = [json.loads(line) for line in autoencoder.read("curves.jsonl").splitlines()]
    validated = [record for record in curves if "validation_loss" in record]
    assert [record["step"] for record in curves] == [2, 4, 6, 8]
    assert [record["step"] for record in validated] == [4, 8]
    assert validated[-1]["validation_loss"] < validated[0]["validation_loss"]
    assert autoencoder.facts.tokens_per_second > 0


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(
    autoencoder: Artifact, dataset_uri: str, tmp_path: Path
) -> None:
    again, other = (
        train(
            autoencoder_config(), dataset_uri, str(tmp_path / f"seed-{seed}"), seed=seed, checkpoint_root=str(tmp_path)
        )
        for seed in (0, 1)
    )
    assert again.read("weights.safetensors") == autoencoder.read("weights.safetensors")
    assert again.read("curves.jsonl") == autoencoder.read("curves.jsonl")
    assert again.digest == autoencoder.digest
    assert other.read("weights.safetensors") != autoencoder.read("weights.safetensors")


def test_the_language_model_has_the_same_bytes_too(
    autoencoder: Artifact, dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two threads, so that no sum depends on which of them is first."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    first, again = (
        train(
            calm_config(),
            dataset_uri,
            str(tmp_path / name),
            seed=0,
            checkpoint_root=str(tmp_path),
            autoencoder_uri=autoencoder.uri,
        )
        for name in ("first", "again")
    )
    assert first.read("weights.safetensors") == again.read("weights.safetensors")
    assert first.digest == again.digest


def test_two_ranks_train_what_one_rank_trains(autoencoder: Artifact, dataset_uri: str, tmp_path: Path) -> None:
    """By torchrun; test_tasks has all tasks and stages."""
    one, two = (
        train(
            calm_config(processes=processes, zero_stage=3),
            dataset_uri,
            str(tmp_path / f"ranks-{processes}"),
            seed=0,
            checkpoint_root=str(tmp_path),
            autoencoder_uri=autoencoder.uri,
        )
        for processes in (1, 2)
    )
    difference = max((weights(one)[name] - weights(two)[name]).abs().max().item() for name in weights(one))
    step = 6 * TRAINING["learning_rate"]  # what AdamW can move a weight at most, about
    assert difference < 0.01 * step
    assert one.facts.parameters == two.facts.parameters == sum(value.numel() for value in weights(one).values())
    losses = [artifact.facts.validation["energy_loss"] for artifact in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_stopped_run_continues_bit_for_bit(autoencoder: Artifact, dataset_uri: str, tmp_path: Path) -> None:
    """SIGTERM while training: the step is finished and saved; the next run ends with the weights of an unbroken one."""
    config = autoencoder_config(steps=600, validation_interval=300)
    unbroken = train(config, dataset_uri, str(tmp_path / "a"), seed=0, checkpoint_root=str(tmp_path / "ca"))

    progress = tmp_path / "progress.jsonl"
    script = (
        "import sys; from calm_core.config import AutoencoderConfig; "
        "from calm_core.training.stage import train; "
        "train(AutoencoderConfig.model_validate_json(sys.argv[1]), *sys.argv[2:4], seed=0, "
        "checkpoint_root=sys.argv[4])"
    )
    arguments = [config.model_dump_json(), dataset_uri, str(tmp_path / "b"), str(tmp_path / "cb")]
    environment = os.environ | {"CALM_PROGRESS_FILE": str(progress)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120  # start-up takes seconds; a hang must not take the test suite with it
    while not (progress.exists() and '"done":20,' in progress.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "run again to continue from there" in errors
    assert not (tmp_path / "b" / "manifest.json").exists()
    assert list((tmp_path / "cb").glob("*/step-*/manifest.json"))

    resumed = train(config, dataset_uri, arguments[2], seed=0, checkpoint_root=arguments[3])
    assert resumed.read("weights.safetensors") == unbroken.read("weights.safetensors")
    assert resumed.read("curves.jsonl") == unbroken.read("curves.jsonl")
    assert not list((tmp_path / "cb").glob("*"))  # a finished run leaves no checkpoints


def test_a_missing_data_set_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"nowhere: the dataset or mixture artifact is missing"):
        train(autoencoder_config(), str(tmp_path / "nowhere"), str(tmp_path / "out"), seed=0, checkpoint_root="x")


def test_a_batch_that_the_ranks_cannot_share_is_refused(dataset_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a multiple of micro_batch_size x processes"):
        autoencoder_config(processes=3)


def test_a_rank_that_fails_gives_its_own_line(dataset_uri: str, tmp_path: Path) -> None:
    config = autoencoder_config()
    config = config.model_copy(update={"model": config.model.model_copy(update={"chunk_size": 5})})
    with pytest.raises(CalmError, match="no multiple of the chunk size 5"):
        train(config, dataset_uri, str(tmp_path / "out"), seed=0, checkpoint_root=str(tmp_path))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("head", ["energy", "diffusion", "flow", "residual", "mixture"])
def test_every_head_trains_and_is_scored(autoencoder: Artifact, dataset_uri: str, tmp_path: Path, head: str) -> None:
    own = {"energy": {"target_samples": 4}, "residual": {}, "mixture": {}}.get(head, {"sampling_steps": 4})
    calm = train(
        calm_config({"kind": head, **own}, steps=12),
        dataset_uri,
        str(tmp_path / "calm"),
        seed=0,
        checkpoint_root=str(tmp_path),
        autoencoder_uri=autoencoder.uri,
    )
    curves = [json.loads(line) for line in calm.read("curves.jsonl").splitlines()]
    losses = [record[f"validation_{head}_loss"] for record in curves if f"validation_{head}_loss" in record]
    assert losses[-1] < losses[0]
    protocol = EvaluationConfig(samples=2, max_sequences=2, prompts=("the river",), prompt_tokens=4)
    score = evaluate(protocol, dataset_uri, calm.uri, str(tmp_path / "score"), seed=0, autoencoder_uri=autoencoder.uri)
    assert score.manifest.results["model"] == f"CALM, K = 4, {head} head"


def test_only_calm_takes_an_autoencoder(autoencoder: Artifact, dataset_uri: str, tmp_path: Path) -> None:
    output, root = str(tmp_path / "out"), str(tmp_path)
    with pytest.raises(CalmError, match="train-calm: autoencoder_uri is needed"):
        train(calm_config(), dataset_uri, output, seed=0, checkpoint_root=root)
    with pytest.raises(CalmError, match="train-autoencoder: autoencoder_uri is needed for CALM, and for no other"):
        train(autoencoder_config(), dataset_uri, output, seed=0, checkpoint_root=root, autoencoder_uri=autoencoder.uri)
