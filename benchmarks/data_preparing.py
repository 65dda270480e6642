"""Our side of preparing data, a process for each task: `python -m benchmarks.data_preparing TASK ARGUMENT...`."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from benchmarks.corpus import texts_of
from benchmarks.measure import Numbers, memory, metered
from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.keys import TEXT, KeyWriter
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition, scan_partitions
from calm_core.data.preparing.tokenize import tokenize_partition, tokenize_partitions
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.data.preparing.workers import Workers
from calm_core.data.sources import partitions
from calm_core.data.stage import prepare_data
from calm_core.data.tokenizers.encoder import choose_engine, encoder
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import SPLITS, DatasetFacts, ScanFacts, ShardsFacts


def prepare(source: str, tokenizer_file: str, output: str, workers: str, settings: str) -> Numbers:
    """The whole stage, from nothing; tokens are those of the texts, without the ends of documents and the padding."""
    for folder in (output, f"{output}.parts"):
        shutil.rmtree(folder, ignore_errors=True)
    config = DataConfig(sources=(source,), **json.loads(settings))
    numbers = metered(lambda: prepare_data(config, TokenizerConfig(source=tokenizer_file), output, int(workers)))
    artifact = Artifact(output, DatasetFacts)
    splits = artifact.facts.splits.values()
    paths = {shard.path for split in splits for shard in split.shards}
    return numbers | {
        "tokens": sum(split.tokens - split.documents for split in splits),
        "bytes": sum(entry.size for entry in artifact.manifest.files if entry.path in paths),
        "digest": int(artifact.digest, 16),
    }


def encode(source: str, tokenizer_file: str) -> Numbers:
    """Nothing but encoding texts in memory, with the engine that the stage chooses."""
    texts = texts_of(Path(source))
    tokenizer = Tokenizer.load(tokenizer_file)
    encode_text = encoder(tokenizer, choose_engine(tokenizer, texts[:100])[0])
    tokens = 0

    def run() -> None:
        nonlocal tokens
        for text in texts:
            tokens += len(encode_text(text))

    return metered(run) | {"tokens": tokens}


def worker(source: str, tokenizer_file: str, folder: str) -> Numbers:
    """The largest memory of a process that does every step on one partition."""
    config = DataConfig(sources=(source,), partitions=1)
    (partition,) = plan_partitions(config, f"{folder}/plan")
    scan = scan_partition(partition, config, f"{folder}/scan").uri
    found = find_duplicates([scan], config, f"{folder}/duplicates").uri
    tokenizer = train_tokenizer([partition], TokenizerConfig(source=tokenizer_file), config, f"{folder}/tokenizer").uri
    tokenize_partition(partition, config, tokenizer, found, f"{folder}/shards")
    return {"bytes": memory("VmHWM")}


def partition(source: str, tokenizer_file: str, folder: str, processes: str, whole: str = "") -> Numbers:
    """Scanning and tokenising one partition, from nothing, with so many processes."""
    shutil.rmtree(folder, ignore_errors=True)
    if whole:
        partitions._PORTION_BYTES = 1 << 60
    config = DataConfig(sources=(source,), partitions=1, sequence_length=2048)
    planned = plan_partitions(config, f"{folder}/plan")
    tokenizer = train_tokenizer(planned, TokenizerConfig(source=tokenizer_file), config, f"{folder}/tokenizer").uri
    made: list[Artifact[ShardsFacts]] = []

    def run() -> None:
        with Workers(int(processes)) as workers:
            scans = scan_partitions(planned, config, [f"{folder}/scan"], workers)
            found = find_duplicates([scan.uri for scan in scans], config, f"{folder}/duplicates").uri
            made.extend(tokenize_partitions(planned, config, tokenizer, found, [f"{folder}/shards"], workers))

    numbers = metered(run)
    tokens = sum(made[0].facts.split(split).tokens for split in SPLITS)
    return numbers | {"tokens": tokens, "digest": int(made[0].digest[:12], 16)}


def write_keys(folder: str, partitions: str) -> Numbers:
    """Scans of partitions of 2^20 documents each, with random keys."""
    for number in range(int(partitions)):
        keys = np.random.default_rng(number).bytes(16 << 20)
        with ArtifactWriter(f"{folder}/scan-{number}", ScanFacts, {"seed": number}, {}) as writer:
            text_keys = KeyWriter(writer, TEXT)
            for start in range(0, len(keys), 16):
                text_keys.add(keys[start : start + 16])
            text_keys.close()
            writer.facts = ScanFacts(
                partition=number, documents=len(keys) // 16, text_bytes=0, normalized=0, rejected={}
            )
    return {}


def compare_keys(folder: str, partitions: str) -> Numbers:
    """Seconds and largest memory of finding the duplicates among them."""
    scans = [f"{folder}/scan-{number}" for number in range(int(partitions))]
    return metered(lambda: find_duplicates(scans, DataConfig(), f"{folder}/found")) | {"bytes": memory("VmHWM")}


if __name__ == "__main__":
    TASKS = (prepare, encode, worker, partition, write_keys, compare_keys)
    print(json.dumps({task.__name__: task for task in TASKS}[sys.argv[1]](*sys.argv[2:])))
