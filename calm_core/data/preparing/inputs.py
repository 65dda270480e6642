"""What the steps of preparing depend on."""

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from calm_core.config import DataConfig
from calm_core.data.sources.partitions import Partition, Portion
from calm_core.errors import ArtifactError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import ScanFacts, ShardsFacts

_DOCUMENTS = (
    "text_field",
    "unicode_normalization",
    "min_document_bytes",
    "max_document_bytes",
    "txt_document_bytes",
    "near_duplicate_threshold",
    "damaged_files",
)
_SHAPE = (
    "sequence_length",
    "packing",
    "start_of_text",
    "document_alignment",
    "rows_per_group",
    "rows_per_shard",
    "validation_fraction",
)

OfPartition = TypeVar("OfPartition", ScanFacts, ShardsFacts)


def document_settings(partition: Partition, config: DataConfig) -> dict[str, Any]:
    """What decides which documents a partition holds: content digests, not names, so that a moved file is the same."""
    return {
        "pieces": [
            {"digest": piece.file.digest, "start": piece.start, "end": piece.end} for piece in partition.pieces()
        ],
        **{name: getattr(config, name) for name in _DOCUMENTS},
    }


def portion_settings(part: Partition) -> dict[str, Any]:
    """What tells a portion from others; empty for a whole partition."""
    return {"partition": part.index, "portion": part.number} if isinstance(part, Portion) else {}


def shape_settings(config: DataConfig) -> dict[str, Any]:
    """What a partition's shards depend on beyond its documents."""
    return {name: getattr(config, name) for name in _SHAPE}


def in_order(uris: Sequence[str], kind: type[OfPartition], firsts: Collection[int]) -> list[Artifact[OfPartition]]:
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
