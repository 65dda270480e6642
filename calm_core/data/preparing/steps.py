"""Preparing data: plan -> scan each partition -> find duplicates, train the tokenizer -> tokenize each -> merge.

Every step is a function of its inputs, so that Kubeflow can run, retry and cache it alone; the last one is in `merge`.
A step that finds its output already made, from the same inputs by the same code, takes it.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import zip_longest
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing import duplicates
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.packing import Packer
from calm_core.data.shards import ShardWriter
from calm_core.data.sources import files as source_files
from calm_core.data.sources.files import Partition, read_documents
from calm_core.data.tokenizers.encoder import choose_engine, encoder
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, SourceError
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.telemetry.progress import report, reported

STAGE = "prepare"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
SHAPE = ("sequence_length", "document_alignment", "rows_per_group", "rows_per_shard", "validation_fraction")
"""Settings that a partition's shards depend on, beyond those of its documents."""

SHOWN_REJECTS = 20
_CHECKED_BYTES = 100_000  # of text, that engines are compared on
_REPORT_SECONDS = 2.0
_LENGTH_BINS = 33  # of the histogram: 2^32 tokens are more than a document may have


def split_of(text_hash: bytes, validation_fraction: float) -> Split:
    """A document's split, from the hash of its text: it stays the same when data is added or reordered."""
    share = int.from_bytes(text_hash[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"


def text_hash(text: str) -> bytes:
    """SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def plan_partitions(config: DataConfig, place: str) -> list[dict[str, Any]]:
    """Find the sources and cut them into `config.partitions` partitions of nearly equal bytes.

    With `config.extends`, only the sources that this dataset lacks.

    Args:
        config: Settings of the sources.
        place: URL of the folder in which the partitions' pieces are written, named by their content.

    Returns:
        Partitions as plain JSON values, one for each item of a Kubeflow loop.

    Raises:
        SourceError: A source is missing, of an unknown kind, or has changed since it was added to the dataset.
    """
    with reported(STAGE, "finding the sources"):
        storage.remove_partial(place)
        files = source_files.find_files(config)
        extension = Extension.of(config)
        if extension is None:
            partitions = source_files.partition_files(files, config.partitions, place)
        else:
            files, first = extension.files_to_read(files)
            partitions = source_files.partition_files(
                files, config.partitions, place, first_index=first, extends=extension.parent.digest
            )
        report(STAGE, note=f"{len(files):,} files in {len(partitions)} partitions")
        return [partition.model_dump() for partition in partitions]


def scan_partition(partition: Mapping[str, Any], config: DataConfig, output_uri: str) -> Artifact:
    """Hash every usable document of a partition and count the others by reason.

    Returns:
        A `scan` artifact: keys/*.bin (see `duplicates`), counts, and examples of rejects.
    """
    settings = document_settings(partition, config)
    if made := reusable(output_uri, "scan", settings, {}):
        return made
    threshold, index = config.near_duplicate_threshold, Partition.model_validate(partition).index
    with (
        reported(STAGE, f"partition {index}: scanning"),
        ArtifactWriter(output_uri, "scan", settings, {}) as writer,
    ):
        text_keys = duplicates.KeyWriter(writer, duplicates.TEXT)
        bands = [duplicates.KeyWriter(writer, name) for name in duplicates.band_names(threshold)]
        documents = text_bytes = normalized = 0
        rejected: Counter[str] = Counter()
        examples: list[str] = []
        note = _Note(lambda: f"partition {index}: {documents:,} documents scanned, {rejected.total():,} rejected")
        for document in read_documents(partition, config):
            note.tell()
            if document.reason:
                rejected[document.reason] += 1
                if len(examples) < SHOWN_REJECTS:
                    examples.append(f"{document.origin}: {document.reason}")
                continue
            data = document.text.encode("utf-8")
            text_keys.add(duplicates.text_key(hashlib.sha256(data).digest()))
            for band, key in zip(bands, duplicates.band_keys(document.text, threshold) if bands else (), strict=True):
                band.add(key)
            documents += 1
            normalized += document.normalized
            text_bytes += len(data)
        for keys in (text_keys, *bands):
            keys.close()
        writer.results |= {
            "partition": index,
            "documents": documents,
            "text_bytes": text_bytes,
            "normalized": normalized,
            "rejected": dict(sorted(rejected.items())),
        }
        writer.origins = {"reject_examples": examples}
        note.tell(last=True)
    return Artifact(output_uri, "scan")


@reported(STAGE, "looking for duplicates")
def find_duplicates(scan_uris: Sequence[str], config: DataConfig, output_uri: str) -> Artifact:
    """Find documents that repeat an earlier one, over all partitions; the first in the order of the sources stays.

    Returns:
        A `duplicates` artifact: dropped/<partition>.parquet says of each document whether it stays.
    """
    extension = Extension.of(config)
    scans = in_order(scan_uris, "scan", {0, extension.partitions} if extension else {0})
    first = int(scans[0].manifest.results["partition"])
    parents = {f"scan-{i}": scan.digest for i, scan in enumerate(scans, first)}
    before: list[duplicates.Source] = []
    if extension and first:
        parents["extends"] = extension.parent.digest
        before = [duplicates.Source(extension.parent, f"documents/part-{i:05d}-", None) for i in range(first)]
    if made := reusable(output_uri, "duplicates", {}, parents):
        return made
    with ArtifactWriter(output_uri, "duplicates", {}, parents) as writer:
        counts = [scan.manifest.results["documents"] for scan in scans]
        dropped = [duplicates.new_bits(count) for count in counts]
        found = [duplicates.Source(scan, "keys/", bits) for scan, bits in zip(scans, dropped, strict=True)]
        for name in (duplicates.TEXT, *duplicates.band_names(config.near_duplicate_threshold)):
            report(STAGE, note=f"comparing {sum(counts):,} documents by {name}")
            duplicates.mark([*before, *found], name)
        exact = near = 0
        for i, (count, bits) in enumerate(zip(counts, dropped, strict=True), first):
            part = duplicates.write_dropped(writer, f"dropped/{i:05d}.parquet", count, bits)
            exact, near = exact + part[0], near + part[1]
        writer.results |= {"duplicates": exact, "near_duplicates": near}
        report(STAGE, note=f"{exact:,} duplicates, {near:,} near-duplicates found")
    return Artifact(output_uri, "duplicates")


def train_tokenizer(
    partitions: Sequence[Mapping[str, Any]], config: TokenizerConfig, data: DataConfig, output_uri: str
) -> Artifact:
    """Learn a byte-level BPE from the training documents, or take the one that the settings name.

    A dataset that is extended keeps its own.

    Returns:
        A `tokenizer` artifact: tokenizer.json, and the engine that encodes with it fastest.
    """
    settings = config.model_dump(mode="json", exclude={"source"})
    settings |= {
        "validation_fraction": data.validation_fraction,
        "partitions": [document_settings(partition, data) for partition in partitions],
    }
    extension = Extension.of(data)
    parents = {"extends": extension.parent.digest} if extension else {}
    if not config.source and (made := reusable(output_uri, "tokenizer", settings, parents)):
        return made
    with (
        reported(STAGE, "looking for the tokenizer"),
        ArtifactWriter(output_uri, "tokenizer", settings, parents) as writer,
    ):
        if extension:
            tokenizer = extension.tokenizer()
        elif config.source:
            tokenizer = Tokenizer.load(config.source, config.pad_token, config.eos_token)
        else:
            report(STAGE, note="training the tokenizer")
            texts = _training_texts(partitions, data, config.max_training_bytes)
            tokenizer = Tokenizer.train(texts, config.vocab_size)
        engine, why_slow = choose_engine(tokenizer, _training_texts(partitions, data, _CHECKED_BYTES))
        writer.write("tokenizer.json", tokenizer.to_bytes())
        writer.results |= {
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "eos_id": tokenizer.eos_id,
            "engine": engine,
        }
        notice = f", encoded by the slower engine: {why_slow}" if why_slow else ""
        report(STAGE, note=f"tokenizer of {tokenizer.vocab_size:,} tokens{notice}")
    return Artifact(output_uri, "tokenizer")


def _training_texts(partitions: Sequence[Mapping[str, Any]], data: DataConfig, max_bytes: int) -> Iterator[str]:
    """Each distinct training document once; from each partition a share of `max_bytes` in proportion to its size."""
    sizes = [Partition.model_validate(partition).num_bytes for partition in partitions]
    seen: set[bytes] = set()
    for partition, size in zip(partitions, sizes, strict=True):
        left = max_bytes * size // max(sum(sizes), 1)
        for document in read_documents(partition, data) if left else ():
            if left <= 0:
                break
            digest = b"" if document.reason else text_hash(document.text)
            if document.reason or split_of(digest, data.validation_fraction) != "train" or digest in seen:
                continue
            seen.add(digest)
            text = document.text.encode("utf-8")
            yield text[:left].decode("utf-8", errors="ignore")
            left -= len(text)


@reported(STAGE, "tokenising")
def tokenize_partition(
    partition: Mapping[str, Any], config: DataConfig, tokenizer_uri: str, duplicates_uri: str, output_uri: str
) -> Artifact:
    """Turn a partition's documents, less the duplicates, into shards of packed sequences.

    Returns:
        A `shards` artifact: train-*.parquet, validation-*.parquet, and counts by split.
    """
    tokenizer_artifact, found = Artifact(tokenizer_uri, "tokenizer"), Artifact(duplicates_uri, "duplicates")
    parents = {"tokenizer": tokenizer_artifact.digest, "duplicates": found.digest}
    settings = document_settings(partition, config) | {name: getattr(config, name) for name in SHAPE}
    if made := reusable(output_uri, "shards", settings, parents):
        return made
    index = Partition.model_validate(partition).index
    special = tokenizer_artifact.manifest.results
    tokenizer = Tokenizer.from_bytes(tokenizer_artifact.read("tokenizer.json"), special["pad_id"], special["eos_id"])
    encode = encoder(tokenizer, special["engine"])
    usable = (document for document in read_documents(partition, config) if not document.reason)
    total, kinds = duplicates.read_dropped(found, f"dropped/{index:05d}.parquet")
    note = _Note(lambda: f"partition {index}: {tokens:,} tokens", total)
    with (
        ArtifactWriter(output_uri, "shards", settings, parents) as writer,
        SplitWriter(writer, "train", config, tokenizer) as train,
        SplitWriter(writer, "validation", config, tokenizer) as validation,
    ):
        tokens = 0
        for done, (document, kind) in enumerate(zip_longest(usable, kinds)):
            if document is None or kind is None:
                raise SourceError(f"partition {index}: its sources have changed since they were scanned; run again")
            note.tell(done, tokens)
            if kind != duplicates.KEPT:
                continue
            data = document.text.encode("utf-8")
            ids = encode(document.text)
            split = split_of(hashlib.sha256(data).digest(), config.validation_fraction)
            (train if split == "train" else validation).add(ids, len(data))
            tokens += len(ids)
        writer.results |= {"partition": index, "train": train.finish(), "validation": validation.finish()}
        note.tell(total, tokens, last=True)
    return Artifact(output_uri, "shards")


class SplitWriter:
    """Packs the documents of one split and writes them as shards, <split>-<number>.parquet."""

    def __init__(self, writer: ArtifactWriter, split: Split, config: DataConfig, tokenizer: Tokenizer) -> None:
        self._writer, self._split, self._config = writer, split, config
        self._vocab_size = tokenizer.vocab_size
        self._packer = Packer(
            sequence_length=config.sequence_length,
            block_rows=config.rows_per_group,
            document_alignment=config.document_alignment,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
        )
        self._open = ExitStack()
        self._shard: ShardWriter | None = None
        self._shards: list[dict[str, Any]] = []
        self._documents = self._text_bytes = 0
        self._lengths = np.zeros(_LENGTH_BINS, dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            with suppress(Exception):  # else pyarrow tries it later, when the file is gone
                self._shard.close()
        self._open.__exit__(error_type, error, trace)  # a shard that an error cuts short is not kept

    def add(self, ids: npt.NDArray[np.uint32], text_bytes: int) -> None:
        """Append a document."""
        self._documents += 1
        self._text_bytes += text_bytes
        self._lengths[(len(ids) + 1).bit_length() - 1] += 1
        for block in self._packer.push(ids):
            self._write(block)

    def finish(self) -> dict[str, Any]:
        """Write what is left; returns the split's counts."""
        for block in self._packer.finish():
            self._write(block)
        self._close_shard()
        sequences = sum(shard["rows"] for shard in self._shards)
        return {
            "documents": self._documents,
            "sequences": sequences,
            "tokens": sequences * self._config.sequence_length - self._packer.padding,
            "padding": self._packer.padding,
            "text_bytes": self._text_bytes,
            "document_lengths": self._lengths.tolist(),
            "shards": self._shards,
        }

    def _write(self, block: npt.NDArray[np.uint32]) -> None:
        if self._shard is None:
            path = f"{self._split}-{len(self._shards):05d}.parquet"
            file = self._open.enter_context(self._writer.create(path))
            self._shard = ShardWriter(file, self._vocab_size, self._config.sequence_length)
            self._shards.append({"path": path, "rows": 0})
        self._shard.write_group(block)
        self._shards[-1]["rows"] = self._shard.rows
        if self._shard.rows == self._config.rows_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            self._open.close()


def in_order(uris: Sequence[str], kind: str, firsts: Collection[int]) -> list[Artifact]:
    """The partitions' artifacts in the order of the sources, in whatever order they are named.

    Args:
        uris: The artifacts.
        kind: Their kind.
        firsts: What the first partition's index may be.

    Raises:
        ArtifactError: One is missing or named twice.
    """
    artifacts = sorted((Artifact(uri, kind) for uri in uris), key=lambda a: int(a.manifest.results["partition"]))
    found = [artifact.manifest.results["partition"] for artifact in artifacts]
    if found[0] not in firsts or found != list(range(found[0], found[0] + len(found))):
        raise ArtifactError(f"the {kind} artifacts are of partitions {found}: one is missing or named twice; run again")
    return artifacts


def document_settings(partition: Mapping[str, Any], config: DataConfig) -> dict[str, Any]:
    """What decides which documents a partition holds: content digests, not names, so that a moved file is the same."""
    names = (
        "text_field",
        "unicode_normalization",
        "min_document_bytes",
        "max_document_bytes",
        "txt_document_bytes",
        "near_duplicate_threshold",
        "damaged_files",
    )
    return {
        "pieces": [
            {"digest": piece.file.digest, "start": piece.start, "end": piece.end}
            for piece in Partition.model_validate(partition).pieces()
        ],
        **{name: getattr(config, name) for name in names},
    }


class _Note:
    """Reports progress now and then.

    Args:
        text: What to say.
        total: Documents in all, 0 where that is not known.
    """

    def __init__(self, text: Callable[[], str], total: int = 0) -> None:
        self._text, self._total = text, total
        self._started = time.monotonic()
        self._next = self._started + _REPORT_SECONDS

    def tell(self, done: int = 0, tokens: int = 0, last: bool = False) -> None:
        """Say how many documents are done, and how many tokens have come of them."""
        now = time.monotonic()
        if last or now >= self._next:
            self._next = now + _REPORT_SECONDS
            spent = max(now - self._started, 1e-9)
            left = spent * (self._total - done) / done if done else 0.0
            report(STAGE, done=done, total=self._total, rate=tokens / spent, eta=left, note=self._text())
