"""The last step of preparing: all partitions become one dataset."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from calm_core.config import DataConfig
from calm_core.data.preparing.counts import (
    count_documents,
    lost_text,
    refuse_empty_splits,
    refuse_lost_documents,
    refuse_too_many_rejects,
    sum_documents,
    sum_splits,
)
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.inputs import in_order, shape_settings
from calm_core.data.preparing.keys import key_files
from calm_core.data.preparing.progress import STAGE
from calm_core.data.preparing.scan import SHOWN_REJECTS
from calm_core.data.sources.partitions import Partition
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import ArtifactError
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.store.facts import (
    SPLITS,
    DatasetFacts,
    DuplicatesFacts,
    ScanFacts,
    Shard,
    ShardsFacts,
    SourceFile,
    Split,
    SplitCounts,
    TokenizerFacts,
)
from calm_core.telemetry.progress import report, reported
from calm_core.telemetry.stage import Stage

# Content counts, not where it lies or what would have been refused; partitions come with the parents.
_NOT_CONTENT = {"sources", "partitions", "max_reject_fraction", "extends", "replace_changed"}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the steps before have made, by URI, the partitions in any order."""

    partitions: Sequence[Partition]
    scan_uris: Sequence[str]
    shards_uris: Sequence[str]
    duplicates_uri: str
    tokenizer_uri: str


def dataset_settings(config: DataConfig) -> dict[str, Any]:
    """What a dataset's manifest holds as its config."""
    return config.model_dump(mode="json", exclude=_NOT_CONTENT)


def merge_partitions(
    config: DataConfig, prepared: Prepared, output_uri: str, *, overwrite: bool = False
) -> Artifact[DatasetFacts]:
    """Join the partitions' shards and counts into one dataset, after those of the dataset that is extended.

    Another dataset that lies there is replaced with `overwrite` (see `ArtifactWriter`).

    Returns:
        A `dataset` artifact: tokenizer.json, train/*.parquet, validation/*.parquet, and documents/*.bin (the keys
        that later additions are compared with).

    Raises:
        SourceError: Too many documents were rejected, or a split is empty.
        ArtifactError: A partition is missing, or its scan and its shards do not hold the same documents.
    """
    with reported(STAGE, "checking the partitions"), _agreeing():
        inputs = _Inputs(config, prepared)
        settings, parents = dataset_settings(config), inputs.parents
        made = reusable(output_uri, DatasetFacts, settings, parents)
        facts = made.facts if made else inputs.facts()
    if made:  # nothing is done, so MLflow has no run of it
        report(STAGE, "finished", note=_summary(facts))
        return made
    with Stage(STAGE, config.model_dump(mode="json")) as stage:
        stage.begin()
        stage.report(note="joining the partitions")
        with ArtifactWriter(output_uri, DatasetFacts, settings, parents, overwrite=overwrite) as writer:
            inputs.copy_files(writer)
            writer.facts = facts
        stage.run.log_metrics(_headline(facts))
        dataset = Artifact(output_uri, DatasetFacts)
        stage.finish(dataset, _summary(facts))
    return dataset


@contextmanager
def _agreeing() -> Iterator[None]:
    """Raise an ArtifactError where the facts of the parts contradict each other."""
    try:
        yield
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"the scans and the shards do not belong together ({reason}); run again") from None


class _Inputs:
    """The artifacts that are joined, opened and checked.

    Raises:
        SourceError: Too many of the new documents were rejected.
        ArtifactError: A partition is missing, or artifacts of different runs are mixed.
    """

    def __init__(self, config: DataConfig, prepared: Prepared) -> None:
        self._config, self._partitions = config, prepared.partitions
        self._first = min(partition.index for partition in prepared.partitions)
        self._scans = in_order(prepared.scan_uris, ScanFacts, {self._first})
        self._shards = in_order(prepared.shards_uris, ShardsFacts, {self._first})
        self._refuse_missing()
        self._duplicates = Artifact(prepared.duplicates_uri, DuplicatesFacts)
        self._tokenizer = Artifact(prepared.tokenizer_uri, TokenizerFacts)
        self._shared = {"tokenizer": self._tokenizer.digest, "duplicates": self._duplicates.digest}
        self._refuse_other_origins()
        self._extension = Extension.of(config)
        self._refuse_other_base()
        # Its partitions go before the new ones. Of a replaced dataset none is taken over: the first new one is 0.
        self._base = self._extension.parent if self._extension and self._first else None
        scans = [scan.facts for scan in self._scans]
        self._counts = count_documents(scans, self._duplicates.facts, [part.facts for part in self._shards])
        self._examples = [example for scan in scans for example in scan.reject_examples][:SHOWN_REJECTS]
        refuse_too_many_rejects(self._counts, scans, config)

    def _refuse_missing(self) -> None:
        if not len(self._scans) == len(self._shards) == len(self._partitions):
            raise ArtifactError(
                f"there are {len(self._partitions)} partitions, {len(self._scans)} scans and {len(self._shards)} "
                "shards: one is missing or named twice; run again"
            )

    def _refuse_other_origins(self) -> None:
        """Raise an ArtifactError where artifacts of different runs are mixed: their tokens would mean other texts."""
        shape = shape_settings(self._config)
        for scan, shards in zip(self._scans, self._shards, strict=True):
            if shards.manifest.parents != self._shared:
                raise ArtifactError(
                    f"{shards.uri}: was made with another tokenizer or other duplicates; tokenise it again"
                )
            if shards.manifest.config != scan.manifest.config | shape:
                raise ArtifactError(
                    f"{shards.uri}: was made with other settings or from other sources; tokenise it again"
                )

    def _refuse_other_base(self) -> None:
        """Raise an ArtifactError where the dataset that is extended has been replaced while this one was prepared."""
        base = self._extension.parent.digest if self._extension else ""
        planned = {partition.extends for partition in self._partitions}
        # The duplicates name it only where they were compared with it.
        made_of = [made.manifest.parents.get("extends", base) for made in (self._tokenizer, self._duplicates)]
        if {*planned, *made_of} != {base}:
            raise ArtifactError(
                f"{self._config.extends or 'data.extends'}: the dataset that is extended has changed since the run was "
                "planned; run again"
            )

    @property
    def parents(self) -> dict[str, str]:
        """Digests of all that the dataset is made of."""
        parts = {f"shards-{i}": part.digest for i, part in enumerate(self._shards, self._first)}
        return self._shared | parts | ({"extends": self._extension.parent.digest} if self._extension else {})

    def facts(self) -> DatasetFacts:
        """What the dataset holds.

        Raises:
            SourceError: A split is empty.
            ArtifactError: The scans and the shards do not hold the same documents.
        """
        counts, splits = self._counts, {split: self._split_counts(split) for split in SPLITS}
        refuse_lost_documents(counts, splits)
        if self._base:
            old = self._base.facts
            counts = sum_documents([old, counts])
            splits = {split: sum_splits([old.splits[split], new]) for split, new in splits.items()}
        refuse_empty_splits(counts, splits, self._config)
        return DatasetFacts(
            **counts.model_dump(),
            **self._tokenizer.facts.model_dump(),
            packing=self._config.packing,
            sequence_length=self._config.sequence_length,
            document_alignment=self._config.document_alignment if self._config.packing == "documents" else 1,
            rows_per_group=self._config.rows_per_group,
            partitions=self._first + len(self._shards),
            splits=splits,
            sources=self._sources(),
            reject_examples=self._examples,
        )

    def _split_counts(self, split: Split) -> SplitCounts:
        parts = [shards.facts.split(split) for shards in self._shards]
        return sum_splits([_placed(part, split, number) for number, part in enumerate(parts, self._first)])

    def _sources(self) -> list[SourceFile]:
        """The files of the dataset, each once; a new one takes the place of an old one of its name."""
        old = self._base.facts.sources if self._base else []
        new = [piece.file for partition in self._partitions for piece in partition.pieces()]
        return list({file.uri: file for file in [*old, *new]}.values())

    def copy_files(self, writer: ArtifactWriter[DatasetFacts]) -> None:
        """Copy the files that the dataset is made of."""
        if self._base:
            report(STAGE, note=f"copying {len(self._base.manifest.files):,} files of {self._base.uri}")
            kept = [entry.path for entry in self._base.manifest.files if entry.path != TOKENIZER_NAME]
            writer.copy(self._base, {path: path for path in kept})
        writer.copy(self._tokenizer, {TOKENIZER_NAME: TOKENIZER_NAME})
        for number, (scan, shards) in enumerate(zip(self._scans, self._shards, strict=True), self._first):
            writer.copy(scan, {keys.path: _keys_path(number, keys.path) for keys in key_files(scan, "keys/")})
            placed = [(split, shard.path) for split in SPLITS for shard in shards.facts.split(split).shards]
            writer.copy(shards, {path: _shard_path(split, number, path) for split, path in placed})


def _placed(counts: SplitCounts, split: Split, number: int) -> SplitCounts:
    """A partition's counts, with the paths that its shards have in the dataset."""
    shards = [Shard(path=_shard_path(split, number, shard.path), rows=shard.rows) for shard in counts.shards]
    return counts.model_copy(update={"shards": shards})


def _shard_path(split: Split, number: int, path: str) -> str:
    return f"{split}/part-{number:05d}-{path.removeprefix(split + '-')}"


def _keys_path(number: int, path: str) -> str:
    return f"documents/part-{number:05d}-{path.removeprefix('keys/')}"


def _headline(facts: DatasetFacts) -> dict[str, int]:
    """The numbers that MLflow shows of a dataset."""
    return {
        "documents": facts.documents_out,
        "rejected": sum(facts.rejected.values()),
        "duplicates": facts.duplicates,
        "near_duplicates": facts.near_duplicates,
        "tokens": facts.tokens,
        "padding": sum(split.padding for split in facts.splits.values()),
        "left_out": sum(split.left_out for split in facts.splits.values()),
        "vocab_size": facts.vocab_size,
        "changed_documents": facts.changed_documents,
        "unknown_tokens": facts.unknown_tokens,
    }


def _summary(facts: DatasetFacts) -> str:
    rejected = sum(facts.rejected.values())
    lost = f"; {text}" if (text := lost_text(facts)) else ""
    return f"{facts.documents_out:,} documents, {facts.tokens:,} tokens, {rejected:,} rejected{lost}"
