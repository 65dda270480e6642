"""What the tests share: a miniature data set of generated English-like sentences."""

import json
import os
import random
from pathlib import Path

import pytest

from calm_core.config import DataConfig, TokenizerConfig

# The models of these tests are so small that a second thread only waits for the first one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def sentences(seed: int, number: int) -> str:
    """A document of simple sentences; few words, so that a tiny model learns something in seconds."""
    random_words = random.Random(seed)
    subjects, verbs = ["the river", "a small town", "the old port"], ["flows past", "lies near", "trades with"]
    return " ".join(
        f"{random_words.choice(subjects)} {random_words.choice(verbs)} {random_words.choice(subjects)}."
        for _ in range(number)
    )


@pytest.fixture(scope="session")
def dataset_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared `dataset` artifact: 120 documents, sequences of 32 tokens."""
    from calm_core.data.prepare import prepare_data

    folder: Path = tmp_path_factory.mktemp("dataset")
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(120)))
    data = DataConfig(
        sources=(str(source),), sequence_length=32, rows_per_group=16, rows_per_shard=64, validation_fraction=0.2
    )
    return prepare_data(data, TokenizerConfig(vocab_size=300), str(folder / "dataset")).uri
