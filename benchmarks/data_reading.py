"""Our side of reading data, a process for each task: `python -m benchmarks.data_reading TASK ARGUMENT...`."""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Numbers, metered
from calm_core.config import AutoencoderConfig, MlpAutoencoderConfig
from calm_core.data.reading.dataset import TokenDataset
from calm_core.data.reading.loader import Loader
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts
from calm_core.training.stage import train

BATCH, EPOCHS = 8, 4
_RESUMES = 7
_STEPS = 80


def export(uri: str, tokens_file: str) -> Numbers:
    """Write the sequences as one NumPy file, for the peers to read."""
    dataset = TokenDataset(uri, "train")
    np.save(tokens_file, dataset.rows(np.arange(dataset.num_sequences)).astype(np.uint16))
    return {}


def read(uri: str) -> Numbers:
    """Tokens per second, after an epoch that warms it up, and the sum of that one's tokens."""
    dataset = TokenDataset(uri, "train")
    loader = Loader(dataset, BATCH, seed=0)
    total, left = 0, dataset.num_sequences
    while left > 0:
        total += int(loader.next_batch().tokens[:left].sum())
        left -= BATCH
    batches = EPOCHS * dataset.num_sequences // BATCH
    seconds = metered(lambda: _read(loader, batches))["seconds"]
    return {"ours": batches * BATCH * dataset.sequence_length / seconds, "sum": total}


def _read(loader: Loader, batches: int) -> None:
    for _ in range(batches):
        assert loader.next_batch().tokens.dtype == torch.int64


def resume(uri: str) -> Numbers:
    """Seconds from the middle of an epoch's state to the next batch, with the dataset open, and with opening it."""
    dataset = TokenDataset(uri, "train")
    loader = Loader(dataset, BATCH, seed=0)
    _read(loader, dataset.num_sequences // BATCH // 2)
    state, expected = loader.state_dict(), loader.next_batch().tokens

    def first_batch(opened: TokenDataset | None) -> float:
        time.sleep(0.5)  # until the loader before has read ahead
        started = time.perf_counter()
        resumed = Loader(opened or TokenDataset(uri, "train"), BATCH, seed=0)
        resumed.load_state_dict(state)
        tokens = resumed.next_batch().tokens
        seconds = time.perf_counter() - started
        assert torch.equal(tokens, expected)
        return seconds

    return {
        "open": statistics.median(first_batch(dataset) for _ in range(_RESUMES)),
        "closed": statistics.median(first_batch(None) for _ in range(_RESUMES)),
    }


def download(uri: str, folder: str) -> Numbers:
    """Bytes per second of the training shards, by the file system alone: one after the other, and all at once."""
    paths, size = _training_shards(uri)
    filesystem, root = storage.filesystem_of(uri)
    Path(folder).mkdir(exist_ok=True)
    remote = [f"{root}/{name}" for name in paths]

    def one_by_one() -> None:
        for number, path in enumerate(remote):
            filesystem.get_file(path, f"{folder}/{number}")

    ways = {"one by one": one_by_one, "all at once": lambda: filesystem.get(remote, f"{folder}/")}
    return {name: size / metered(way)["seconds"] for name, way in ways.items()}


def stream(uri: str) -> Numbers:
    """Bytes per second of the training shards, read for an epoch by the loader."""
    _, size = _training_shards(uri)
    dataset = TokenDataset(uri, "train")
    batches = -(-dataset.num_sequences // BATCH)
    return {"rate": size / metered(lambda: _read(Loader(dataset, BATCH, seed=0), batches))["seconds"]}


def _training_shards(uri: str) -> tuple[list[str], int]:
    """Paths, and bytes of all; the connection is open after it."""
    artifact = Artifact(uri, DatasetFacts)
    paths = [shard.path for shard in artifact.facts.splits["train"].shards]
    return paths, sum(artifact.entry(path).size for path in paths)


def train_from(uri: str, folder: str) -> Numbers:
    """Seconds of training steps of a small autoencoder, and of waiting for batches after the first one."""
    shape = MlpAutoencoderConfig(latent_size=32, hidden_size=64, intermediate_size=128)
    config = AutoencoderConfig(
        steps=_STEPS,
        warmup_steps=0,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        validation_sequences=BATCH,
        model=shape,
    )
    facts = train(config, uri, f"{folder}/model", seed=0, checkpoint_root=f"{folder}/checkpoints").facts
    return {"seconds": facts.seconds, "waited": facts.loader_wait_seconds}


if __name__ == "__main__":
    TASKS = (export, read, resume, download, stream, train_from)
    print(json.dumps({task.__name__: task for task in TASKS}[sys.argv[1]](*sys.argv[2:])))
