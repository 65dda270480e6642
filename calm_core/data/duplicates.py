"""Duplicates over all partitions, in memory that does not grow with the sources but for two bits a document.

Each partition writes a key for every document, sorted: the hash of its text, and one for each band of its MinHash
signature where near-duplicates are looked for. Documents that share a key are found by reading one range of keys after
the other from all partitions; the first one in the order of the sources stays.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH

from calm_core import storage
from calm_core.artifact import Artifact, ArtifactWriter

TEXT = "text"
KEPT, DUPLICATE, NEAR_DUPLICATE = range(3)

_KEY_BYTES = 16
_RUN_DOCUMENTS = 1 << 20  # keys that are sorted at a time
_RANGE_DOCUMENTS = 1 << 22  # keys of all partitions that are compared at a time
_GROUP_ROWS = 1 << 16
_SLICE_DOCUMENTS = 1 << 20
_PERMUTATIONS, _SHINGLE_WORDS = 128, 5

Numbers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


class KeyWriter:
    """Writes the keys of a partition's documents as sorted runs, keys/<name>-<run>.parquet."""

    def __init__(self, writer: ArtifactWriter, name: str) -> None:
        self._writer, self._name = writer, name
        self._keys = bytearray()
        self._first = 0  # document of the buffer's first key
        self._run = 0

    def add(self, key: bytes) -> None:
        """The key of the next document, 16 bytes spread evenly."""
        self._keys += key
        if len(self._keys) >= _KEY_BYTES * _RUN_DOCUMENTS:
            self.close()

    def close(self) -> None:
        """Write what is still in memory."""
        if not self._keys:
            return
        high, low = np.frombuffer(bytes(self._keys), dtype=">u8").astype(np.uint64).reshape(-1, 2).T
        order = np.lexsort((low, high))
        table = pa.table({"high": high[order], "low": low[order], "document": order + self._first})
        with self._writer.create(f"keys/{self._name}-{self._run:05d}.parquet") as file:
            pq.write_table(table, pa.PythonFile(file, "w"), compression="zstd", row_group_size=_GROUP_ROWS)
        self._first += len(order)
        self._run += 1
        self._keys.clear()


def text_key(text_hash: bytes) -> bytes:
    """The key of a text's SHA-256."""
    return text_hash[:_KEY_BYTES]


@cache
def _minhash(threshold: float) -> tuple[MinHash, int, int]:
    """A signature to begin with, and its bands and rows: the split that errs least about a threshold."""
    lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    return MinHash(_PERMUTATIONS, seed=1), lsh.b, lsh.r


def band_names(threshold: float) -> list[str]:
    """Names of the keys of near-duplicates; none when they are not looked for."""
    return [f"band-{i:03d}" for i in range(_minhash(threshold)[1])] if threshold else []


def band_keys(text: str, threshold: float) -> Iterator[bytes]:
    """One key for each band of the MinHash signature of a text's five-word shingles (Broder 1997).

    Two texts share a key in some band with a probability that rises steeply about the threshold of their Jaccard
    similarity.
    """
    empty, bands, rows = _minhash(threshold)
    words = text.lower().split()
    shingles = {" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(max(1, len(words) - _SHINGLE_WORDS + 1))}
    signature = empty.copy()
    signature.update_batch([shingle.encode("utf-8") for shingle in sorted(shingles)])
    values = np.asarray(signature.hashvalues, dtype=">u8")
    for i in range(bands):
        yield hashlib.blake2b(values[i * rows : (i + 1) * rows].tobytes(), digest_size=_KEY_BYTES).digest()


class Source(NamedTuple):
    """The keys of one partition.

    Attributes:
        artifact: Where keys/ lies.
        folder: What stands before the names of its keys there.
        dropped: Two arrays of bits, exact and near, that are set here; None where the documents stay anyway.
    """

    artifact: Artifact
    folder: str
    dropped: tuple[Bits, Bits] | None


def new_bits(documents: int) -> tuple[Bits, Bits]:
    """No document is dropped."""
    size = -(-documents // 8)
    return np.zeros(size, np.uint8), np.zeros(size, np.uint8)


def mark(sources: list[Source], name: str) -> None:
    """Set the bits of all documents that share a key of this name with an earlier one."""
    tables = [(number, table) for number, source in enumerate(sources) for table in _tables(source, name)]
    total = sum(table.metadata.num_rows for _, table in tables)
    if not total:
        return
    ranges = total // _RANGE_DOCUMENTS + 1
    bounds = [2**64 * i // ranges for i in range(ranges + 1)]
    for low, high in pairwise(bounds):
        parts = [(number, *_rows_between(table, low, high)) for number, table in tables]
        unique = [(number, *_first_of_each(sources[number], keys, docs, name)) for number, keys, docs in parts]
        keys = np.concatenate([keys for _, keys, _ in unique])
        documents = np.concatenate([documents for _, _, documents in unique])
        numbers = np.repeat([number for number, _, _ in unique], [len(part) for _, _, part in unique])
        order = np.lexsort((documents, numbers, keys[:, 1], keys[:, 0]))
        repeated = order[1:][(keys[order[1:]] == keys[order[:-1]]).all(1)]
        for number in np.unique(numbers[repeated]).tolist():
            _set(sources[number], documents[repeated[numbers[repeated] == number]], name)


def _tables(source: Source, name: str) -> list[pq.ParquetFile]:
    prefix = f"{source.folder}{name}-"
    paths = [entry.path for entry in source.artifact.manifest.files if entry.path.startswith(prefix)]
    for path in paths:
        source.artifact.check(path)
    return [pq.ParquetFile(storage.open_uri(storage.join(source.artifact.uri, path))) for path in paths]


def _rows_between(table: pq.ParquetFile, low: int, high: int) -> tuple[npt.NDArray[np.uint64], Numbers]:
    """Keys [rows, 2] whose first half is in [low, high), in order, and their documents."""
    statistics = [table.metadata.row_group(i).column(0).statistics for i in range(table.metadata.num_row_groups)]
    groups = [i for i, s in enumerate(statistics) if s.max >= low and s.min < high]
    rows = table.read_row_groups(groups)
    keys = np.stack([rows["high"].to_numpy(), rows["low"].to_numpy()], axis=1)
    inside = (keys[:, 0] >= np.uint64(low)) & (keys[:, 0] <= np.uint64(high - 1))
    return keys[inside], rows["document"].to_numpy()[inside]


def _first_of_each(
    source: Source, keys: npt.NDArray[np.uint64], documents: Numbers, name: str
) -> tuple[npt.NDArray[np.uint64], Numbers]:
    """Each key once: a text that one partition repeats without end must not fill the memory."""
    repeats = np.zeros(len(keys), bool)
    repeats[1:] = (keys[1:] == keys[:-1]).all(1)
    _set(source, documents[repeats], name)
    return keys[~repeats], documents[~repeats]


def _set(source: Source, documents: Numbers, name: str) -> None:
    if source.dropped is not None:
        bits = source.dropped[0 if name == TEXT else 1]
        np.bitwise_or.at(bits, documents >> 3, (128 >> (documents & 7)).astype(np.uint8))


def write_dropped(writer: ArtifactWriter, path: str, documents: int, dropped: tuple[Bits, Bits]) -> tuple[int, int]:
    """Write what becomes of each document of a partition; returns how many are duplicates, and near-duplicates."""
    exact_count = near_count = 0
    schema = pa.schema({"kind": pa.uint8()})
    with writer.create(path) as file, pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd") as table:
        for start in range(0, documents, _SLICE_DOCUMENTS):
            stop = min(start + _SLICE_DOCUMENTS, documents)
            exact, near = (np.unpackbits(bits[start // 8 : -(-stop // 8)])[: stop - start] for bits in dropped)
            near &= 1 - exact
            exact_count += int(exact.sum())
            near_count += int(near.sum())
            table.write_table(pa.table({"kind": exact * DUPLICATE + near * NEAR_DUPLICATE}, schema))
    return exact_count, near_count


def read_dropped(artifact: Artifact, path: str) -> Iterator[int]:
    """KEPT, DUPLICATE or NEAR_DUPLICATE for each document of a partition, in order."""
    for batch in pq.ParquetFile(artifact.open(path)).iter_batches():
        yield from batch.column(0).to_pylist()


def key_files(artifact: Artifact, folder: str) -> list[str]:
    """Paths of an artifact's keys."""
    return [entry.path for entry in artifact.manifest.files if entry.path.startswith(folder)]


def kept_only(documents: Iterable[Any], kinds: Iterable[int]) -> Iterator[Any]:
    """The documents that are not dropped."""
    return (document for document, kind in zip(documents, kinds, strict=True) if kind == KEPT)
