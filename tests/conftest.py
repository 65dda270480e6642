"""What the tests share: a miniature data set of generated English-like sentences."""

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.errors import CalmError
from calm_core.store.code_version import CODE_VERSION_VARIABLE, code_version
from pipelines.local.object_store import BUCKET, s3_server
from tests.gpu.hidden import ALL_GPUS, GPUS_VARIABLE
from tests.object_store import environment
from tests.postgres import Postgres, postgres_server

ServerT = TypeVar("ServerT")
_SET_BY_TESTS = ("MLFLOW_", "CALM_")

# The models of these tests are so small that a second thread only waits for the first one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Their numbers are a CPU's, the same in every run, and their ranks more than a machine has GPUs: tests/gpu has those.
os.environ.setdefault(GPUS_VARIABLE, os.environ.get("CUDA_VISIBLE_DEVICES", ALL_GPUS))
os.environ["CUDA_VISIBLE_DEVICES"] = ""


def sentences(seed: int, number: int) -> str:
    """A document of simple sentences; few words, so that a tiny model learns something in seconds."""
    random_words = random.Random(seed)
    subjects, verbs = ["the river", "a small town", "the old port"], ["flows past", "lies near", "trades with"]
    return " ".join(
        f"{random_words.choice(subjects)} {random_words.choice(verbs)} {random_words.choice(subjects)}."
        for _ in range(number)
    )


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What these tests leave for MLflow does not mix with the user's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def own_variables() -> Iterator[None]:
    """Variables of ours and of MLflow, which keeps them itself too, count for the test that sets them alone."""
    before = {name: value for name, value in os.environ.items() if name.startswith(_SET_BY_TESTS)}
    yield
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(before.get("MLFLOW_TRACKING_URI"))
    if os.environ.get(CODE_VERSION_VARIABLE) != before.get(CODE_VERSION_VARIABLE):
        code_version.cache_clear()
    for name in [name for name in os.environ if name.startswith(_SET_BY_TESTS)]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def dataset_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared `dataset` artifact: 120 documents, sequences of 32 tokens."""
    from calm_core.data.stage import prepare_data

    folder: Path = tmp_path_factory.mktemp("dataset")
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(120)))
    data = DataConfig(
        sources=(str(source),), sequence_length=32, rows_per_group=16, rows_per_shard=64, validation_fraction=0.2
    )
    return prepare_data(data, TokenizerConfig(vocab_size=300), str(folder / "dataset")).uri


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server; where its program cannot be installed the tests are skipped, but never in CI."""
    with ExitStack() as stack:
        yield _entered(stack, s3_server(tmp_path_factory.mktemp("s3")))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server; where it is not installed the tests are skipped, but never in CI."""
    with ExitStack() as stack:
        yield _entered(stack, postgres_server())


def _entered(stack: ExitStack, server: AbstractContextManager[ServerT]) -> ServerT:
    try:
        return stack.enter_context(server)
    except CalmError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))


@pytest.fixture
def s3_place(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty s3:// folder."""
    with environment(monkeypatch, s3_endpoint, tmp_path / "cache"):
        yield f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture(scope="session")
def model_uris(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """URIs of an `autoencoder` artifact and a `calm` artifact, both trained for a few steps on `dataset_uri`."""
    from calm_core.config import AutoencoderConfig, CalmConfig
    from calm_core.training.stage import train

    folder = tmp_path_factory.mktemp("models")
    shape = {"hidden_size": 32, "intermediate_size": 48}
    training = {
        "steps": 4, "warmup_steps": 1, "global_batch_size": 4, "micro_batch_size": 4, "validation_interval": 2,
        "precision": "fp32",
    }  # fmt: skip
    autoencoder = train(
        AutoencoderConfig.model_validate(training | {"model": {"chunk_size": 4, "latent_size": 8, **shape}}),
        dataset_uri,
        str(folder / "autoencoder"),
        seed=0,
        checkpoint_root=str(folder / "checkpoints"),
    )
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    head = {"num_layers": 1, "model_samples": 2, "target_samples": 4, "noise_size": 4}
    calm = train(
        CalmConfig.model_validate(training | {"model": {"head": head, **layers, **shape}}),
        dataset_uri,
        str(folder / "calm"),
        seed=0,
        checkpoint_root=str(folder / "checkpoints"),
        autoencoder_uri=autoencoder.uri,
    )
    return autoencoder.uri, calm.uri


@pytest.fixture(scope="session")
def transformer_uri(dataset_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a `transformer` artifact, trained for a few steps on `dataset_uri`."""
    from calm_core.config import TransformerConfig
    from calm_core.training.stage import train

    folder = tmp_path_factory.mktemp("transformer")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    training = {
        "steps": 4, "warmup_steps": 1, "global_batch_size": 4, "micro_batch_size": 4, "validation_interval": 2,
        "precision": "fp32",
    }  # fmt: skip
    config = TransformerConfig.model_validate(training | {"model": shape})
    return train(config, dataset_uri, str(folder / "out"), seed=0, checkpoint_root=str(folder / "checkpoints")).uri


@pytest.fixture(scope="session")
def evaluation_uri(dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the `evaluation` artifact of the CALM model of `model_uris`."""
    from calm_core.config import EvaluationConfig
    from calm_core.evaluation.stage import evaluate

    config = EvaluationConfig(samples=2, max_sequences=16, prompts=("the river",), prompt_tokens=4)  # of some documents
    autoencoder, calm = model_uris
    output = str(tmp_path_factory.mktemp("evaluation"))
    return evaluate(config, dataset_uri, calm, output, seed=0, autoencoder_uri=autoencoder).uri
