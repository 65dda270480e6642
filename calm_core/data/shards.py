"""Parquet shards: one row is one sequence of tokens."""

from collections.abc import Iterator

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
    )
    return bytes(sink.getvalue())


def encode_shards(
    sequences: npt.NDArray[np.int64], vocab_size: int, rows_per_group: int, rows_per_shard: int
) -> Iterator[bytes]:
    """Sequences as the bytes of as many Parquet files as they need."""
    for start in range(0, len(sequences), rows_per_shard):
        yield encode_shard(sequences[start : start + rows_per_shard], vocab_size, rows_per_group)


class ShardReader:
    """Row groups of one shard, decoded one at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = pq.ParquetFile(pa.BufferReader(data))
        metadata = self._file.metadata
        self.rows_of_group = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def read_group(self, index: int) -> npt.NDArray[np.int64]:
        """Sequences of one row group, int64 [rows, T]."""
        column = self._file.read_row_group(index).column(_COLUMN).combine_chunks()
        values: npt.NDArray[np.int64] = column.flatten().to_numpy().astype(np.int64)
        return values.reshape(len(column), -1)
