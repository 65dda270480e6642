"""Preparing data: plan -> scan each partition -> find duplicates, train the tokenizer -> tokenize each -> merge.

Every step is a function of its inputs, so that Kubeflow can run, retry and cache it alone.
"""

import hashlib
import io
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calm_core import storage, tracking
from calm_core.artifact import Artifact, ArtifactWriter
from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data import sources
from calm_core.data.packing import pack
from calm_core.data.shards import encode_shards
from calm_core.data.sources import Document, Partition, read_documents
from calm_core.data.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, SourceError
from calm_core.progress import report, reported

STAGE = "prepare"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_SHOWN_REJECTS = 20
_ENCODE_BATCH = 256
_SHAPE = ("sequence_length", "document_alignment", "rows_per_group", "rows_per_shard")


def split_of(text: str, validation_fraction: float) -> Split:
    """A document's split, from a hash of its text: it stays the same when data is added or reordered."""
    share = int.from_bytes(text_hash(text)[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"


def text_hash(text: str) -> bytes:
    """SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def plan_partitions(config: DataConfig) -> list[dict[str, Any]]:
    """Find the sources and cut them into partitions; see `sources.plan_partitions`."""
    with reported(STAGE):
        partitions = sources.plan_partitions(config)
        report(STAGE, note=f"{len(partitions)} partitions planned")
        return partitions


def scan_partition(partition: Mapping[str, Any], config: DataConfig, output_uri: str) -> Artifact:
    """Hash every usable document of a partition and count the others by reason.

    Returns:
        A `scan` artifact: documents.parquet (hash, split, in order), counts, and examples of rejects.
    """
    with reported(STAGE), ArtifactWriter(output_uri, "scan", _scan_config(partition, config), {}) as writer:
        hashes: list[bytes] = []
        splits: list[str] = []
        text_bytes = 0
        rejected: Counter[str] = Counter()
        examples: list[str] = []
        for document in read_documents(partition, config):
            if document.reason:
                rejected[document.reason] += 1
                if len(examples) < _SHOWN_REJECTS:
                    examples.append(f"{document.origin}: {document.reason}")
                continue
            hashes.append(text_hash(document.text))
            splits.append(split_of(document.text, config.validation_fraction))
            text_bytes += len(document.text.encode("utf-8"))
        table = pa.table({"hash": pa.array(hashes, pa.binary(32)), "split": pa.array(splits, pa.string())})
        writer.write("documents.parquet", _parquet(table))
        writer.results |= {
            "partition": Partition.model_validate(partition).index,
            "documents": len(hashes),
            "text_bytes": text_bytes,
            "rejected": dict(sorted(rejected.items())),
            "reject_examples": examples,
        }
        report(STAGE, note=f"scanned {len(hashes):,} documents, {rejected.total():,} rejected")
    return Artifact(output_uri, "scan")


@reported(STAGE)
def find_duplicates(scan_uris: Sequence[str], output_uri: str) -> Artifact:
    """Find exact duplicates over all partitions; the first one in the order of the sources stays.

    Returns:
        A `duplicates` artifact: dropped.parquet (partition, document), in order.
    """
    scans = _in_order(scan_uris, "scan")
    parents = {f"scan-{i}": scan.digest for i, scan in enumerate(scans)}
    with ArtifactWriter(output_uri, "duplicates", {}, parents) as writer:
        seen: set[bytes] = set()
        partitions: list[int] = []
        documents: list[int] = []
        for number, scan in enumerate(scans):
            for ordinal, value in enumerate(_read_table(scan, "documents.parquet").column("hash").to_pylist()):
                if value in seen:
                    partitions.append(number)
                    documents.append(ordinal)
                seen.add(value)
        table = pa.table({"partition": pa.array(partitions, pa.int64()), "document": pa.array(documents, pa.int64())})
        writer.write("dropped.parquet", _parquet(table))
        writer.results["duplicates"] = len(documents)
        report(STAGE, note=f"{len(documents):,} duplicates found")
    return Artifact(output_uri, "duplicates")


def train_tokenizer(
    partitions: Sequence[Mapping[str, Any]], config: TokenizerConfig, data: DataConfig, output_uri: str
) -> Artifact:
    """Learn a byte-level BPE from the training documents, or take the tokenizer that the settings name.

    Returns:
        A `tokenizer` artifact: tokenizer.json.
    """
    settings = config.model_dump(mode="json") | {"partitions": [_scan_config(p, data) for p in partitions]}
    with reported(STAGE), ArtifactWriter(output_uri, "tokenizer", settings, {}) as writer:
        if config.folder:
            tokenizer = Tokenizer.from_folder(config.folder, pad_token=config.pad_token, eos_token=config.eos_token)
        else:
            report(STAGE, note="training the tokenizer")
            texts = _training_texts(partitions, data, config.max_training_bytes)
            tokenizer = Tokenizer.train(texts, config.vocab_size)
        writer.write("tokenizer.json", tokenizer.to_bytes())
        writer.results |= {
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "eos_id": tokenizer.eos_id,
        }
        report(STAGE, note=f"tokenizer of {tokenizer.vocab_size:,} tokens")
    return Artifact(output_uri, "tokenizer")


def _training_texts(partitions: Sequence[Mapping[str, Any]], data: DataConfig, max_bytes: int) -> Iterator[str]:
    """Each distinct training document once; from each partition a share of `max_bytes` in proportion to its size."""
    sizes = [Partition.model_validate(partition).num_bytes for partition in partitions]
    seen: set[bytes] = set()
    for partition, size in zip(partitions, sizes, strict=True):
        left = max_bytes * size // max(sum(sizes), 1)
        for document in read_documents(partition, data):
            if left <= 0:
                break
            if document.reason or split_of(document.text, data.validation_fraction) != "train":
                continue
            if (digest := text_hash(document.text)) in seen:
                continue
            seen.add(digest)
            text = document.text.encode("utf-8")
            yield text[:left].decode("utf-8", errors="ignore")
            left -= len(text)


@reported(STAGE)
def tokenize_partition(
    partition: Mapping[str, Any], config: DataConfig, tokenizer_uri: str, duplicates_uri: str, output_uri: str
) -> Artifact:
    """Turn a partition's documents, less the duplicates, into shards of packed sequences.

    Returns:
        A `shards` artifact: train-*.parquet, validation-*.parquet, and counts by split.
    """
    tokenizer_artifact, duplicates = Artifact(tokenizer_uri, "tokenizer"), Artifact(duplicates_uri, "duplicates")
    parents = {"tokenizer": tokenizer_artifact.digest, "duplicates": duplicates.digest}
    settings = _scan_config(partition, config) | {name: getattr(config, name) for name in _SHAPE}
    with ArtifactWriter(output_uri, "shards", settings, parents) as writer:
        special = tokenizer_artifact.manifest.results
        tokenizer = Tokenizer.from_bytes(
            tokenizer_artifact.read("tokenizer.json"), special["pad_id"], special["eos_id"]
        )
        index = Partition.model_validate(partition).index
        table = _read_table(duplicates, "dropped.parquet")
        dropped = set(table.filter(pc.equal(table["partition"], index)).column("document").to_pylist())
        documents = (document for document in read_documents(partition, config) if not document.reason)
        kept = (document for i, document in enumerate(documents) if i not in dropped)
        tokens, text_bytes = _encode(kept, tokenizer, config.validation_fraction)
        writer.results["partition"] = index
        for split in SPLITS:
            counts = _write_split(writer, split, tokens[split], config, tokenizer)
            writer.results[split] = counts | {"text_bytes": text_bytes[split]}
    return Artifact(output_uri, "shards")


def _encode(
    documents: Iterator[Document], tokenizer: Tokenizer, validation_fraction: float
) -> tuple[dict[Split, list[npt.NDArray[np.uint32]]], Counter[Split]]:
    """Token ids of each document, and bytes of text, by split; reports how fast it goes."""
    tokens: dict[Split, list[npt.NDArray[np.uint32]]] = {"train": [], "validation": []}
    text_bytes: Counter[Split] = Counter()
    started, done = time.monotonic(), 0
    while batch := list(islice(documents, _ENCODE_BATCH)):
        texts = [document.text for document in batch]
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            split = split_of(text, validation_fraction)
            tokens[split].append(np.array(ids, dtype=np.uint32))
            text_bytes[split] += len(text.encode("utf-8"))
            done += len(ids)
        report(STAGE, rate=done / (time.monotonic() - started), note=f"{done:,} tokens encoded")
    return tokens, text_bytes


def _write_split(
    writer: ArtifactWriter,
    split: Split,
    documents: list[npt.NDArray[np.uint32]],
    config: DataConfig,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    sequences = pack(
        documents,
        sequence_length=config.sequence_length,
        document_alignment=config.document_alignment,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
    )
    shards: list[dict[str, Any]] = []
    encoded = encode_shards(sequences, tokenizer.vocab_size, config.rows_per_group, config.rows_per_shard)
    for number, data in enumerate(encoded):
        path = f"{split}-{number:05d}.parquet"
        writer.write(path, data)
        rows = min(config.rows_per_shard, len(sequences) - number * config.rows_per_shard)
        shards.append({"path": path, "rows": rows})
    tokens = int(np.count_nonzero(sequences != tokenizer.pad_id))
    return {
        "documents": len(documents),
        "sequences": len(sequences),
        "tokens": tokens,
        "padding": sequences.size - tokens,
        "shards": shards,
    }


@reported(STAGE)
def merge_partitions(
    config: DataConfig,
    scan_uris: Sequence[str],
    shards_uris: Sequence[str],
    duplicates_uri: str,
    tokenizer_uri: str,
    output_uri: str,
) -> Artifact:
    """Join the partitions' shards and counts into one data set.

    Returns:
        A `dataset` artifact: tokenizer.json, train/*.parquet, validation/*.parquet.

    Raises:
        SourceError: Too many documents were rejected, or a split is empty.
        ArtifactError: A partition is missing, or its scan and its shards do not hold the same documents.
    """
    scans, parts = _in_order(scan_uris, "scan"), _in_order(shards_uris, "shards")
    duplicates, tokenizer = Artifact(duplicates_uri, "duplicates"), Artifact(tokenizer_uri, "tokenizer")
    parents = {"tokenizer": tokenizer.digest, "duplicates": duplicates.digest}
    parents |= {f"shards-{i}": part.digest for i, part in enumerate(parts)}
    _refuse_other_origins(config, scans, parts, tokenizer, duplicates)
    # Content counts, not where it lies or what would have been refused; partitions come with the parents.
    settings = config.model_dump(mode="json", exclude={"sources", "partitions", "max_reject_fraction"})
    with (
        tracking.stage_run(STAGE, config.model_dump(mode="json")) as run,
        ArtifactWriter(output_uri, "dataset", settings, parents) as writer,
    ):
        writer.results |= _document_counts(scans, duplicates)
        _refuse_too_many_rejects(writer.results, config)
        writer.copy(tokenizer, "tokenizer.json", "tokenizer.json")
        writer.results |= {
            **{name: tokenizer.manifest.results[name] for name in ("vocab_size", "pad_id", "eos_id")},
            "sequence_length": config.sequence_length,
            "document_alignment": config.document_alignment,
            "rows_per_group": config.rows_per_group,
            "splits": {split: _merge_split(writer, split, parts) for split in SPLITS},
        }
        _refuse_lost_documents(writer.results)
        for split in SPLITS:
            if not writer.results["splits"][split]["sequences"]:
                raise SourceError(
                    f"the {split} split is empty: {writer.results['documents_out']} documents, validation_fraction "
                    f"{config.validation_fraction}; add documents or change data.validation_fraction"
                )
        run.log_metrics(_headline(writer.results))
    dataset = Artifact(output_uri, "dataset")
    run.set_tags({tracking.DIGEST_TAG: dataset.digest})
    counts = _headline(dataset.manifest.results)
    report(
        STAGE,
        "finished",
        note=f"{counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['rejected']:,} rejected",
    )
    return dataset


def _in_order(uris: Sequence[str], kind: str) -> list[Artifact]:
    """The partitions' artifacts in the order of the sources, in whatever order they are named."""
    artifacts = sorted((Artifact(uri, kind) for uri in uris), key=lambda a: int(a.manifest.results["partition"]))
    found = [artifact.manifest.results["partition"] for artifact in artifacts]
    if found != list(range(len(found))):
        raise ArtifactError(f"the {kind} artifacts are of partitions {found}: one is missing or named twice; run again")
    return artifacts


def _refuse_other_origins(
    config: DataConfig, scans: list[Artifact], parts: list[Artifact], tokenizer: Artifact, duplicates: Artifact
) -> None:
    """Raise an ArtifactError where artifacts of different runs are mixed: their tokens would mean other texts."""
    shape = {name: getattr(config, name) for name in _SHAPE}
    for scan, part in zip(scans, parts, strict=False):
        if part.manifest.parents != {"tokenizer": tokenizer.digest, "duplicates": duplicates.digest}:
            raise ArtifactError(f"{part.uri}: was made with another tokenizer or other duplicates; tokenise it again")
        if part.manifest.config != scan.manifest.config | shape:
            raise ArtifactError(f"{part.uri}: was made with other settings or from other sources; tokenise it again")


def _document_counts(scans: list[Artifact], duplicates: Artifact) -> dict[str, Any]:
    rejected: Counter[str] = Counter()
    for scan in scans:
        rejected.update(scan.manifest.results["rejected"])
    usable = sum(scan.manifest.results["documents"] for scan in scans)
    dropped = duplicates.manifest.results["duplicates"]
    examples = [example for scan in scans for example in scan.manifest.results["reject_examples"]]
    return {
        "documents_in": usable + rejected.total(),
        "documents_out": usable - dropped,
        "duplicates": dropped,
        "rejected": dict(sorted(rejected.items())),
        "reject_examples": examples[:_SHOWN_REJECTS],
        "text_bytes": sum(scan.manifest.results["text_bytes"] for scan in scans),
    }


def _refuse_too_many_rejects(results: Mapping[str, Any], config: DataConfig) -> None:
    rejects, documents = sum(results["rejected"].values()), results["documents_in"]
    if not results["documents_out"] or rejects > config.max_reject_fraction * documents:
        reasons = ", ".join(f"{count} {reason}" for reason, count in results["rejected"].items()) or "no documents"
        first = f"; first: {results['reject_examples'][0]}" if results["reject_examples"] else ""
        raise SourceError(
            f"{rejects} of {documents} documents are unusable ({reasons}){first}; mend the sources, check "
            "data.text_field, or raise data.max_reject_fraction"
        )


def _refuse_lost_documents(results: Mapping[str, Any]) -> None:
    written = sum(split["documents"] for split in results["splits"].values())
    if written != results["documents_out"]:
        raise ArtifactError(
            f"{results['documents_out']} documents were scanned but {written} are in the shards: a source changed or "
            "a partition is missing; run again"
        )


def _merge_split(writer: ArtifactWriter, split: Split, parts: list[Artifact]) -> dict[str, Any]:
    names = ("documents", "sequences", "tokens", "padding", "text_bytes")
    merged: dict[str, Any] = {**dict.fromkeys(names, 0), "shards": []}
    for number, part in enumerate(parts):
        counts = part.manifest.results[split]
        for name in names:
            merged[name] += counts[name]
        for shard in counts["shards"]:
            path = f"{split}/part-{number:05d}-{shard['path'].removeprefix(split + '-')}"
            writer.copy(part, shard["path"], path)
            merged["shards"].append({"path": path, "rows": shard["rows"]})
    return merged


def _headline(results: Mapping[str, Any]) -> dict[str, int]:
    return {
        "documents": results["documents_out"],
        "rejected": sum(results["rejected"].values()),
        "duplicates": results["duplicates"],
        "tokens": sum(split["tokens"] for split in results["splits"].values()),
        "padding": sum(split["padding"] for split in results["splits"].values()),
        "vocab_size": results["vocab_size"],
    }


def prepare_data(data: DataConfig, tokenizer: TokenizerConfig, output_uri: str) -> Artifact:
    """All steps in one process; the intermediate artifacts lie beside the data set, in `<output_uri>.parts`."""
    partitions = plan_partitions(data)
    place = output_uri.rstrip("/") + ".parts"

    def uri(name: str) -> str:
        return storage.join(place, name)

    scans = [scan_partition(p, data, uri(f"scan-{i}")).uri for i, p in enumerate(partitions)]
    duplicates = find_duplicates(scans, uri("duplicates")).uri
    trained = train_tokenizer(partitions, tokenizer, data, uri("tokenizer")).uri
    shards = [
        tokenize_partition(p, data, trained, duplicates, uri(f"shards-{i}")).uri for i, p in enumerate(partitions)
    ]
    return merge_partitions(data, scans, shards, duplicates, trained, output_uri)


def _scan_config(partition: Mapping[str, Any], config: DataConfig) -> dict[str, Any]:
    """What decides which documents a partition holds: content digests, not names, so that a moved file is the same."""
    pieces = Partition.model_validate(partition).pieces
    names = ("text_field", "validation_fraction", "max_document_bytes", "txt_document_bytes")
    return {
        "pieces": [piece.model_dump(exclude={"uri", "size"}) for piece in pieces],
        **{name: getattr(config, name) for name in names},
    }


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _read_table(artifact: Artifact, path: str) -> pa.Table:
    return pq.read_table(artifact.open(path))
