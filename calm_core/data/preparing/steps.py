"""Preparing data: plan -> scan each partition -> find duplicates, train the tokenizer -> tokenize each -> merge.

Every step is a function of its inputs, so that Kubeflow can run, retry and cache it alone; the last one is in `merge`.
A step that finds its output already made, from the same inputs by the same code, takes it.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing import duplicates
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.progress_note import ProgressNote
from calm_core.data.preparing.split_writer import SplitWriter
from calm_core.data.sources import files as source_files
from calm_core.data.sources.files import Partition, read_documents
from calm_core.data.sources.formats import Document
from calm_core.data.tokenizers.encoder import choose_engine, encoder
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, SourceError
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.store.facts import DuplicatesFacts, ScanFacts, ShardsFacts, Split, TokenizerFacts
from calm_core.telemetry.progress import report, reported

PartitionFactsT = TypeVar("PartitionFactsT", ScanFacts, ShardsFacts)

STAGE = "prepare"
SHAPE = ("sequence_length", "document_alignment", "rows_per_group", "rows_per_shard", "validation_fraction")
"""Settings that a partition's shards depend on, beyond those of its documents."""

SHOWN_REJECTS = 20
_CHECKED_BYTES = 100_000  # of text, that engines are compared on


def split_of(text_hash: bytes, validation_fraction: float) -> Split:
    """A document's split, from the hash of its text: it stays the same when data is added or reordered."""
    share = int.from_bytes(text_hash[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"


def text_hash(text: str) -> bytes:
    """SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def plan_partitions(config: DataConfig, place: str) -> list[Partition]:
    """Find the sources and cut them into `config.partitions` partitions of nearly equal bytes.

    With `config.extends`, only the sources that this dataset lacks.

    Args:
        config: Settings of the sources.
        place: URL of the folder in which the partitions' pieces are written, named by their content.

    Returns:
        One partition for each item of a Kubeflow loop.

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
        return partitions


def scan_partition(partition: Partition, config: DataConfig, output_uri: str) -> Artifact[ScanFacts]:
    """Hash every usable document of a partition and count the others by reason.

    Returns:
        A `scan` artifact: keys/*.bin (see `duplicates`), counts, and examples of rejects.
    """
    settings = document_settings(partition, config)
    if made := reusable(output_uri, ScanFacts, settings, {}):
        return made
    with (
        reported(STAGE, f"partition {partition.index}: scanning"),
        ArtifactWriter(output_uri, ScanFacts, settings, {}) as writer,
    ):
        writer.facts = _scanned(partition, config, writer)
    return Artifact(output_uri, ScanFacts)


def _scanned(partition: Partition, config: DataConfig, writer: ArtifactWriter[ScanFacts]) -> ScanFacts:
    """Read a partition's documents and write their keys; returns the counts."""
    threshold = config.near_duplicate_threshold
    text_keys = duplicates.KeyWriter(writer, duplicates.TEXT)
    bands = [duplicates.KeyWriter(writer, name) for name in duplicates.band_names(threshold)]
    documents = text_bytes = normalized = 0
    rejected: Counter[str] = Counter()
    examples: list[str] = []
    note = ProgressNote(STAGE)

    def told() -> str:
        return f"partition {partition.index}: {documents:,} documents scanned, {rejected.total():,} rejected"

    for document in read_documents(partition, config):
        if note.is_due:
            note.tell(told())
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
    note.tell(told())
    return ScanFacts(
        partition=partition.index,
        documents=documents,
        text_bytes=text_bytes,
        normalized=normalized,
        rejected=dict(sorted(rejected.items())),
        reject_examples=examples,
    )


@reported(STAGE, "looking for duplicates")
def find_duplicates(scan_uris: Sequence[str], config: DataConfig, output_uri: str) -> Artifact[DuplicatesFacts]:
    """Find documents that repeat an earlier one, over all partitions; the first in the order of the sources stays.

    Returns:
        A `duplicates` artifact: dropped/<partition>.parquet says of each document whether it stays.
    """
    extension = Extension.of(config)
    scans = in_order(scan_uris, ScanFacts, {0, extension.partitions} if extension else {0})
    first = scans[0].facts.partition
    parents = {f"scan-{i}": scan.digest for i, scan in enumerate(scans, first)}
    before: list[duplicates.DocumentKeys] = []
    if extension and first:
        parents["extends"] = extension.parent.digest
        folders = [f"documents/part-{i:05d}-" for i in range(first)]
        before = [duplicates.DocumentKeys(extension.parent, folder, None) for folder in folders]
    if made := reusable(output_uri, DuplicatesFacts, {}, parents):
        return made
    with ArtifactWriter(output_uri, DuplicatesFacts, {}, parents) as writer:
        counts = [scan.facts.documents for scan in scans]
        dropped = [duplicates.new_bits(count) for count in counts]
        found = [duplicates.DocumentKeys(scan, "keys/", bits) for scan, bits in zip(scans, dropped, strict=True)]
        for name in (duplicates.TEXT, *duplicates.band_names(config.near_duplicate_threshold)):
            report(STAGE, note=f"comparing {sum(counts):,} documents by {name}")
            duplicates.mark([*before, *found], name)
        exact = near = 0
        for i, (count, bits) in enumerate(zip(counts, dropped, strict=True), first):
            part = duplicates.write_dropped(writer, f"dropped/{i:05d}.parquet", count, bits)
            exact, near = exact + part[0], near + part[1]
        writer.facts = DuplicatesFacts(duplicates=exact, near_duplicates=near)
        report(STAGE, note=f"{exact:,} duplicates, {near:,} near-duplicates found")
    return Artifact(output_uri, DuplicatesFacts)


def train_tokenizer(
    partitions: Sequence[Partition], config: TokenizerConfig, data: DataConfig, output_uri: str
) -> Artifact[TokenizerFacts]:
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
    if not config.source and (made := reusable(output_uri, TokenizerFacts, settings, parents)):
        return made
    with (
        reported(STAGE, "looking for the tokenizer"),
        ArtifactWriter(output_uri, TokenizerFacts, settings, parents) as writer,
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
        writer.facts = TokenizerFacts(
            vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id, engine=engine
        )
        notice = f", encoded by the slower engine: {why_slow}" if why_slow else ""
        report(STAGE, note=f"tokenizer of {tokenizer.vocab_size:,} tokens{notice}")
    return Artifact(output_uri, TokenizerFacts)


def _training_texts(partitions: Sequence[Partition], data: DataConfig, max_bytes: int) -> Iterator[str]:
    """Each distinct training document once; from each partition a share of `max_bytes` in proportion to its size."""
    sizes = [partition.num_bytes for partition in partitions]
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
    partition: Partition, config: DataConfig, tokenizer_uri: str, duplicates_uri: str, output_uri: str
) -> Artifact[ShardsFacts]:
    """Turn a partition's documents, less the duplicates, into shards of packed sequences.

    Returns:
        A `shards` artifact: train-*.parquet, validation-*.parquet, and counts by split.
    """
    trained, found = Artifact(tokenizer_uri, TokenizerFacts), Artifact(duplicates_uri, DuplicatesFacts)
    parents = {"tokenizer": trained.digest, "duplicates": found.digest}
    settings = document_settings(partition, config) | {name: getattr(config, name) for name in SHAPE}
    if made := reusable(output_uri, ShardsFacts, settings, parents):
        return made
    facts = trained.facts
    tokenizer = Tokenizer.from_bytes(trained.read("tokenizer.json"), facts.pad_id, facts.eos_id)
    encode = encoder(tokenizer, facts.engine)
    total, kinds = duplicates.read_dropped(found, f"dropped/{partition.index:05d}.parquet")
    note, tokens = ProgressNote(STAGE, total), 0
    with (
        ArtifactWriter(output_uri, ShardsFacts, settings, parents) as writer,
        SplitWriter(writer, "train", config, tokenizer) as train,
        SplitWriter(writer, "validation", config, tokenizer) as validation,
    ):
        for done, (document, kind) in enumerate(_with_kinds(partition, config, kinds)):
            if note.is_due:
                note.tell(f"partition {partition.index}: {tokens:,} tokens", done, tokens)
            if kind != duplicates.KEPT:
                continue
            data = document.text.encode("utf-8")
            ids = encode(document.text)
            split = split_of(hashlib.sha256(data).digest(), config.validation_fraction)
            (train if split == "train" else validation).add(ids, len(data))
            tokens += len(ids)
        writer.facts = ShardsFacts(partition=partition.index, train=train.finish(), validation=validation.finish())
        note.tell(f"partition {partition.index}: {tokens:,} tokens", total, tokens)
    return Artifact(output_uri, ShardsFacts)


def _with_kinds(partition: Partition, config: DataConfig, kinds: Iterator[int]) -> Iterator[tuple[Document, int]]:
    """Each usable document of a partition with what was found of it.

    Raises:
        SourceError: There are more or fewer documents than were scanned.
    """
    usable = (document for document in read_documents(partition, config) if not document.reason)
    for document, kind in zip_longest(usable, kinds):
        if document is None or kind is None:
            raise SourceError(
                f"partition {partition.index}: its sources have changed since they were scanned; run again"
            )
        yield document, kind


def in_order(
    uris: Sequence[str], kind: type[PartitionFactsT], firsts: Collection[int]
) -> list[Artifact[PartitionFactsT]]:
    """The partitions' artifacts in the order of the sources, in whatever order they are named.

    Args:
        uris: The artifacts.
        kind: Their kind.
        firsts: What the first partition's index may be.

    Raises:
        ArtifactError: One is missing or named twice.
    """
    artifacts = sorted((Artifact(uri, kind) for uri in uris), key=lambda artifact: artifact.facts.partition)
    found = [artifact.facts.partition for artifact in artifacts]
    if found[0] not in firsts or found != list(range(found[0], found[0] + len(found))):
        raise ArtifactError(
            f"the {kind.kind} artifacts are of partitions {found}: one is missing or named twice; run again"
        )
    return artifacts


def document_settings(partition: Partition, config: DataConfig) -> dict[str, Any]:
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
            {"digest": piece.file.digest, "start": piece.start, "end": piece.end} for piece in partition.pieces()
        ],
        **{name: getattr(config, name) for name in names},
    }
