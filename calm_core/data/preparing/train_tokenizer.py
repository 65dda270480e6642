"""The step of preparing that makes the tokenizer."""

from collections.abc import Iterator, Sequence

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.inputs import document_settings
from calm_core.data.preparing.progress import STAGE
from calm_core.data.preparing.splits import split_of, text_hash
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.partitions import Partition
from calm_core.data.tokenizers.content import digest_of_source
from calm_core.data.tokenizers.encoder import choose_engine
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import SourceError
from calm_core.store.artifact import Artifact, ArtifactWriter, reusable
from calm_core.store.facts import TokenizerFacts
from calm_core.telemetry.progress import report, reported

_CHECKED_BYTES = 100_000  # of text, that engines are compared on


def train_tokenizer(
    partitions: Sequence[Partition],
    config: TokenizerConfig,
    data: DataConfig,
    output_uri: str,
    source_digest: str = "",
) -> Artifact[TokenizerFacts]:
    """Learn a byte-level BPE from the training documents, or take the one that the settings name.

    A dataset that is extended keeps its own.

    Args:
        partitions: Of the sources.
        config: Settings of the tokenizer.
        data: Settings of the sources and the splits.
        output_uri: Where the artifact is written.
        source_digest: What was found where `config.source` points when the run was planned; empty for whatever is
            there now.

    Returns:
        A `tokenizer` artifact: tokenizer.json, and the engine that encodes with it fastest.

    Raises:
        SourceError: The tokenizer that the settings name, or a source, has changed since the run was planned.
    """
    settings = config.model_dump(mode="json", exclude={"source"})
    settings |= {
        "validation_fraction": data.validation_fraction,
        "start_of_text": data.start_of_text,
        "partitions": [document_settings(partition, data) for partition in partitions],
    }
    extension = Extension.of(data)
    parents = {"extends": extension.parent.digest} if extension else {}
    # What lies at a source is not part of the settings: it may have changed.
    if not config.source and (made := reusable(output_uri, TokenizerFacts, settings, parents)):
        return made
    with (
        reported(STAGE, "looking for the tokenizer"),
        ArtifactWriter(output_uri, TokenizerFacts, settings, parents, overwrite=True) as writer,
    ):
        tokenizer = extension.tokenizer() if extension else _found_or_trained(partitions, config, data)
        if source_digest and digest_of_source(config.source) != source_digest:
            raise SourceError(
                f"{config.source}: the tokenizer has changed since the run was planned; run again", can_pass=True
            )
        engine, why_slow = choose_engine(tokenizer, training_texts(partitions, data, _CHECKED_BYTES))
        writer.write(TOKENIZER_NAME, tokenizer.to_bytes())
        writer.facts = TokenizerFacts(
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id,
            engine=engine,
        )
        notice = f", encoded by the slower engine: {why_slow}" if why_slow else ""
        report(STAGE, note=f"tokenizer of {tokenizer.vocab_size:,} tokens{notice}")
    return Artifact(output_uri, TokenizerFacts)


def _found_or_trained(partitions: Sequence[Partition], config: TokenizerConfig, data: DataConfig) -> Tokenizer:
    if config.source:
        special = config.pad_token, config.eos_token, config.bos_token
        return Tokenizer.load(config.source, *special, start_of_text=data.start_of_text)
    report(STAGE, note="training the tokenizer")
    texts = training_texts(partitions, data, config.max_training_bytes)
    return Tokenizer.train(texts, config.vocab_size, start_of_text=data.start_of_text)


def training_texts(partitions: Sequence[Partition], data: DataConfig, max_bytes: int) -> Iterator[str]:
    """Each distinct training document once; from each partition a share of `max_bytes` in proportion to its size."""
    num_bytes = sum(partition.num_bytes for partition in partitions)
    seen: set[bytes] = set()
    for partition in partitions:
        left = max_bytes * partition.num_bytes // max(num_bytes, 1)
        for document in read_documents(partition, data) if left else ():
            if left <= 0:
                break
            if document.reason:
                continue
            text = document.text.encode("utf-8")
            digest = text_hash(text)
            if digest in seen or split_of(digest, data.validation_fraction) != "train":
                continue
            seen.add(digest)
            yield text[:left].decode("utf-8", errors="ignore")  # the last one is cut, perhaps inside a character
            left -= len(text)
