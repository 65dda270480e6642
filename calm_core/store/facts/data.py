"""Facts of sources, tokenizers, shards and datasets."""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from calm_core.store.facts.base import (
    LENGTH_BINS,
    ORIGIN,
    ROUNDING,
    SPLITS,
    Count,
    Facts,
    FilePath,
    Packing,
    Record,
    Sha256,
    Split,
    require_at_most,
    require_once,
    require_sum,
)


class SourceFile(Record):
    """One file of the sources.

    Attributes:
        digest: What tells its content from other content (see `storage.digest`).
    """

    uri: str
    size: Count
    digest: str


class Shard(Record):
    """One Parquet file, and the sequences in it."""

    path: FilePath
    rows: Annotated[Count, Field(ge=1)]


class SplitCounts(Record):
    """What a split holds.

    Attributes:
        document_lengths: How many documents have [2^i, 2^(i+1)) tokens.
        left_out: Tokens at the ends of partitions that fill no sequence.
    """

    documents: Count
    sequences: Count
    tokens: Count
    padding: Count
    text_bytes: Count
    document_lengths: Annotated[list[Count], Field(min_length=LENGTH_BINS, max_length=LENGTH_BINS)]
    left_out: Count = 0
    shards: list[Shard]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        require_sum("sequences", self.sequences, "rows of the shards", (shard.rows for shard in self.shards))
        require_sum("documents", self.documents, "documents of each length", self.document_lengths)
        require_once(shard.path for shard in self.shards)
        return self


class ScanFacts(Facts, kind="scan"):
    """Keys of a partition's documents.

    Attributes:
        portions: How many of the documents are in each of the portions that it was scanned in.
    """

    partition: Count
    documents: Count
    text_bytes: Count
    normalized: Count
    rejected: dict[str, Count]
    reject_examples: Annotated[list[str], ORIGIN] = []
    portions: Annotated[list[Count], ORIGIN] = []

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.portions:
            require_sum("documents", self.documents, "documents of the portions", self.portions)
        require_at_most("normalized", self.normalized, "documents", self.documents)
        return self


class DuplicatesFacts(Facts, kind="duplicates"):
    """Which documents of each partition stay.

    Attributes:
        portions: Of each partition, how many documents are in each of its portions.
    """

    duplicates: Count
    near_duplicates: Count
    portions: Annotated[dict[str, list[Count]], ORIGIN] = {}


class Vocabulary(Record):
    """What tokens mean beside their tokenizer.

    Attributes:
        bos_id: The token that begins each document; None: none does.
    """

    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    pad_id: Count
    eos_id: Count
    bos_id: Count | None = None

    @model_validator(mode="after")
    def _special_tokens_are_tokens(self) -> Self:
        for name in ("pad_id", "eos_id", "bos_id"):
            require_at_most(name, getattr(self, name) or 0, "the highest token", self.vocab_size - 1)
        return self


class EncodedVocabulary(Vocabulary):
    """A vocabulary, and the engine that encodes with its tokenizer fastest."""

    engine: Literal["tiktoken", "tokenizers"]


class TokenizerFacts(Facts, EncodedVocabulary, kind="tokenizer"):
    """A tokenizer."""


class TextLoss(Record):
    """What a tokenizer could not keep of the documents in the shards.

    Attributes:
        changed_documents: Those that do not come back as they were when their tokens are decoded.
        unknown_tokens: Tokens that stand for text which the vocabulary does not have.
    """

    changed_documents: Count = 0
    unknown_tokens: Count = 0


def require_losses_of(loss: TextLoss, splits: Collection[SplitCounts]) -> None:
    """Raise a ValueError where more was lost than there is."""
    require_at_most("changed_documents", loss.changed_documents, "documents", sum(s.documents for s in splits))
    require_at_most("unknown_tokens", loss.unknown_tokens, "tokens", sum(s.tokens + s.left_out for s in splits))


class ShardsFacts(Facts, TextLoss, kind="shards"):
    """A partition's sequences."""

    partition: Count
    train: SplitCounts
    validation: SplitCounts

    @model_validator(mode="after")
    def _losses_are_of_these(self) -> Self:
        require_losses_of(self, (self.train, self.validation))
        return self

    @property
    def paths(self) -> list[str]:
        return [shard.path for name in SPLITS for shard in self.split(name).shards]

    def split(self, name: Split) -> SplitCounts:
        """The counts of one split."""
        return self.train if name == "train" else self.validation


class DocumentCounts(TextLoss):
    """What became of the documents of the sources."""

    documents_in: Count
    documents_out: Count
    duplicates: Count
    near_duplicates: Count
    rejected: dict[str, Count]
    normalized: Count
    text_bytes: Count

    @model_validator(mode="after")
    def _nothing_is_lost(self) -> Self:
        became = (self.documents_out, self.duplicates, self.near_duplicates, *self.rejected.values())
        require_sum("documents_in", self.documents_in, "documents that went out, repeated or were rejected", became)
        require_at_most("normalized", self.normalized, "documents_in", self.documents_in)
        return self


class DatasetFacts(Facts, EncodedVocabulary, DocumentCounts, kind="dataset"):
    """A tokenised dataset.

    Attributes:
        packing: How documents became sequences (see `Packer`).
    """

    packing: Packing = "documents"
    sequence_length: Annotated[int, Field(ge=1, le=2**24)]
    document_alignment: Annotated[int, Field(ge=1, le=2**24)]
    rows_per_group: Annotated[int, Field(ge=1, le=2**24)]
    partitions: Count
    splits: dict[Split, SplitCounts]
    sources: Annotated[list[SourceFile], ORIGIN] = []
    reject_examples: Annotated[list[str], ORIGIN] = []

    @model_validator(mode="after")
    def _splits_are_all(self) -> Self:
        if self.splits.keys() != set(SPLITS):
            raise ValueError(f"the splits are {', '.join(self.splits)}, not {', '.join(SPLITS)}")
        splits = self.splits.values()
        require_sum("documents_out", self.documents_out, "documents of the splits", (s.documents for s in splits))
        require_at_most("bytes of the splits", sum(s.text_bytes for s in splits), "text_bytes", self.text_bytes)
        for name, split in self.splits.items():
            held = split.sequences * self.sequence_length
            require_sum(f"places in the {name} sequences", held, "tokens and padding", (split.tokens, split.padding))
        require_losses_of(self, splits)
        require_once(self.paths)
        return self

    @property
    def paths(self) -> list[str]:
        return [shard.path for split in self.splits.values() for shard in split.shards]

    @property
    def tokens(self) -> int:
        """Tokens of all splits, padding left out."""
        return sum(split.tokens for split in self.splits.values())


class MixtureFacts(Facts, kind="mixture"):
    """Several datasets, and the share of each in every batch."""

    weights: list[Annotated[float, Field(gt=0, le=1)]]
    digests: list[Sha256]
    datasets: Annotated[list[str], ORIGIN] = []

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if not self.weights or not len(self.weights) == len(self.digests) == len(self.datasets):
            counts = f"{len(self.weights)} weights, {len(self.digests)} digests, {len(self.datasets)} datasets"
            raise ValueError(f"{counts}: there has to be one of each for each dataset")
        if abs((total := sum(self.weights)) - 1) > ROUNDING:
            raise ValueError(f"the weights add up to {total}, not 1")
        return self
