"""Every URL of a run on a real S3 server: dataset, checkpoints, models, evaluation."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from calm_core.config import DataConfig, EvaluationConfig, TokenizerConfig
from calm_core.data.stage import prepare_data
from calm_core.evaluation.stage import evaluate
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts
from calm_core.training.stage import train
from tests.conftest import sentences
from tests.training.test_stages import autoencoder_config, calm_config

LINES = "".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(120)).encode()


def prepared(place: str) -> Artifact:
    storage.write(f"{place}/texts.jsonl", LINES)
    data = DataConfig(sources=(f"{place}/*.jsonl",), sequence_length=32, rows_per_group=16, rows_per_shard=64)
    return prepare_data(data, TokenizerConfig(vocab_size=300), f"{place}/dataset")


def test_a_run_on_s3_is_stopped_continued_and_scored(s3_place: str, tmp_path: Path) -> None:
    """Its checkpoints lie there, too; the weights are those of an unbroken run on a local disk."""
    config = autoencoder_config(steps=200, validation_interval=100)
    local = prepared(str(tmp_path))
    unbroken = train(config, local.uri, f"{tmp_path}/autoencoder", seed=0, checkpoint_root=f"{tmp_path}/checkpoints")

    dataset, output, checkpoints = prepared(s3_place), f"{s3_place}/autoencoder", f"{s3_place}/checkpoints"
    assert dataset.manifest.files == local.manifest.files
    progress = tmp_path / "progress.jsonl"
    script = (
        "import sys; from calm_core.config import AutoencoderConfig; from calm_core.training.stage import train; "
        "train(AutoencoderConfig.model_validate_json(sys.argv[1]), *sys.argv[2:4], seed=0, checkpoint_root=sys.argv[4])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, config.model_dump_json(), dataset.uri, output, checkpoints],
        env=os.environ | {"CALM_PROGRESS_FILE": str(progress)},
    )
    deadline = time.monotonic() + 120  # start-up takes seconds; a hang must not take the test suite with it
    while not (progress.exists() and '"done":20,' in progress.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert len(storage.glob(f"{checkpoints}/*/step-*/manifest.json")) == 1

    resumed = train(config, dataset.uri, output, seed=0, checkpoint_root=checkpoints)
    assert resumed.read("weights.safetensors") == unbroken.read("weights.safetensors")
    assert not storage.files_below(checkpoints)
    assert resumed.facts.loader_wait_seconds >= 0

    calm = train(
        calm_config(), dataset.uri, f"{s3_place}/calm", seed=0, checkpoint_root=checkpoints, autoencoder_uri=output
    )
    scores = evaluate(
        EvaluationConfig(samples=2, max_sequences=2, prompts=("the river",), prompt_tokens=4),
        dataset.uri,
        calm.uri,
        f"{s3_place}/evaluation",
        seed=0,
        autoencoder_uri=output,
    )
    assert Artifact(scores.uri, EvaluationFacts).facts.brierlm.value >= 0
