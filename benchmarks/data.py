"""Preparing and reading data, against Hugging Face datasets, litdata, and the bare encoder and download."""

import gzip
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from benchmarks.corpus import texts_of, write_corpus, write_texts
from benchmarks.measure import Numbers, Row, in_process, in_turns
from benchmarks.peers import peer
from benchmarks.sizes import V
from calm_core.data.tokenizers.tokenizer import Tokenizer
from pipelines.local.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, s3_server

T, REPEATS = 2048, 5
KEYED = (4, 40)  # partitions
COPIES = 4  # of the corpus, in the large source
_preparing = partial(in_process, "benchmarks.data_preparing")
_reading = partial(in_process, "benchmarks.data_reading")


def rows() -> Iterator[Row]:
    with TemporaryDirectory(prefix="calm-benchmarks-") as name:
        folder = Path(name)
        corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer.json"
        write_corpus(corpus)
        texts = texts_of(corpus)
        tokenizer.write_bytes(Tokenizer.train(texts[::4], V).to_bytes())
        small, large = _sources(texts, folder)
        yield from _preparing_rows(corpus, tokenizer, folder)
        yield from _scaling_rows(large["jsonl"], tokenizer, folder)
        yield from _memory_rows(small, large, tokenizer, folder)
        yield from _duplicate_rows(folder)
        yield from _reading_rows(folder / "dataset", folder)
        yield from _streaming_rows(large["jsonl"], small["jsonl"], tokenizer, folder)


def _preparing_rows(corpus: Path, tokenizer: Path, folder: Path) -> Iterator[Row]:
    """The dataset of the last run stays at folder/dataset."""
    numbers = in_turns(
        {
            "datasets": lambda: peer("prepare", corpus, tokenizer, T, folder / "grouped", folder=folder),
            "encoding": lambda: _preparing("encode", corpus, tokenizer),
            "ours": lambda: _prepare(corpus, tokenizer, folder / "dataset"),
        },
        REPEATS,
    )
    ours = numbers["ours"]
    speed = {name: run["tokens"] / run["cpu_seconds"] for name, run in numbers.items()}
    what = f"preparing {corpus.stat().st_size / 1e6:.0f} MB of JSON lines, tokens per CPU-second, V {V:,}"
    for reference, name, target in (("datasets", "datasets, map + group", 3.5), ("encoding", "encoding alone", 0.85)):
        yield Row(
            f"{what}: against {name}",
            f"{speed[reference] / 1e6:.2f} M/s",
            f"{speed['ours'] / 1e6:.2f} M/s",
            speed["ours"] / speed[reference],
            target,
        )
    size = ours["bytes"] / ours["tokens"]
    yield Row(f"bytes on disk per token, V {V:,}, of at most 1.6", "1.60", f"{size:.2f}", 1.6 / size, target=1)


def _scaling_rows(source: Path, tokenizer: Path, folder: Path) -> Iterator[Row]:
    numbers = in_turns(
        {
            workers: partial(_prepare, source, tokenizer, folder / "scaled", workers=int(workers), partitions=8)
            for workers in ("1", "2")
        },
        2,
    )
    one, two = numbers["1"], numbers["2"]
    assert one["digest"] == two["digest"], "the bytes must not depend on the workers"
    yield Row(
        f"preparing {source.stat().st_size / 1e6:.0f} MB with two workers against one, equal bytes out",
        f"{one['seconds']:.1f} s",
        f"{two['seconds']:.1f} s",
        one["seconds"] / two["seconds"],
    )
    yield from _portion_rows(source, tokenizer, folder)


def _portion_rows(source: Path, tokenizer: Path, folder: Path) -> Iterator[Row]:
    """One partition, as a task of a pipeline has it; the plan and the tokenizer are made before."""
    measured = partial(_preparing, "partition", source, tokenizer, folder / "partition")
    numbers = in_turns(
        {"whole": partial(measured, 1, "whole"), "one": partial(measured, 1), "two": partial(measured, 2)}, 2
    )
    assert len({run["digest"] for run in numbers.values()}) == 1, "the bytes must not depend on the processes"
    what = f"scanning and tokenising one partition of {source.stat().st_size / 1e6:.0f} MB, one process"
    for name, reference, ours, unit in (
        (f"{what}: in portions against in one go", "whole", "one", "cpu_seconds"),
        ("... in portions, two processes against one", "one", "two", "seconds"),
    ):
        before, now = (numbers[way]["tokens"] / numbers[way][unit] / 1e6 for way in (reference, ours))
        per = "CPU-s" if unit == "cpu_seconds" else "s"
        yield Row(name, f"{before:.2f} Mtoken/{per}", f"{now:.2f} Mtoken/{per}", now / before)


def _prepare(source: Path, tokenizer: Path, output: Path, workers: int = 1, **settings: Any) -> Numbers:
    shape = json.dumps({"sequence_length": T} | settings)
    return _preparing("prepare", source, tokenizer, output, workers, shape)


def _sources(texts: list[str], folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """A small and a large source in each format, each text once; compressed and Parquet files are in one piece."""
    numbered = [f"Copy {copy}. {text}" for copy in range(COPIES) for text in texts]
    sources = []
    for name, part in (("small", texts[::6]), ("large", numbered)):
        paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("jsonl", "jsonl.gz", "parquet")}
        write_texts(paths["jsonl"], part)
        paths["jsonl.gz"].write_bytes(gzip.compress(paths["jsonl"].read_bytes(), compresslevel=1))
        pq.write_table(pa.table({"text": part}), paths["parquet"], row_group_size=len(part))
        sources.append(paths)
    return sources[0], sources[1]


def _memory_rows(small: dict[str, Path], large: dict[str, Path], tokenizer: Path, folder: Path) -> Iterator[Row]:
    sizes = " and ".join(f"{source['jsonl'].stat().st_size / 1e6:.0f}" for source in (small, large))
    for suffix in small:
        low, high = (
            _preparing("worker", source[suffix], tokenizer, folder / f"worker-{source[suffix].name}")["bytes"] / 2**20
            for source in (small, large)
        )
        what = f"memory of a preparing process, .{suffix}"
        yield Row(f"{what}, of {sizes} MB of text", f"{low:.0f} MiB", f"{high:.0f} MiB", low / high)
        yield Row(f"{what}, of at most 1 GiB", "1,024 MiB", f"{high:.0f} MiB", 1024 / high, target=1)


def _duplicate_rows(folder: Path) -> Iterator[Row]:
    memory, seconds = [], []
    for partitions in KEYED:
        _preparing("write_keys", folder / "keys", partitions)
        numbers = _preparing("compare_keys", folder / "keys", partitions)
        memory.append(numbers["bytes"] / 2**20)
        seconds.append(numbers["seconds"])
        shutil.rmtree(folder / "keys")
    what = f"finding duplicates among {KEYED[0]} and {KEYED[1]} x 2^20 documents"
    yield Row(f"{what}: memory", f"{memory[0]:.0f} MiB", f"{memory[1]:.0f} MiB", memory[0] / memory[1])
    yield Row(f"{what}: time", f"{seconds[0]:.1f} s", f"{seconds[1]:.1f} s", seconds[0] / seconds[1])


def _reading_rows(dataset: Path, folder: Path) -> Iterator[Row]:
    _reading("export", dataset, folder / "tokens.npy")
    peer("convert", folder / "tokens.npy", folder, folder=folder)
    speed = in_turns(
        {
            "ours": lambda: _reading("read", dataset),
            "litdata": lambda: peer("read_litdata", folder, T, folder=folder),
            "datasets, map-style": lambda: peer("read_datasets", folder, folder=folder),
        },
        REPEATS,
    )
    sums = {numbers.pop("sum") for numbers in speed.values()}
    assert len(sums) == 1, "all must read the same tokens"
    ours = speed["ours"]["ours"]
    for name, target in (("litdata", 1.2), ("datasets, map-style", 2.0)):
        way, fastest = max(speed[name].items(), key=lambda item: item[1])
        yield Row(
            f"reading [8, {T:,}] shuffled, warm: against {name} ({way})",
            f"{fastest / 1e6:.0f} Mtoken/s",
            f"{ours / 1e6:.0f} Mtoken/s",
            ours / fastest,
            target,
        )
    seconds = _reading("resume", dataset)
    for state, name in (("open", "first batch"), ("closed", "opening the dataset and first batch")):
        took = 1000 * seconds[state]
        asked = 1 if state == "open" else 0
        yield Row(f"resuming amid an epoch, {name}, of at most 50 ms", "50 ms", f"{took:.1f} ms", 50 / took, asked)


def _streaming_rows(large: Path, small: Path, tokenizer: Path, folder: Path) -> Iterator[Row]:
    """From an object store on this machine, with an empty cache each time."""
    _prepare(large, tokenizer, folder / "streamed", workers=2, rows_per_shard=2048)
    _prepare(small, tokenizer, folder / "trained", sequence_length=512, rows_per_group=32, rows_per_shard=128)
    (folder / "s3").mkdir()
    with s3_server(folder / "s3") as endpoint:
        store = s3fs.S3FileSystem(key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=endpoint)
        for name in ("streamed", "trained"):
            store.put(str(folder / name), f"{BUCKET}/{name}", recursive=True)
        keys = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

        def cold(task: str, name: str, *more: object) -> Numbers:
            with TemporaryDirectory(dir=folder) as cache:
                return _reading(task, f"s3://{BUCKET}/{name}", *more, environment=keys | {"CALM_CACHE": cache})

        rate = in_turns(
            {
                "download": lambda: cold("download", "streamed", folder / "downloaded"),
                "stream": lambda: cold("stream", "streamed"),
            },
            REPEATS,
        )
        ours = rate["stream"]["rate"]
        for way, raw in rate["download"].items():
            what = f"an epoch from S3, cold: against downloading the same bytes, {way}"
            yield Row(what, f"{raw / 1e6:.0f} MB/s", f"{ours / 1e6:.0f} MB/s", ours / raw, target=0.8)
        took = cold("train_from", "trained", folder / "training")
    busy = took["seconds"] - took["waited"]
    yield Row(
        "training from S3, cold: time without waits for batches after the first",
        f"{took['seconds']:.1f} s",
        f"{busy:.1f} s",
        busy / took["seconds"],
        target=1,
    )
