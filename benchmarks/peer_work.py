"""The peers' side of the data benchmarks, in their environment: `python -m benchmarks.peer_work TASK ARGUMENT...`."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from transformers import PreTrainedTokenizerFast

from benchmarks.measure import Numbers, metered

BATCH = 8
_ROWS_PER_INPUT = 256
_COLUMN = "input_ids"


def prepare(source: str, tokenizer_file: str, sequence_length: str, output: str) -> Numbers:
    """As transformers' run_clm.py does it: load, map the tokenizer, map the grouping, save."""
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = Path(f"{output}.cache")  # empty, so that no earlier result is taken
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    length = int(sequence_length)
    sequences = 0

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(chain(*examples[name])) for name in examples}
        total = len(joined[_COLUMN]) // length * length
        result = {name: [ids[i : i + length] for i in range(0, total, length)] for name, ids in joined.items()}
        result["labels"] = result[_COLUMN].copy()
        return result

    def run() -> None:
        nonlocal sequences
        raw = datasets.load_dataset("json", data_files=source, split="train")
        tokenized = raw.map(lambda examples: tokenizer(examples["text"]), batched=True, remove_columns=["text"])
        grouped = tokenized.map(group, batched=True)
        grouped.save_to_disk(output)
        sequences = len(grouped)

    numbers = metered(run)
    shutil.rmtree(output)
    shutil.rmtree(f"{output}.cache")
    return numbers | {"tokens": sequences * length}


def convert(tokens_file: str, folder: str) -> Numbers:
    """Write sequences in each peer's format: datasets with int64, which is read fastest, and litdata with uint16."""
    tokens_NT = np.load(tokens_file, mmap_mode="r")
    features = datasets.Features({_COLUMN: datasets.List(datasets.Value("int64"), length=tokens_NT.shape[1])})
    rows = datasets.Dataset.from_dict({_COLUMN: tokens_NT.astype(np.int64)}, features=features)
    rows.save_to_disk(f"{folder}/datasets")
    optimize(
        partial(_flat, tokens_file),
        list(range(0, len(tokens_NT), _ROWS_PER_INPUT)),
        f"{folder}/litdata",
        chunk_bytes="64MB",
        item_loader=TokensLoader(block_size=tokens_NT.shape[1]),
        num_workers=1,
    )
    return {}


def _flat(tokens_file: str, first: int) -> Iterator[torch.Tensor]:
    yield torch.from_numpy(np.load(tokens_file, mmap_mode="r")[first : first + _ROWS_PER_INPUT].flatten())


def read_datasets(folder: str) -> Numbers:
    """Tokens per second of the map-style dataset, row by row and by batches of indices, with 0, 1 and 2 workers."""
    rows = datasets.load_from_disk(f"{folder}/datasets")
    torch_rows, numpy_rows = rows.with_format("torch"), rows.with_format("numpy")
    sampler = BatchSampler(RandomSampler(numpy_rows), BATCH, drop_last=False)
    loaders: dict[str, Callable[[], Iterable[torch.Tensor]]] = {}
    for workers in (0, 1, 2):
        more: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        by_row = DataLoader(torch_rows, batch_size=BATCH, shuffle=True, **more)
        by_batch = DataLoader(numpy_rows, sampler=sampler, batch_size=None, **more)
        loaders[f"rows, {workers} workers"] = partial(_column, by_row)
        loaders[f"batches, {workers} workers"] = partial(_column, by_batch)
    return _speeds(loaders, epochs=1)


def _column(loader: Iterable[dict[str, Any]]) -> Iterator[torch.Tensor]:
    return (torch.as_tensor(batch[_COLUMN]) for batch in loader)


def read_litdata(folder: str, sequence_length: str) -> Numbers:
    """Tokens per second of the streaming dataset, iterated plainly and by its loader."""
    dataset = StreamingDataset(
        f"{folder}/litdata", item_loader=TokensLoader(block_size=int(sequence_length)), shuffle=True, drop_last=False
    )
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, drop_last=False)

    def plainly() -> Iterator[torch.Tensor]:
        stream = (row for row in dataset)  # the dataset itself begins anew behind its end
        while rows := list(islice(stream, BATCH)):
            yield torch.stack(rows).long()

    return _speeds({"plain": plainly, "loader": lambda: (batch.long() for batch in loader)}, epochs=4)


def _speeds(loaders: dict[str, Callable[[], Iterable[torch.Tensor]]], epochs: int) -> Numbers:
    """Tokens per second of each, after an epoch that warms it up, and the sum of all tokens."""
    speeds: Numbers = {}
    for name, batches in loaders.items():
        sums = [(batch.numel(), int(batch.sum())) for batch in batches()]
        tokens, speeds["sum"] = (sum(column) for column in zip(*sums, strict=True))

        def run(batches: Callable[[], Iterable[torch.Tensor]] = batches) -> None:
            for _ in range(epochs):
                for batch in batches():
                    assert batch.dtype == torch.int64

        speeds[name] = epochs * tokens / metered(run)["seconds"]
    return speeds


if __name__ == "__main__":
    TASKS = (prepare, convert, read_datasets, read_litdata)
    print(json.dumps({task.__name__: task for task in TASKS}[sys.argv[1]](*sys.argv[2:])))
