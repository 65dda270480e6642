"""The last step of preparing: all partitions become one dataset."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from calm_core.config import DataConfig
from calm_core.data.preparing.duplicates import key_files
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.steps import SHAPE, SHOWN_REJECTS, STAGE, in_order
from calm_core.data.sources.files import Partition
from calm_core.errors import ArtifactError, SourceError
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.store.facts import (
    SPLITS,
    DatasetFacts,
    DocumentCounts,
    DuplicatesFacts,
    ScanFacts,
    Shard,
    ShardsFacts,
    Split,
    SplitCounts,
    TokenizerFacts,
)
from calm_core.telemetry.progress import report, reported
from calm_core.telemetry.stage import Stage

_TOKENIZER = "tokenizer.json"
# Settings that are no part of a dataset's config: content counts, not where it lies or what would have been refused;
# partitions come with the parents.
_ELSEWHERE = {"sources", "partitions", "max_reject_fraction", "extends", "replace_changed"}


@dataclass(frozen=True)
class Prepared:
    """What the steps before have made.

    Attributes:
        partitions: The plan.
        scan_uris, shards_uris: One of each for every partition, in any order.
        duplicates_uri, tokenizer_uri: One of each for all of them.
    """

    partitions: Sequence[Partition]
    scan_uris: Sequence[str]
    shards_uris: Sequence[str]
    duplicates_uri: str
    tokenizer_uri: str


def merge_partitions(config: DataConfig, prepared: Prepared, output_uri: str) -> Artifact[DatasetFacts]:
    """Join the partitions' shards and counts into one dataset, after those of the dataset that is extended.

    Returns:
        A `dataset` artifact: tokenizer.json, train/*.parquet, validation/*.parquet, and documents/*.bin (the keys
        that later additions are compared with).

    Raises:
        SourceError: Too many documents were rejected, or a split is empty.
        ArtifactError: A partition is missing, or its scan and its shards do not hold the same documents.
    """
    with reported(STAGE, "joining the partitions"):
        merge = _Merge(config, prepared)
        merge.refuse_other_origins()
        merge.refuse_too_many_rejects()
        made = reusable(output_uri, DatasetFacts, merge.settings, merge.parents)
    if made:
        report(STAGE, "finished", note=_headline(made.facts))
        return made
    with Stage(STAGE, config.model_dump(mode="json")) as stage:
        facts = merge.facts()
        with ArtifactWriter(output_uri, DatasetFacts, merge.settings, merge.parents) as writer:
            merge.copy_files(writer)
            writer.facts = facts
        dataset = Artifact(output_uri, DatasetFacts)
        stage.run.log_metrics(_metrics(facts))
        stage.finish(dataset, _headline(facts))
    return dataset


class _Merge:
    """The parts of a dataset, opened, and what becomes of them.

    Attributes:
        first: Index of the first partition; the ones before are those of the dataset that is extended.
        base: That dataset, if it is kept.
        settings, parents: What the dataset is made from.
    """

    def __init__(self, config: DataConfig, prepared: Prepared) -> None:
        self.config = config
        self.partitions = prepared.partitions
        self.first = min(partition.index for partition in prepared.partitions)
        self.scans = in_order(prepared.scan_uris, ScanFacts, {self.first})
        self.shards = in_order(prepared.shards_uris, ShardsFacts, {self.first})
        if not len(self.scans) == len(self.shards) == len(self.partitions):
            raise ArtifactError(
                f"there are {len(self.partitions)} partitions, {len(self.scans)} scans and {len(self.shards)} shards: "
                "one is missing or named twice; run again"
            )
        self.duplicates = Artifact(prepared.duplicates_uri, DuplicatesFacts)
        self.tokenizer = Artifact(prepared.tokenizer_uri, TokenizerFacts)
        extension = Extension.of(config)
        self.base = extension.parent if extension and self.first else None
        self.settings: dict[str, Any] = config.model_dump(mode="json", exclude=_ELSEWHERE)
        self.parents = {"tokenizer": self.tokenizer.digest, "duplicates": self.duplicates.digest}
        self.parents |= {f"shards-{i}": part.digest for i, part in enumerate(self.shards, self.first)}
        self.parents |= {"extends": extension.parent.digest} if extension else {}

    def refuse_other_origins(self) -> None:
        """Raise an ArtifactError where artifacts of different runs are mixed: their tokens would mean other texts."""
        shape = {name: getattr(self.config, name) for name in SHAPE}
        same = {"tokenizer": self.tokenizer.digest, "duplicates": self.duplicates.digest}
        for scan, part in zip(self.scans, self.shards, strict=True):
            if part.manifest.parents != same:
                raise ArtifactError(
                    f"{part.uri}: was made with another tokenizer or other duplicates; tokenise it again"
                )
            if part.manifest.config != scan.manifest.config | shape:
                raise ArtifactError(
                    f"{part.uri}: was made with other settings or from other sources; tokenise it again"
                )

    def refuse_too_many_rejects(self) -> None:
        """Raise a SourceError where so little of the sources is usable that something must be wrong."""
        counts = self.counts
        rejects = sum(counts.rejected.values())
        nothing = not counts.documents_out and not self.config.extends
        if nothing or rejects > self.config.max_reject_fraction * counts.documents_in:
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.rejected.items()) or "no documents"
            first = f"; first: {self.reject_examples[0]}" if self.reject_examples else ""
            raise SourceError(
                f"{rejects} of {counts.documents_in} documents are unusable ({reasons}){first}; mend the sources, "
                "check data.text_field, or raise data.max_reject_fraction"
            )

    @property
    def reject_examples(self) -> list[str]:
        return [example for scan in self.scans for example in scan.facts.reject_examples][:SHOWN_REJECTS]

    @cached_property
    def counts(self) -> DocumentCounts:
        """What became of the documents of these partitions."""
        scans, found = [scan.facts for scan in self.scans], self.duplicates.facts
        rejected: Counter[str] = Counter()
        for scan in scans:
            rejected.update(scan.rejected)
        usable = sum(scan.documents for scan in scans)
        return DocumentCounts(
            documents_in=usable + rejected.total(),
            documents_out=usable - found.duplicates - found.near_duplicates,
            duplicates=found.duplicates,
            near_duplicates=found.near_duplicates,
            rejected=dict(sorted(rejected.items())),
            normalized=sum(scan.normalized for scan in scans),
            text_bytes=sum(scan.text_bytes for scan in scans),
        )

    def facts(self) -> DatasetFacts:
        """The dataset's facts, those of the dataset that is extended included.

        Raises:
            SourceError: A split is empty.
            ArtifactError: The shards do not hold all documents that were scanned.
        """
        counts = self.counts
        splits = {split: self._split_counts(split) for split in SPLITS}
        written = sum(split.documents for split in splits.values())
        if written != counts.documents_out:
            raise ArtifactError(
                f"{counts.documents_out} documents were scanned but {written} are in the shards: a source changed or "
                "a partition is missing; run again"
            )
        if self.base:
            counts = _added(self.base.facts, counts)
            splits = {split: _joined([self.base.facts.splits[split], splits[split]]) for split in SPLITS}
        for split in SPLITS:
            if not splits[split].sequences:
                raise SourceError(
                    f"the {split} split is empty: {counts.documents_out} documents, validation_fraction "
                    f"{self.config.validation_fraction}; add documents or change data.validation_fraction"
                )
        return DatasetFacts(
            **counts.model_dump(),
            **self.tokenizer.facts.model_dump(),
            sequence_length=self.config.sequence_length,
            document_alignment=self.config.document_alignment,
            rows_per_group=self.config.rows_per_group,
            partitions=self.first + len(self.shards),
            splits=splits,
            sources=list((self._sources_before() | self._sources()).values()),
            reject_examples=self.reject_examples,
        )

    def _sources(self) -> dict[str, Any]:
        return {piece.file.uri: piece.file for partition in self.partitions for piece in partition.pieces()}

    def _sources_before(self) -> dict[str, Any]:
        return {file.uri: file for file in self.base.facts.sources} if self.base else {}

    def _split_counts(self, split: Split) -> SplitCounts:
        parts = [part.facts.split(split) for part in self.shards]
        renamed = [
            part.model_copy(update={"shards": [_placed(split, number, shard) for shard in part.shards]})
            for number, part in enumerate(parts, self.first)
        ]
        return _joined(renamed)

    def copy_files(self, writer: ArtifactWriter[DatasetFacts]) -> None:
        """Copy what the dataset holds."""
        if self.base:
            report(STAGE, note=f"copying {len(self.base.manifest.files):,} files of {self.base.uri}")
            kept = [entry.path for entry in self.base.manifest.files if entry.path != _TOKENIZER]
            writer.copy(self.base, dict(zip(kept, kept, strict=True)))
        writer.copy(self.tokenizer, {_TOKENIZER: _TOKENIZER})
        for number, (scan, part) in enumerate(zip(self.scans, self.shards, strict=True), self.first):
            writer.copy(scan, {path: _document_path(number, path) for path in key_files(scan, "keys/")})
            shards = [(split, shard) for split in SPLITS for shard in part.facts.split(split).shards]
            writer.copy(part, {shard.path: _placed(split, number, shard).path for split, shard in shards})


def _joined(parts: Sequence[SplitCounts]) -> SplitCounts:
    """The counts of a split's parts together."""
    lengths = [part.document_lengths for part in parts]
    return SplitCounts(
        documents=sum(part.documents for part in parts),
        sequences=sum(part.sequences for part in parts),
        tokens=sum(part.tokens for part in parts),
        padding=sum(part.padding for part in parts),
        text_bytes=sum(part.text_bytes for part in parts),
        document_lengths=[sum(column) for column in zip(*lengths, strict=True)],
        shards=[shard for part in parts for shard in part.shards],
    )


def _added(base: DatasetFacts, new: DocumentCounts) -> DocumentCounts:
    """The counts of a dataset and of what is added to it, together."""
    both = {name: getattr(base, name) + value for name, value in new if name != "rejected"}
    return DocumentCounts(**both, rejected=dict(sorted((Counter(base.rejected) + Counter(new.rejected)).items())))


def _placed(split: Split, number: int, shard: Shard) -> Shard:
    """A partition's shard under its path in the dataset."""
    return Shard(path=f"{split}/part-{number:05d}-{shard.path.removeprefix(split + '-')}", rows=shard.rows)


def _document_path(number: int, path: str) -> str:
    return f"documents/part-{number:05d}-{path.removeprefix('keys/')}"


def _headline(facts: DatasetFacts) -> str:
    rejected = sum(facts.rejected.values())
    return f"{facts.documents_out:,} documents, {facts.tokens:,} tokens, {rejected:,} rejected"


def _metrics(facts: DatasetFacts) -> dict[str, float]:
    return {
        "documents": facts.documents_out,
        "rejected": sum(facts.rejected.values()),
        "duplicates": facts.duplicates,
        "near_duplicates": facts.near_duplicates,
        "tokens": facts.tokens,
        "padding": sum(split.padding for split in facts.splits.values()),
        "vocab_size": facts.vocab_size,
    }
