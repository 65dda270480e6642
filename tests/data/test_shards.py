"""Parquet shards: the smallest type that fits, row groups of the asked size, equal bytes."""

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calm_core.data.shards import ShardReader, ShardShape, ShardWriter


def shard(sequences: npt.NDArray[np.int64], vocab_size: int, rows_per_group: int) -> bytes:
    file = io.BytesIO()
    writer = ShardWriter(file, vocab_size, sequences.shape[1])
    for start in range(0, len(sequences), rows_per_group):
        writer.write_group(sequences[start : start + rows_per_group].astype(np.uint32))
    writer.close()
    assert writer.rows == len(sequences)
    return file.getvalue()


@pytest.mark.parametrize(("vocab_size", "item"), [(2**16, pa.uint16()), (2**16 + 1, pa.uint32())])
def test_sequences_come_back_in_the_smallest_type(vocab_size: int, item: pa.DataType) -> None:
    sequences = np.random.default_rng(0).integers(vocab_size, size=(23, 8))
    sequences[0, 0] = vocab_size - 1
    table = pq.read_table(io.BytesIO(shard(sequences, vocab_size, rows_per_group=4)))
    tokens = pa.list_(pa.field("element", item, nullable=False), 8)
    assert table.schema == pa.schema([pa.field("tokens", tokens, nullable=False)])
    assert table["tokens"].to_pylist() == sequences.tolist()


def test_a_row_group_is_read_alone() -> None:
    sequences = np.arange(10 * 8).reshape(10, 8)
    reader = ShardReader(io.BytesIO(shard(sequences, 300, rows_per_group=4)), ShardShape(10, 8, 300, 4))
    assert [reader.read_group(i).tolist() for i in (2, 0)] == [sequences[8:].tolist(), sequences[:4].tolist()]


def test_equal_sequences_give_equal_bytes() -> None:
    sequences = np.arange(10 * 8).reshape(10, 8)
    assert shard(sequences, 300, 4) == shard(np.asfortranarray(sequences), 300, 4)
