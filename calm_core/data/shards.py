"""Parquet shards: one row is one sequence of tokens."""

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


class ShardWriter:
    """Writes sequences to one Parquet file; equal sequences in equal groups give equal bytes."""

    def __init__(self, file: Any, vocab_size: int, sequence_length: int) -> None:
        # Nothing is null: said in the schema, it need not be said of each token.
        self._list = pa.list_(pa.field("element", token_type(vocab_size), nullable=False), sequence_length)
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


class ShardReader:
    """Row groups of one shard, read and decoded one at a time from a seekable binary file.

    Raises:
        OSError: The file is damaged.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = pq.ParquetFile(file, page_checksum_verification=True)

    def read_group(self, index: int) -> npt.NDArray[np.unsignedinteger]:
        """Sequences of one row group, uint16 or uint32 [rows, T]."""
        column = self._file.read_row_group(index, use_threads=False).column(_COLUMN).combine_chunks()
        values = column.flatten()
        # `to_numpy` would import pandas, which the first batch of a process would have to wait for.
        tokens: npt.NDArray[np.unsignedinteger] = np.frombuffer(values.buffers()[1], np.dtype(str(values.type)))
        return tokens[values.offset :][: len(values)].reshape(len(column), -1)
