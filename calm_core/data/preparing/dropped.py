"""Which documents of a partition are dropped."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from calm_core.data.damage import is_damage
from calm_core.data.shards import column_of
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DuplicatesFacts

KEPT, DUPLICATE, NEAR_DUPLICATE = range(3)

_SLICE_DOCUMENTS = 1 << 20  # that are written at a time; whole bytes of bits


class Dropped:
    """What is known so far of a partition's documents, in two bits each: duplicate, near-duplicate.

    A document is bit `document % 8`, from the highest, of byte `document // 8`: the order of `numpy.unpackbits`.
    """

    def __init__(self, documents: int) -> None:
        self.documents = documents

    # Made when they are used: by then the documents have been counted, and are not only what a manifest says.
    @cached_property
    def _exact(self) -> npt.NDArray[np.uint8]:
        return self._bits()

    @cached_property
    def _near(self) -> npt.NDArray[np.uint8]:
        return self._bits()

    def _bits(self) -> npt.NDArray[np.uint8]:
        return np.zeros(-(-self.documents // 8), np.uint8)  # rounded up

    def mark(self, documents: npt.NDArray[np.uint32], *, near: bool) -> None:
        """Set documents' bits."""
        bits = self._near if near else self._exact
        masks = (0b1000_0000 >> (documents & 7)).astype(np.uint8)
        np.bitwise_or.at(bits, documents >> 3, masks)  # `bits[...] |= masks` would keep one document of each byte alone

    def write(self, writer: ArtifactWriter[DuplicatesFacts], path: str) -> tuple[int, int]:
        """Write what becomes of each document; returns how many are duplicates, and near-duplicates."""
        exact_count = near_count = 0
        schema = pa.schema({"kind": pa.uint8()})
        with (
            writer.create(path) as file,
            pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd") as table,
        ):
            for start in range(0, self.documents, _SLICE_DOCUMENTS):
                stop = min(start + _SLICE_DOCUMENTS, self.documents)
                exact, near = (_unpacked(bits, start, stop) for bits in (self._exact, self._near))
                near &= 1 - exact  # what is both counts as a duplicate
                exact_count += int(exact.sum())
                near_count += int(near.sum())
                kinds = column_of(exact * DUPLICATE + near * NEAR_DUPLICATE, pa.uint8())
                table.write_table(pa.Table.from_arrays([kinds], schema=schema))
        return exact_count, near_count


def _unpacked(bits: npt.NDArray[np.uint8], start: int, stop: int) -> npt.NDArray[np.uint8]:
    """Bits [start, stop) as a number each; `start` is a multiple of 8."""
    return np.unpackbits(bits[start // 8 : -(-stop // 8)])[: stop - start]


def read_dropped(
    artifact: Artifact[DuplicatesFacts], path: str, first: int = 0, count: int | None = None
) -> Iterator[int]:
    """KEPT, DUPLICATE or NEAR_DUPLICATE for each of a partition's documents, in order.

    Args:
        artifact: The duplicates.
        path: The file of the partition there.
        first: The first document that is of interest.
        count: How many are; None: all from there on.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    data = artifact.open(path)
    with _undamaged(artifact, path):
        file = pq.ParquetFile(data)
    if file.schema_arrow.types != [pa.uint8()]:
        raise artifact.damaged(path, "no list of dropped documents")
    end = file.metadata.num_rows if count is None else first + count
    return _kinds(file, artifact, path, first, end)


def _kinds(file: pq.ParquetFile, artifact: Artifact[DuplicatesFacts], path: str, first: int, end: int) -> Iterator[int]:
    batches, start = file.iter_batches(), 0
    while True:
        with _undamaged(artifact, path):
            kinds = next(batches, None)
        if kinds is None or start >= end:
            return
        yield from kinds.column(0)[max(first - start, 0) : max(end - start, 0)].to_pylist()
        start += len(kinds)


@contextmanager
def _undamaged(artifact: Artifact[DuplicatesFacts], path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Arrow has several kinds for damage
        if not is_damage(error):
            raise
        raise artifact.damaged(path, "no list of dropped documents") from None
