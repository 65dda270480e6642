"""Duplicates over all partitions, in memory that does not grow with the sources but for two bits a document.

Each partition writes a key for every document, sorted: the hash of its text, and one for each band of its MinHash
signature where near-duplicates are looked for. Documents that share a key are found by reading one range of keys after
the other from all partitions; the first one in the order of the sources stays.

A file of keys is an index, the number of its first record in each of BUCKETS equal ranges of keys, and the records.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH

from calm_core.data.shards import column_of
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DuplicatesFacts, Facts, ScanFacts

TEXT = "text"
KEPT, DUPLICATE, NEAR_DUPLICATE = range(3)

BUCKETS = 1024
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u4")])
_INDEX = np.dtype("<u8")
_INDEX_BYTES = (BUCKETS + 1) * _INDEX.itemsize
_BUCKET_SHIFT = np.uint64(64 - (BUCKETS - 1).bit_length())  # a key's bucket is its leading bits
_KEY_BYTES = 16
_RUN_DOCUMENTS = 1 << 20  # keys that are sorted at a time
_RANGE_DOCUMENTS = 1 << 22  # keys of all partitions that are compared at a time
_FILES_AT_A_TIME = 16
_SLICE_DOCUMENTS = 1 << 20
_PERMUTATIONS, _SHINGLE_WORDS = 128, 5

Records = npt.NDArray[np.void]
Numbers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


class KeyWriter:
    """Writes the keys of a partition's documents as sorted runs, keys/<name>-<run>.bin."""

    def __init__(self, writer: ArtifactWriter[ScanFacts], name: str) -> None:
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
        # A 16-byte key as two big-endian numbers: compared one after the other, they sort as the bytes do.
        high, low = np.frombuffer(bytes(self._keys), dtype=">u8").reshape(-1, 2).T
        order = np.lexsort((low, high))
        records = np.empty(len(order), dtype=_RECORD)
        records["high"], records["low"], records["document"] = high[order], low[order], order + self._first
        # Entry b is the number of the first record in bucket b or later; the last entry, the number of all.
        index = np.searchsorted(records["high"] >> _BUCKET_SHIFT, np.arange(BUCKETS + 1, dtype=np.uint64))
        with self._writer.create(f"keys/{self._name}-{self._run:05d}.bin") as file:
            file.write(index.astype(_INDEX).tobytes())
            file.write(records.tobytes())
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


class DocumentKeys(NamedTuple):
    """The keys of one partition's documents.

    Attributes:
        artifact: Where keys/ lies.
        folder: What stands before the names of its keys there.
        dropped: Two arrays of bits, exact and near, that are set here; None where the documents stay anyway.
    """

    artifact: Artifact[Facts]
    folder: str
    dropped: tuple[Bits, Bits] | None


def new_bits(documents: int) -> tuple[Bits, Bits]:
    """No document is dropped."""
    size = -(-documents // 8)
    return np.zeros(size, np.uint8), np.zeros(size, np.uint8)


def mark(sources: list[DocumentKeys], name: str) -> None:
    """Set the bits of all documents that share a key of this name with an earlier one.

    Raises:
        ArtifactError: A file of keys is missing or damaged.
    """
    files = [
        _KeyFile(number, source.artifact, path)
        for number, source in enumerate(sources)
        for path in key_files(source.artifact, f"{source.folder}{name}-")
    ]
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        offsets = list(pool.map(_KeyFile.offsets, files))
        for first, end in _ranges(offsets):
            parts = pool.map(_KeyFile.records, files, offsets, repeat(first), repeat(end))
            unique: list[Records] = []
            for file, records in zip(files, parts, strict=True):
                repeats = _equals_previous(records)  # dropped at once: one text repeated must not fill the memory
                _set(sources[file.source], records["document"][repeats], name)
                unique.append(records[~repeats])
            _mark_repeats(sources, [file.source for file in files], unique, name)


class _KeyFile(NamedTuple):
    """One run of keys, and the number of its source."""

    source: int
    artifact: Artifact[Facts]
    path: str

    def offsets(self) -> Numbers:
        """The number of the first record of each bucket, and of all, int64 [BUCKETS + 1]; the file is checked."""
        self.artifact.check(self.path)
        return np.frombuffer(self._read(0, _INDEX_BYTES), dtype=_INDEX).astype(np.int64)

    def records(self, offsets: Numbers, first: int, end: int) -> Records:
        """The records of buckets [first, end)."""
        start, stop = (_INDEX_BYTES + int(offsets[bucket]) * _RECORD.itemsize for bucket in (first, end))
        return np.frombuffer(self._read(start, stop) if start < stop else b"", dtype=_RECORD)

    def _read(self, start: int, stop: int) -> bytes:
        return storage.read(storage.join(self.artifact.uri, self.path), start, stop)


def _ranges(offsets: list[Numbers]) -> Iterator[tuple[int, int]]:
    """Runs of buckets that together hold about as many keys as are compared at a time."""
    if offsets:
        # A run ends where the number of keys before a bucket, over all files, passes the next multiple of the size.
        before = np.sum(offsets, axis=0)[:BUCKETS]
        firsts = np.flatnonzero(np.diff(before // _RANGE_DOCUMENTS, prepend=-1)).tolist()
        yield from pairwise([*firsts, BUCKETS])


def _equals_previous(records: Records) -> npt.NDArray[np.bool_]:
    """Of records in the order of their keys: which have the key of the one before."""
    equal = np.zeros(len(records), bool)
    equal[1:] = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    return equal


def _mark_repeats(sources: list[DocumentKeys], numbers: list[int], parts: list[Records], name: str) -> None:
    """Set the bits of records whose key is also in an earlier part.

    Args:
        sources: All sources.
        numbers: The source of each part.
        parts: Records in the order of the sources, each key once in a part; they are used up.
        name: Of the keys.
    """
    source_of = np.repeat(np.array(numbers, dtype=np.int32), [len(part) for part in parts])
    records = np.concatenate(parts)
    parts.clear()
    order = np.lexsort((records["low"], records["high"]))  # stable: equal keys stay in the order of the sources
    repeated = order[_equals_previous(records[order])]
    for number in np.unique(source_of[repeated]).tolist():
        _set(sources[number], records["document"][repeated[source_of[repeated] == number]], name)


def _set(source: DocumentKeys, documents: npt.NDArray[np.uint32], name: str) -> None:
    if source.dropped is not None:
        bits = source.dropped[0 if name == TEXT else 1]
        # Document d is bit d % 8, from the left, of byte d // 8; `at`, since several may lie in one byte.
        np.bitwise_or.at(bits, documents >> 3, (128 >> (documents & 7)).astype(np.uint8))


def write_dropped(
    writer: ArtifactWriter[DuplicatesFacts], path: str, documents: int, dropped: tuple[Bits, Bits]
) -> tuple[int, int]:
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
            kinds = column_of(exact * DUPLICATE + near * NEAR_DUPLICATE, pa.uint8())
            table.write_table(pa.Table.from_arrays([kinds], schema=schema))
    return exact_count, near_count


def read_dropped(artifact: Artifact[DuplicatesFacts], path: str) -> tuple[int, Iterator[int]]:
    """How many documents a partition has, and KEPT, DUPLICATE or NEAR_DUPLICATE for each of them, in order."""
    file = pq.ParquetFile(artifact.open(path))
    return file.metadata.num_rows, (kind for batch in file.iter_batches() for kind in batch.column(0).to_pylist())


def key_files(artifact: Artifact[Facts], folder: str) -> list[str]:
    """Paths of an artifact's keys."""
    return [entry.path for entry in artifact.manifest.files if entry.path.startswith(folder)]
