"""Parquet shards: the smallest type that fits, row groups of the asked size, equal bytes."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calm_core.data.shards import ShardReader, encode_shard, encode_shards


@pytest.mark.parametrize(("vocab_size", "item"), [(2**16, pa.uint16()), (2**16 + 1, pa.uint32())])
def test_sequences_come_back_in_the_smallest_type(vocab_size: int, item: pa.DataType) -> None:
    sequences = np.random.default_rng(0).integers(vocab_size, size=(23, 8))
    sequences[0, 0] = vocab_size - 1
    shards = list(encode_shards(sequences, vocab_size, rows_per_group=4, rows_per_shard=10))
    tables = [pq.read_table(io.BytesIO(shard)) for shard in shards]
    assert [len(table) for table in tables] == [10, 10, 3]
    assert tables[0].schema == pa.schema({"tokens": pa.list_(item, 8)})
    assert [row for table in tables for row in table["tokens"].to_pylist()] == sequences.tolist()


def test_a_row_group_is_read_alone() -> None:
    sequences = np.arange(10 * 8).reshape(10, 8)
    reader = ShardReader(io.BytesIO(encode_shard(sequences, 300, rows_per_group=4)))
    assert [reader.read_group(i).tolist() for i in (2, 0)] == [sequences[8:].tolist(), sequences[:4].tolist()]


def test_equal_sequences_give_equal_bytes() -> None:
    sequences = np.arange(10 * 8).reshape(10, 8)
    assert encode_shard(sequences, 300, 4) == encode_shard(np.asfortranarray(sequences), 300, 4)
