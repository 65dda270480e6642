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


def with_token(sequences: npt.NDArray[np.int64], token: int) -> npt.NDArray[np.int64]:
    changed = sequences.copy()
    changed[9, 7] = token
    return changed


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (ShardShape(9, 8, 300, 4), "10 sequences in 3 groups, not 9"),
        (ShardShape(11, 8, 300, 4), "10 sequences in 3 groups, not 11"),
        (ShardShape(10, 8, 300, 5), "10 sequences in 3 groups, not 10"),
        (ShardShape(10, 8, 300, 2**20), "10 sequences in 3 groups, not 10"),
        (ShardShape(10, 16, 300, 4), "not 16 tokens in a sequence"),
        (ShardShape(10, 8, 2**16 + 1, 4), "not 8 tokens in a sequence"),
    ],
)
def test_a_shard_of_another_shape_is_refused_when_it_is_opened(shape: ShardShape, told: str) -> None:
    """Else its sequences would be dropped, or others taken for them."""
    with pytest.raises(ValueError, match=told):
        ShardReader(io.BytesIO(shard(np.arange(10 * 8).reshape(10, 8), 300, rows_per_group=4)), shape)


def test_a_token_that_the_vocabulary_lacks_is_refused() -> None:
    """An embedding has no row for it: a GPU would stop, or read something else."""
    sequences = np.arange(10 * 8).reshape(10, 8)
    shape = ShardShape(10, 8, 300, 4)
    assert ShardReader(io.BytesIO(shard(with_token(sequences, 299), 300, 4)), shape).read_group(2)[1, 7] == 299
    reader = ShardReader(io.BytesIO(shard(with_token(sequences, 300), 300, 4)), shape)
    assert reader.read_group(1).tolist() == sequences[4:8].tolist()
    with pytest.raises(ValueError, match="token 300 of a vocabulary of 300"):
        reader.read_group(2)


def test_columns_of_other_names_or_types_are_refused() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"other": [[1, 2]]}), file)
    with pytest.raises(ValueError, match="not 2 tokens in a sequence"):
        ShardReader(io.BytesIO(file.getvalue()), ShardShape(1, 2, 300, 4))
