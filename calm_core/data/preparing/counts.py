"""Counting documents: nothing is lost, and sources that are mostly unusable are refused."""

from collections import Counter
from collections.abc import Mapping, Sequence

from calm_core.config import DataConfig
from calm_core.errors import ArtifactError, SourceError
from calm_core.store.facts import DocumentCounts, DuplicatesFacts, ScanFacts, ShardsFacts, Split, SplitCounts

Splits = Mapping[Split, SplitCounts]


def count_documents(
    scans: Sequence[ScanFacts], duplicates: DuplicatesFacts, shards: Sequence[ShardsFacts]
) -> DocumentCounts:
    """What became of the documents of all partitions."""
    rejected = _sum_by_reason([scan.rejected for scan in scans])
    usable = sum(scan.documents for scan in scans)
    return DocumentCounts(
        documents_in=usable + sum(rejected.values()),
        documents_out=usable - duplicates.duplicates - duplicates.near_duplicates,
        duplicates=duplicates.duplicates,
        near_duplicates=duplicates.near_duplicates,
        rejected=rejected,
        normalized=sum(scan.normalized for scan in scans),
        text_bytes=sum(scan.text_bytes for scan in scans),
        changed_documents=sum(part.changed_documents for part in shards),
        unknown_tokens=sum(part.unknown_tokens for part in shards),
    )


def sum_documents(counts: Sequence[DocumentCounts]) -> DocumentCounts:
    """The counts of several sets of documents together."""
    return DocumentCounts(
        documents_in=sum(count.documents_in for count in counts),
        documents_out=sum(count.documents_out for count in counts),
        duplicates=sum(count.duplicates for count in counts),
        near_duplicates=sum(count.near_duplicates for count in counts),
        rejected=_sum_by_reason([count.rejected for count in counts]),
        normalized=sum(count.normalized for count in counts),
        text_bytes=sum(count.text_bytes for count in counts),
        changed_documents=sum(count.changed_documents for count in counts),
        unknown_tokens=sum(count.unknown_tokens for count in counts),
    )


def sum_splits(counts: Sequence[SplitCounts]) -> SplitCounts:
    """The counts of one split's parts together, their shards one after the other."""
    lengths = zip(*(count.document_lengths for count in counts), strict=True)
    return SplitCounts(
        documents=sum(count.documents for count in counts),
        sequences=sum(count.sequences for count in counts),
        tokens=sum(count.tokens for count in counts),
        padding=sum(count.padding for count in counts),
        text_bytes=sum(count.text_bytes for count in counts),
        document_lengths=[sum(column) for column in lengths],
        left_out=sum(count.left_out for count in counts),
        shards=[shard for count in counts for shard in count.shards],
    )


def lost_text(counts: DocumentCounts) -> str:
    """What the tokenizer could not keep, for people; empty where it keeps everything."""
    if not counts.changed_documents and not counts.unknown_tokens:
        return ""
    return (
        f"the tokenizer does not give back {counts.changed_documents:,} of {counts.documents_out:,} documents as they "
        f"were ({counts.unknown_tokens:,} unknown tokens)"
    )


def _sum_by_reason(rejected: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in rejected:
        total.update(counts)
    return dict(sorted(total.items()))


def refuse_too_many_rejects(counts: DocumentCounts, scans: Sequence[ScanFacts], config: DataConfig) -> None:
    """Raise a SourceError where more is unusable than is let pass, or nothing is left.

    Nothing new is fine where a dataset is extended.
    """
    rejects = sum(counts.rejected.values())
    nothing = not counts.documents_out and not config.extends
    if nothing or rejects > config.max_reject_fraction * counts.documents_in:
        if not rejects:
            raise SourceError("the sources hold no documents; name files with text in data.sources")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.rejected.items())
        examples = [example for scan in scans for example in scan.reject_examples]
        first = f"; first: {examples[0]}" if examples else ""
        raise SourceError(
            f"{rejects:,} of {counts.documents_in:,} documents are unusable ({reasons}){first}; mend the sources, "
            "check data.text_field, or raise data.max_reject_fraction"
        )


def refuse_lost_documents(counts: DocumentCounts, splits: Splits) -> None:
    """Raise an ArtifactError where the shards hold more or fewer documents than were scanned."""
    written = sum(split.documents for split in splits.values())
    if written != counts.documents_out:
        raise ArtifactError(
            f"{counts.documents_out} documents were scanned but {written} are in the shards: a source changed or "
            "a partition is missing; run again"
        )


def refuse_empty_splits(counts: DocumentCounts, splits: Splits, config: DataConfig) -> None:
    """Raise a SourceError where there is nothing to train on, or nothing to validate with.

    A set that is held out whole has nothing to train on.
    """
    for name, split in splits.items():
        if name == "train" and config.validation_fraction == 1:
            continue
        if split.documents and not split.sequences:
            raise SourceError(
                f"the {name} split fills no sequence: its {split.documents} documents have {split.left_out} tokens, a "
                f"sequence {config.sequence_length}; add documents or lower data.sequence_length"
            )
        if not split.sequences:
            raise SourceError(
                f"the {name} split is empty: {counts.documents_out} documents, validation_fraction "
                f"{config.validation_fraction}; add documents or change data.validation_fraction"
            )
