"""Parquet shards: one row is one sequence of tokens."""

from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_COLUMN = "tokens"
_COMPRESSION, _COMPRESSION_LEVEL = "zstd", 3


def token_type(vocab_size: int) -> pa.DataType:
    """The smallest unsigned integer that holds every token id."""
    return pa.uint16() if vocab_size <= 2**16 else pa.uint32()


def encode_shard(sequences: npt.NDArray[np.int64], vocab_size: int, rows_per_group: int) -> bytes:
    """Sequences [rows, T] as the bytes of a Parquet file; equal sequences give equal bytes."""
    values = pa.array(sequences.reshape(-1), type=token_type(vocab_size))
    column = pa.FixedSizeListArray.from_arrays(values, sequences.shape[1])
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({_COLUMN: column}),
        sink,
        row_group_size=rows_per_group,
        compression=_COMPRESSION,
        compression_level=_COMPRESSION_LEVEL,
        use_dictionary=False,
        column_encoding="BYTE_STREAM_SPLIT",  # smaller than a dictionary, and decoded more than twice as fast
        write_statistics=False,
    )
    return bytes(sink.getvalue())


def encode_shards(
    sequences: npt.NDArray[np.int64], vocab_size: int, rows_per_group: int, rows_per_shard: int
) -> Iterator[bytes]:
    """Sequences as the bytes of as many Parquet files as they need."""
    for start in range(0, len(sequences), rows_per_shard):
        yield encode_shard(sequences[start : start + rows_per_shard], vocab_size, rows_per_group)


class ShardReader:
    """Row groups of one shard, read and decoded one at a time from a seekable binary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = pq.ParquetFile(file)

    def read_group(self, index: int) -> npt.NDArray[np.unsignedinteger]:
        """Sequences of one row group, uint16 or uint32 [rows, T]."""
        column = self._file.read_row_group(index).column(_COLUMN).combine_chunks()
        values: npt.NDArray[np.unsignedinteger] = column.flatten().to_numpy()
        return values.reshape(len(column), -1)
