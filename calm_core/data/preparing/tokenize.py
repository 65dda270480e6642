"""The step of preparing that turns a partition's documents into sequences of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from calm_core.config import DataConfig
from calm_core.data.preparing.dropped import KEPT, read_dropped
from calm_core.data.preparing.inputs import document_settings, shape_settings
from calm_core.data.preparing.progress import STAGE, Progress, of_partition
from calm_core.data.preparing.split_writer import SplitWriter, of_portion
from calm_core.data.preparing.splits import split_of, text_hash
from calm_core.data.preparing.step import Step
from calm_core.data.preparing.workers import Workers, most_workers
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.partitions import Partition, Portion
from calm_core.data.tokenizers.encoder import Encode, encoder
from calm_core.data.tokenizers.stored import TOKENIZER_NAME, tokenizer_of
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, CalmError, SourceError
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import SPLITS, DuplicatesFacts, ShardsFacts, Split, TokenizerFacts
from calm_core.telemetry.progress import reported


def tokenize_partition(
    partition: Partition, config: DataConfig, tokenizer_uri: str, duplicates_uri: str, output_uri: str
) -> Artifact[ShardsFacts]:
    """Turn a partition's documents, less the duplicates, into shards of packed sequences, with all the processes that
    have room.

    Returns:
        A `shards` artifact: train-*.parquet, validation-*.parquet, and counts by split.

    Raises:
        SourceError: The sources have changed since they were planned.
        ArtifactError: The tokenizer or the duplicates are damaged, or of other documents.
    """
    with Workers(most_workers()) as workers:
        return tokenize_partitions([partition], config, tokenizer_uri, duplicates_uri, [output_uri], workers)[0]


def tokenize_partitions(
    partitions: Sequence[Partition],
    config: DataConfig,
    tokenizer_uri: str,
    duplicates_uri: str,
    output_uris: Sequence[str],
    workers: Workers,
) -> list[Artifact[ShardsFacts]]:
    """As `tokenize_partition`, of several partitions at a time."""
    where = of_partition(partitions)
    with reported(STAGE, f"{where}tokenising"):
        trained, found = Artifact(tokenizer_uri, TokenizerFacts), Artifact(duplicates_uri, DuplicatesFacts)
        documents = sum(sum(found.facts.portions.get(str(partition.index), [])) for partition in partitions)
        progress = Progress(f"{where}{{counted:,}} tokens", documents)
        return _Tokenizing(progress, config, trained, found).each(partitions, output_uris, workers)


@dataclass(frozen=True)
class _Tokenizing(Step[ShardsFacts]):
    """The step, with its settings and what it needs."""

    config: DataConfig
    trained: Artifact[TokenizerFacts]
    found: Artifact[DuplicatesFacts]
    kind = ShardsFacts

    @property
    def parents(self) -> Mapping[str, str]:
        return {"tokenizer": self.trained.digest, "duplicates": self.found.digest}

    def settings(self, part: Partition) -> dict[str, Any]:
        return document_settings(part, self.config) | shape_settings(self.config)

    def documents(self, part: Partition, facts: ShardsFacts) -> int:
        counts = self.found.facts.portions.get(str(part.index), [])
        return counts[part.number] if isinstance(part, Portion) else sum(counts)

    def write(self, part: Partition, writer: ArtifactWriter[ShardsFacts]) -> ShardsFacts:
        config = of_portion(self.config) if isinstance(part, Portion) else self.config
        tokenizer, encode = _encoder_of(self.trained)
        loses_nothing = self.trained.facts.engine == "tiktoken"  # every byte of a text is part of a token
        first, kinds = self._kinds(part)
        changed = unknown = 0
        with ExitStack() as stack:
            splits = self._writers(writer, config, stack)
            for number, (text, kind) in enumerate(_usable_texts(part, config, kinds), first + 1):
                if kind != KEPT:
                    self.progress.add(done=1, counted=0)
                    continue
                try:
                    data, ids = text.encode("utf-8"), encode(text)
                except CalmError as error:
                    raise SourceError(f"partition {part.index}, document {number}: {error}") from None
                splits[split_of(text_hash(data), config.validation_fraction)].add(ids, len(data))
                self.progress.add(done=1, counted=len(ids))
                if not loses_nothing:
                    changed += tokenizer.decode(ids.tolist()) != text
                    unknown += tokenizer.count_unknown(ids)
            return _facts(part, splits, changed, unknown)

    def join(
        self, partition: Partition, parts: Iterator[Artifact[ShardsFacts]], writer: ArtifactWriter[ShardsFacts]
    ) -> ShardsFacts:
        changed = unknown = 0
        with ExitStack() as stack:
            splits = self._writers(writer, self.config, stack)
            for part in parts:
                for split in splits.values():
                    split.take(part)
                changed += part.facts.changed_documents
                unknown += part.facts.unknown_tokens
            return _facts(partition, splits, changed, unknown)

    def _writers(
        self, writer: ArtifactWriter[ShardsFacts], config: DataConfig, stack: ExitStack
    ) -> dict[Split, SplitWriter]:
        return {split: stack.enter_context(SplitWriter(writer, split, config, self.trained.facts)) for split in SPLITS}

    def _kinds(self, part: Partition) -> tuple[int, Iterator[int]]:
        """The number of the first document in its partition, and what becomes of each."""
        path = f"dropped/{part.index:05d}.parquet"
        if not isinstance(part, Portion):
            return 0, read_dropped(self.found, path)
        counts = self.found.facts.portions.get(str(part.index), [])
        if part.number >= len(counts):
            raise _of_other_documents(part)
        first = sum(counts[: part.number])
        return first, read_dropped(self.found, path, first, counts[part.number])


def _facts(part: Partition, splits: Mapping[Split, SplitWriter], changed: int, unknown: int) -> ShardsFacts:
    return ShardsFacts(
        partition=part.index,
        train=splits["train"].finish(),
        validation=splits["validation"].finish(),
        changed_documents=changed,
        unknown_tokens=unknown,
    )


_last: tuple[str, Tokenizer, Encode] | None = None


def _encoder_of(trained: Artifact[TokenizerFacts]) -> tuple[Tokenizer, Encode]:
    """A tokenizer, and what encodes with it: the last one that this process has used, or a new one."""
    global _last
    trained.check(TOKENIZER_NAME)
    if _last is None or _last[0] != trained.digest:
        tokenizer = tokenizer_of(trained, trained.facts)
        _last = trained.digest, tokenizer, encoder(tokenizer, trained.facts.engine)
    return _last[1:]


def _usable_texts(part: Partition, config: DataConfig, kinds: Iterator[int]) -> Iterator[tuple[str, int]]:
    """Each usable document's text, and what the search for duplicates says of it."""
    usable = (document for document in read_documents(part, config) if not document.reason)
    for document, kind in zip_longest(usable, kinds):
        if document is None or kind is None:  # one more, or one less, than were scanned
            raise _of_other_documents(part)
        yield document.text, kind


def _of_other_documents(part: Partition) -> ArtifactError:
    return ArtifactError(f"partition {part.index}: the duplicates are of other documents; find them again")
