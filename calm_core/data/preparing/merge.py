"""The last step of preparing: all partitions become one dataset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from calm_core.config import DataConfig
from calm_core.data.preparing.duplicates import key_files
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.steps import SHAPE, SHOWN_REJECTS, SPLITS, STAGE, Split, in_order
from calm_core.data.sources.files import Partition
from calm_core.errors import ArtifactError, SourceError
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.telemetry import mlflow_run
from calm_core.telemetry.progress import report, reported

_COUNTS = ("documents", "sequences", "tokens", "padding", "text_bytes")


@reported(STAGE, "joining the partitions")
def merge_partitions(
    config: DataConfig,
    partitions: Sequence[Mapping[str, Any]],
    scan_uris: Sequence[str],
    shards_uris: Sequence[str],
    duplicates_uri: str,
    tokenizer_uri: str,
    output_uri: str,
) -> Artifact:
    """Join the partitions' shards and counts into one dataset, after those of the dataset that is extended.

    Returns:
        A `dataset` artifact: tokenizer.json, train/*.parquet, validation/*.parquet, and documents/*.bin (the keys
        that later additions are compared with).

    Raises:
        SourceError: Too many documents were rejected, or a split is empty.
        ArtifactError: A partition is missing, or its scan and its shards do not hold the same documents.
    """
    first = min(Partition.model_validate(partition).index for partition in partitions)
    scans, parts = in_order(scan_uris, "scan", {first}), in_order(shards_uris, "shards", {first})
    if not len(scans) == len(parts) == len(partitions):
        raise ArtifactError(
            f"there are {len(partitions)} partitions, {len(scans)} scans and {len(parts)} shards: one is missing or "
            "named twice; run again"
        )
    duplicates, tokenizer = Artifact(duplicates_uri, "duplicates"), Artifact(tokenizer_uri, "tokenizer")
    extension = Extension.of(config)
    base = extension.parent if extension and first else None
    parents = {"tokenizer": tokenizer.digest, "duplicates": duplicates.digest}
    parents |= {f"shards-{i}": part.digest for i, part in enumerate(parts, first)}
    parents |= {"extends": extension.parent.digest} if extension else {}
    _refuse_other_origins(config, scans, parts, tokenizer, duplicates)
    # Content counts, not where it lies or what would have been refused; partitions come with the parents.
    elsewhere = {"sources", "partitions", "max_reject_fraction", "extends", "replace_changed"}
    settings = config.model_dump(mode="json", exclude=elsewhere)
    counts = _document_counts(scans, duplicates)
    examples = [example for scan in scans for example in scan.manifest.origins["reject_examples"]][:SHOWN_REJECTS]
    _refuse_too_many_rejects(counts, examples, config)
    if made := reusable(output_uri, "dataset", settings, parents):
        return _finished(made)
    splits = {split: _split_counts(split, parts, first) for split in SPLITS}
    _refuse_lost_documents(counts, splits)
    if base:
        counts, splits = _added(base.manifest.results, counts, splits)
    for split in SPLITS:
        if not splits[split]["sequences"]:
            raise SourceError(
                f"the {split} split is empty: {counts['documents_out']} documents, validation_fraction "
                f"{config.validation_fraction}; add documents or change data.validation_fraction"
            )
    with (
        mlflow_run.stage_run(STAGE, config.model_dump(mode="json")) as run,
        ArtifactWriter(output_uri, "dataset", settings, parents) as writer,
    ):
        if base:
            report(STAGE, note=f"copying {len(base.manifest.files):,} files of {base.uri}")
            kept = [entry.path for entry in base.manifest.files if entry.path != "tokenizer.json"]
            writer.copy(base, dict(zip(kept, kept, strict=True)))
        writer.copy(tokenizer, {"tokenizer.json": "tokenizer.json"})
        for number, (scan, part) in enumerate(zip(scans, parts, strict=True), first):
            writer.copy(scan, {p: _document_path(number, p) for p in key_files(scan, "keys/")})
            shards = [(split, shard["path"]) for split in SPLITS for shard in part.manifest.results[split]["shards"]]
            writer.copy(part, {path: _shard_path(split, number, path) for split, path in shards})
        writer.results |= counts | {
            **{name: tokenizer.manifest.results[name] for name in ("vocab_size", "pad_id", "eos_id", "engine")},
            "sequence_length": config.sequence_length,
            "document_alignment": config.document_alignment,
            "rows_per_group": config.rows_per_group,
            "partitions": first + len(parts),
            "splits": splits,
        }
        pieces = [piece for partition in partitions for piece in Partition.model_validate(partition).pieces()]
        files = {piece.file.uri: piece.file.model_dump() for piece in pieces}
        before = {file["uri"]: file for file in base.manifest.origins["sources"]} if base else {}
        writer.origins = {"sources": list((before | files).values()), "reject_examples": examples}
        run.log_metrics(_headline(writer.results))
    dataset = Artifact(output_uri, "dataset")
    run.set_tags({mlflow_run.DIGEST_TAG: dataset.digest})
    return _finished(dataset)


def _finished(dataset: Artifact) -> Artifact:
    counts = _headline(dataset.manifest.results)
    report(
        STAGE,
        "finished",
        note=f"{counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['rejected']:,} rejected",
    )
    return dataset


def _refuse_other_origins(
    config: DataConfig, scans: list[Artifact], parts: list[Artifact], tokenizer: Artifact, duplicates: Artifact
) -> None:
    """Raise an ArtifactError where artifacts of different runs are mixed: their tokens would mean other texts."""
    shape = {name: getattr(config, name) for name in SHAPE}
    for scan, part in zip(scans, parts, strict=False):
        if part.manifest.parents != {"tokenizer": tokenizer.digest, "duplicates": duplicates.digest}:
            raise ArtifactError(f"{part.uri}: was made with another tokenizer or other duplicates; tokenise it again")
        if part.manifest.config != scan.manifest.config | shape:
            raise ArtifactError(f"{part.uri}: was made with other settings or from other sources; tokenise it again")


def _document_counts(scans: list[Artifact], duplicates: Artifact) -> dict[str, Any]:
    rejected: Counter[str] = Counter()
    for scan in scans:
        rejected.update(scan.manifest.results["rejected"])
    found = duplicates.manifest.results
    usable = _total(scans, "documents")
    return {
        "documents_in": usable + rejected.total(),
        "documents_out": usable - found["duplicates"] - found["near_duplicates"],
        "duplicates": found["duplicates"],
        "near_duplicates": found["near_duplicates"],
        "rejected": dict(sorted(rejected.items())),
        "normalized": _total(scans, "normalized"),
        "text_bytes": _total(scans, "text_bytes"),
    }


def _total(scans: list[Artifact], name: str) -> int:
    return sum(int(scan.manifest.results[name]) for scan in scans)


def _refuse_too_many_rejects(counts: Mapping[str, Any], examples: list[str], config: DataConfig) -> None:
    rejects, documents = sum(counts["rejected"].values()), counts["documents_in"]
    nothing = not counts["documents_out"] and not config.extends
    if nothing or rejects > config.max_reject_fraction * documents:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items()) or "no documents"
        first = f"; first: {examples[0]}" if examples else ""
        raise SourceError(
            f"{rejects} of {documents} documents are unusable ({reasons}){first}; mend the sources, check "
            "data.text_field, or raise data.max_reject_fraction"
        )


def _refuse_lost_documents(counts: Mapping[str, Any], splits: Mapping[Split, Any]) -> None:
    written = sum(split["documents"] for split in splits.values())
    if written != counts["documents_out"]:
        raise ArtifactError(
            f"{counts['documents_out']} documents were scanned but {written} are in the shards: a source changed or "
            "a partition is missing; run again"
        )


def _split_counts(split: Split, parts: list[Artifact], first: int) -> dict[str, Any]:
    counts = [part.manifest.results[split] for part in parts]
    merged: dict[str, Any] = {name: sum(count[name] for count in counts) for name in _COUNTS}
    merged["document_lengths"] = _sums([count["document_lengths"] for count in counts])
    merged["shards"] = [
        {"path": _shard_path(split, number, shard["path"]), "rows": shard["rows"]}
        for number, count in enumerate(counts, first)
        for shard in count["shards"]
    ]
    return merged


def _added(
    base: Mapping[str, Any], counts: dict[str, Any], splits: dict[Split, dict[str, Any]]
) -> tuple[dict[str, Any], dict[Split, dict[str, Any]]]:
    """The counts of a dataset and of what is added to it, together."""
    rejected = dict(sorted((Counter(base["rejected"]) + Counter(counts["rejected"])).items()))
    both = {name: base[name] + value for name, value in counts.items() if name != "rejected"} | {"rejected": rejected}
    joined = {}
    for split, new in splits.items():
        old = base["splits"][split]
        joined[split] = {name: old[name] + new[name] for name in (*_COUNTS, "shards")}
        joined[split]["document_lengths"] = _sums([old["document_lengths"], new["document_lengths"]])
    return both, joined


def _sums(rows: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _shard_path(split: Split, number: int, path: str) -> str:
    return f"{split}/part-{number:05d}-{path.removeprefix(split + '-')}"


def _document_path(number: int, path: str) -> str:
    return f"documents/part-{number:05d}-{path.removeprefix('keys/')}"


def _headline(results: Mapping[str, Any]) -> dict[str, int]:
    return {
        "documents": results["documents_out"],
        "rejected": sum(results["rejected"].values()),
        "duplicates": results["duplicates"],
        "near_duplicates": results["near_duplicates"],
        "tokens": sum(split["tokens"] for split in results["splits"].values()),
        "padding": sum(split["padding"] for split in results["splits"].values()),
        "vocab_size": results["vocab_size"],
    }
