"""The step of preparing that turns a partition's documents into sequences of tokens."""

from collections.abc import Iterator
from itertools import zip_longest

from calm_core.config import DataConfig
from calm_core.data.preparing.dropped import KEPT, read_dropped
from calm_core.data.preparing.inputs import document_settings, shape_settings
from calm_core.data.preparing.progress import STAGE, Progress
from calm_core.data.preparing.split_writer import SplitWriter
from calm_core.data.preparing.splits import split_of, text_hash
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.partitions import Partition
from calm_core.data.tokenizers.encoder import encoder
from calm_core.data.tokenizers.stored import tokenizer_of
from calm_core.errors import ArtifactError, CalmError, SourceError
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.store.facts import DuplicatesFacts, ShardsFacts, TokenizerFacts
from calm_core.telemetry.progress import reported


@reported(STAGE, "tokenising")
def tokenize_partition(
    partition: Partition, config: DataConfig, tokenizer_uri: str, duplicates_uri: str, output_uri: str
) -> Artifact[ShardsFacts]:
    """Turn a partition's documents, less the duplicates, into shards of packed sequences.

    Returns:
        A `shards` artifact: train-*.parquet, validation-*.parquet, and counts by split.

    Raises:
        SourceError: The sources have changed since they were planned.
        ArtifactError: The tokenizer or the duplicates are damaged, or of other documents.
    """
    trained, found = Artifact(tokenizer_uri, TokenizerFacts), Artifact(duplicates_uri, DuplicatesFacts)
    parents = {"tokenizer": trained.digest, "duplicates": found.digest}
    settings = document_settings(partition, config) | shape_settings(config)
    if made := reusable(output_uri, ShardsFacts, settings, parents):
        return made
    tokenizer = tokenizer_of(trained, trained.facts)
    encode = encoder(tokenizer, trained.facts.engine)
    documents, kinds = read_dropped(found, f"dropped/{partition.index:05d}.parquet")
    progress, tokens, changed, unknown = Progress(documents), 0, 0, 0
    loses_nothing = trained.facts.engine == "tiktoken"  # every byte of a text is part of a token
    with (
        ArtifactWriter(output_uri, ShardsFacts, settings, parents, overwrite=True) as writer,
        SplitWriter(writer, "train", config, tokenizer) as train,
        SplitWriter(writer, "validation", config, tokenizer) as validation,
    ):
        for done, (text, kind) in enumerate(_usable_texts(partition, config, kinds)):
            if progress.is_due():
                progress.tell(_note(partition, tokens), done, tokens)
            if kind != KEPT:
                continue
            try:
                data, ids = text.encode("utf-8"), encode(text)
            except CalmError as error:
                raise SourceError(f"partition {partition.index}, document {done + 1}: {error}") from None
            split = split_of(text_hash(data), config.validation_fraction)
            (train if split == "train" else validation).add(ids, len(data))
            tokens += len(ids)
            if not loses_nothing:
                changed += tokenizer.decode(ids.tolist()) != text
                unknown += tokenizer.count_unknown(ids)
        writer.facts = ShardsFacts(
            partition=partition.index,
            train=train.finish(),
            validation=validation.finish(),
            changed_documents=changed,
            unknown_tokens=unknown,
        )
        progress.tell(_note(partition, tokens), documents, tokens)
    return Artifact(output_uri, ShardsFacts)


def _usable_texts(partition: Partition, config: DataConfig, kinds: Iterator[int]) -> Iterator[tuple[str, int]]:
    """Each usable document's text, and what the search for duplicates says of it."""
    usable = (document for document in read_documents(partition, config) if not document.reason)
    for document, kind in zip_longest(usable, kinds):
        if document is None or kind is None:  # one more, or one less, than were scanned
            raise ArtifactError(f"partition {partition.index}: the duplicates are of other documents; find them again")
        yield document.text, kind


def _note(partition: Partition, tokens: int) -> str:
    return f"partition {partition.index}: {tokens:,} tokens"
