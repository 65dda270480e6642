"""Writing the documents of one split as shards."""

from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from calm_core.config import DataConfig
from calm_core.data.preparing.packing import Packer
from calm_core.data.shards import ShardReader, ShardShape, ShardWriter
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import LENGTH_BINS, Shard, ShardsFacts, Split, SplitCounts, Vocabulary


def of_portion(config: DataConfig) -> DataConfig:
    """Settings with which a portion's documents are packed into rows without a rest, for others to follow them.

    As many tokens are in a row group, and in a file, as in those of the partition.
    """
    tokens = config.document_alignment if config.packing == "documents" else 1
    rows = config.sequence_length // tokens
    return config.model_copy(
        update={
            "sequence_length": tokens,
            "rows_per_group": config.rows_per_group * rows,
            "rows_per_shard": config.rows_per_shard * rows,
        }
    )


class SplitWriter:
    """Packs the documents of one split and writes them as shards, <split>-<number>.parquet."""

    def __init__(
        self, writer: ArtifactWriter[ShardsFacts], split: Split, config: DataConfig, vocabulary: Vocabulary
    ) -> None:
        self._writer, self._split, self._config = writer, split, config
        self._vocab_size = vocabulary.vocab_size
        self._packer = Packer(
            sequence_length=config.sequence_length,
            block_rows=config.rows_per_group,
            document_alignment=config.document_alignment,
            pad_id=vocabulary.pad_id,
            eos_id=vocabulary.eos_id,
            bos_id=vocabulary.bos_id,
            packing=config.packing,
        )
        self._open = ExitStack()
        self._shard: ShardWriter | None = None  # the one that is being written
        self._shards: list[Shard] = []  # those that are complete
        self._documents = self._text_bytes = 0
        self._lengths = np.zeros(LENGTH_BINS, dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            with suppress(Exception):  # else pyarrow tries it later, when the file is gone
                self._shard.close()
        self._open.__exit__(error_type, error, trace)  # a shard that an error cuts short is not kept

    def add(self, ids: npt.NDArray[np.uint32], text_bytes: int) -> None:
        """Append a document."""
        self._documents += 1
        self._text_bytes += text_bytes
        tokens = len(ids) + self._packer.added
        self._lengths[tokens.bit_length() - 1] += 1  # bin i: [2^i, 2^(i+1)) tokens
        for block in self._packer.push(ids):
            self._write(block)

    def take(self, part: Artifact[ShardsFacts]) -> None:
        """Append the documents of a portion (see `of_portion`).

        Raises:
            ArtifactError: It is damaged.
        """
        counts, shape = part.facts.split(self._split), of_portion(self._config)
        self._documents += counts.documents
        self._text_bytes += counts.text_bytes
        self._lengths += np.array(counts.document_lengths)
        self._packer.padding += counts.padding
        for shard in counts.shards:
            rows = ShardShape(shard.rows, shape.sequence_length, self._vocab_size, shape.rows_per_group)
            reader = ShardReader(part.open(shard.path), rows)
            for index in range(-(-shard.rows // shape.rows_per_group)):
                for block in self._packer.append(reader.read_group(index).reshape(-1)):
                    self._write(block)

    def finish(self) -> SplitCounts:
        """Write what is left; returns the split's counts."""
        for block in self._packer.finish():
            self._write(block)
        self._close_shard()
        sequences = sum(shard.rows for shard in self._shards)
        return SplitCounts(
            documents=self._documents,
            sequences=sequences,
            tokens=sequences * self._config.sequence_length - self._packer.padding,
            padding=self._packer.padding,
            text_bytes=self._text_bytes,
            document_lengths=self._lengths.tolist(),
            left_out=self._packer.left_out,
            shards=self._shards,
        )

    @property
    def _path(self) -> str:
        return f"{self._split}-{len(self._shards):05d}.parquet"

    def _write(self, block: npt.NDArray[np.uint32]) -> None:
        if self._shard is None:
            file = self._open.enter_context(self._writer.create(self._path))
            self._shard = ShardWriter(file, self._vocab_size, self._config.sequence_length)
        self._shard.write_group(block)
        if self._shard.rows == self._config.rows_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shards.append(Shard(path=self._path, rows=self._shard.rows))
            self._shard = None
            self._open.close()
