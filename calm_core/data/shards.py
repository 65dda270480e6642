"""Parquet shards: one row is one sequence of tokens."""

from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_COLUMN = "tokens"


def token_type(vocab_size: int) -> pa.DataType:
    """The smallest unsigned integer that holds every token id."""
    return pa.uint16() if vocab_size <= 2**16 else pa.uint32()


def column_of(values: npt.NDArray[np.unsignedinteger], type_: pa.DataType) -> pa.Array:
    """A column of a NumPy array's values; `pa.array` would import pandas for it, which takes a while."""
    flat = np.ascontiguousarray(values, dtype=np.dtype(str(type_))).reshape(-1)
    return pa.Array.from_buffers(type_, len(flat), [None, pa.py_buffer(flat)])


def _list_of(vocab_size: int, sequence_length: int) -> pa.DataType:
    """The type of a sequence. Nothing is null: said in the schema, it need not be said of each token."""
    return pa.list_(pa.field("element", token_type(vocab_size), nullable=False), sequence_length)


class ShardWriter:
    """Writes sequences to one Parquet file; equal sequences in equal groups give equal bytes."""

    def __init__(self, file: Any, vocab_size: int, sequence_length: int) -> None:
        self._list = _list_of(vocab_size, sequence_length)
        self._schema = pa.schema([pa.field(_COLUMN, self._list, nullable=False)])
        self._writer = pq.ParquetWriter(
            pa.PythonFile(file, "w"),
            self._schema,
            compression="zstd",
            compression_level=1,  # 3 is 5 % smaller, and takes 25 % longer to read
            use_dictionary=False,
            column_encoding="BYTE_STREAM_SPLIT",  # smaller than a dictionary, and decoded more than twice as fast
            write_statistics=False,
            write_page_checksum=True,
        )
        self.rows = 0

    def write_group(self, sequences: npt.NDArray[np.unsignedinteger]) -> None:
        """Append sequences [rows, T] as one row group."""
        column = pa.FixedSizeListArray.from_arrays(column_of(sequences, self._list.value_type), type=self._list)
        self._writer.write_table(pa.Table.from_arrays([column], schema=self._schema), row_group_size=len(sequences))
        self.rows += len(sequences)

    def close(self) -> None:
        """Write the file's end."""
        self._writer.close()


@dataclass(frozen=True)
class ShardShape:
    """What a shard has to hold: as many sequences, of as many tokens, of a vocabulary, in groups of as many rows."""

    rows: int
    sequence_length: int
    vocab_size: int
    rows_per_group: int


class ShardReader:
    """Row groups of one shard, read and decoded one at a time from a seekable binary file.

    Args:
        file: The shard.
        shape: What it has to hold.

    Raises:
        OSError: The file is damaged.
        ValueError: It holds something else.
    """

    def __init__(self, file: IO[bytes], shape: ShardShape) -> None:
        self._file = pq.ParquetFile(file, page_checksum_verification=True)
        self._vocab_size = shape.vocab_size
        metadata, schema = self._file.metadata, self._file.schema_arrow
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        full, rest = divmod(shape.rows, shape.rows_per_group)
        if len(groups) != full + bool(rest) or groups != [shape.rows_per_group] * full + [rest] * bool(rest):
            raise ValueError(f"{metadata.num_rows:,} sequences in {len(groups)} groups, not {shape.rows:,}")
        if schema.names != [_COLUMN] or schema.types != [_list_of(shape.vocab_size, shape.sequence_length)]:
            raise ValueError(f"{str(schema.types)[:200]}, not {shape.sequence_length} tokens in a sequence")

    def read_group(self, index: int) -> npt.NDArray[np.unsignedinteger]:
        """Sequences of one row group, uint16 or uint32 [rows, T].

        Raises:
            OSError: It is damaged.
            ValueError: It holds a token that the vocabulary lacks.
        """
        column = self._file.read_row_group(index, use_threads=False).column(_COLUMN).combine_chunks()
        values = column.flatten()
        # `to_numpy` would import pandas, which the first batch of a process would have to wait for.
        tokens: npt.NDArray[np.unsignedinteger] = np.frombuffer(values.buffers()[1], np.dtype(str(values.type)))
        tokens = tokens[values.offset :][: len(values)]
        if tokens.max() >= self._vocab_size:
            raise ValueError(f"token {tokens.max()} of a vocabulary of {self._vocab_size:,}")
        return tokens.reshape(len(column), -1)
