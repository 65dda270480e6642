"""Keys of documents: equal keys say equal texts, or nearly equal ones.

Each document has one key of its text, and one for each band of its MinHash signature where near-duplicates are looked
for. A key is 16 bytes of a hash, so keys are spread evenly over the numbers below 2^128.

A file holds the keys of one name as records in the order of the keys. Before them stands an index: all possible keys
are cut into BUCKETS equal ranges, and it says which record is the first of each.

    index      0 3 3 7 ... number of records          BUCKETS + 1 numbers
    records    k k k   k k k k   ...                  each the key (high, low) and the number of its document
               [0, 3)  [3, 7)                         bucket 0 and bucket 2; bucket 1 is empty: [3, 3)

So the records of any run of buckets are one range of bytes, in every file: equal keys of several files are found by
reading the same buckets of all of them.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

from calm_core.errors import ConfigError
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import Facts, ScanFacts

TEXT = "text"  # name of the keys of whole texts

BUCKETS = 1024
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u4")])
_INDEX = np.dtype("<u8")
_INDEX_BYTES = (BUCKETS + 1) * _INDEX.itemsize
_BUCKET_SHIFT = np.uint64(64 - (BUCKETS - 1).bit_length())  # leaves the first 10 bits of a key, its bucket
_KEY_BYTES = 16
_RUN_DOCUMENTS = 1 << 20  # keys that are sorted at a time
_PERMUTATIONS, _SHINGLE_WORDS = 128, 5
_BLOCK_WORDS = 1 << 14
_NEAR, _OLD_BAND = "near", re.compile(r"(^|-)band-\d+-\d+\.bin$")

# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai, Javanese and their kin, and what
# Unicode calls ideographic, Chinese characters and Japanese kana. Kept as it is: other ranges would be other keys.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u2fff"
    "\u3001-\u30ff\u31a0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9d"
    "\U00016fe0-\U0001b2ff\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")

Records = npt.NDArray[np.void]
Numbers = npt.NDArray[np.int64]


def text_key(text_hash: bytes) -> bytes:
    """The key of a text's SHA-256."""
    return text_hash[:_KEY_BYTES]


def band_names(threshold: float) -> list[str]:
    """Names of the keys of near-duplicates; none when they are not looked for."""
    return [f"{_NEAR}-{i:03d}" for i in range(_minhash(threshold)[1])] if threshold else []


def refuse_other_keys(artifact: Artifact[Facts], threshold: float) -> None:
    """Raise a ConfigError where a dataset's keys of near-duplicates cannot be compared with those of new documents."""
    names = {entry.path.rpartition("/")[2] for entry in artifact.manifest.files}
    if threshold and any(_OLD_BAND.search(name) for name in names):
        raise ConfigError(
            f"{artifact.uri}: its keys of near-duplicates are those of an earlier version, which knew words between "
            "spaces alone; prepare all sources anew as a dataset of its own, without data.extends"
        )


def words_of(text: str) -> Iterator[str]:
    """The words of a text, in lower case; in a script that puts no spaces between words, each character is one."""
    return (match[0] for match in _WORD.finditer(text.lower()))


def band_keys(text: str, threshold: float) -> Iterator[bytes]:
    """One key for each band of the MinHash signature of a text's five-word shingles (Broder 1997).

    Two texts share a key in some band with a probability that rises steeply about the threshold of their Jaccard
    similarity.
    """
    empty, bands, rows = _minhash(threshold)
    signature, words = empty.copy(), words_of(text)
    block = list(islice(words, _BLOCK_WORDS))
    while block:  # a signature of all shingles at once would take a KiB for each of them
        shingles = {" ".join(block[i : i + _SHINGLE_WORDS]) for i in range(max(1, len(block) - _SHINGLE_WORDS + 1))}
        signature.update_batch([shingle.encode("utf-8") for shingle in shingles])
        new = list(islice(words, _BLOCK_WORDS))
        block = block[1 - _SHINGLE_WORDS :] + new if new else []
    values = np.asarray(signature.hashvalues, dtype=">u8")
    for i in range(bands):
        yield hashlib.blake2b(values[i * rows : (i + 1) * rows].tobytes(), digest_size=_KEY_BYTES).digest()


@cache
def _minhash(threshold: float) -> tuple[MinHash, int, int]:
    """A signature to begin with, and its bands and rows: the split that errs least about a threshold."""
    lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    return MinHash(_PERMUTATIONS, seed=1), lsh.b, lsh.r


class KeyWriter:
    """Writes the keys of one name of a partition's documents, as sorted runs: keys/<name>-<run>.bin."""

    def __init__(self, writer: ArtifactWriter[ScanFacts], name: str) -> None:
        self._writer, self._name = writer, name
        self._keys = bytearray()
        self._first = 0  # document of the buffer's first key
        self._run = 0

    def add(self, keys: bytes) -> None:
        """The key of the next document, 16 bytes spread evenly; or those of the next ones."""
        self._keys += keys
        while len(self._keys) >= _KEY_BYTES * _RUN_DOCUMENTS:
            self._write()

    def close(self) -> None:
        """Write what is still in memory."""
        if self._keys:
            self._write()

    def _write(self) -> None:
        run = bytes(self._keys[: _KEY_BYTES * _RUN_DOCUMENTS])
        del self._keys[: len(run)]
        high, low = np.frombuffer(run, dtype=">u8").reshape(-1, 2).T
        order = np.lexsort((low, high))  # by high, then by low; equal keys in the order of the documents
        records = np.empty(len(order), dtype=_RECORD)
        records["high"], records["low"], records["document"] = high[order], low[order], order + self._first
        buckets = records["high"] >> _BUCKET_SHIFT
        index = np.searchsorted(buckets, np.arange(BUCKETS + 1, dtype=np.uint64))
        with self._writer.create(f"keys/{self._name}-{self._run:05d}.bin") as file:
            file.write(index.astype(_INDEX).tobytes())
            file.write(records.tobytes())
        self._first += len(order)
        self._run += 1


class KeyFile(NamedTuple):
    """One run of keys."""

    artifact: Artifact[Facts]
    path: str

    def starts(self) -> Numbers:
        """The number of the first record of each bucket, and of all, int64 [BUCKETS + 1].

        Raises:
            ArtifactError: The file is missing or damaged.
        """
        self.artifact.check(self.path)
        index = self._read(0, _INDEX_BYTES)
        starts = np.frombuffer(index[: len(index) // _INDEX.itemsize * _INDEX.itemsize], dtype=_INDEX).astype(np.int64)
        size = self.artifact.entry(self.path).size - _INDEX_BYTES
        if len(starts) <= BUCKETS or starts[0] or (np.diff(starts) < 0).any() or size != starts[-1] * _RECORD.itemsize:
            raise self.artifact.damaged(self.path, "its index is of other keys")
        return starts

    def records(self, starts: Numbers, first: int, end: int) -> Records:
        """The records of buckets [first, end)."""
        start, stop = (_INDEX_BYTES + int(starts[bucket]) * _RECORD.itemsize for bucket in (first, end))
        return np.frombuffer(self._read(start, stop) if start < stop else b"", dtype=_RECORD)

    def keys(self) -> bytes:
        """The keys as they were added: in the order of the documents."""
        records = self.records(self.starts(), 0, BUCKETS)
        ordered = records[np.argsort(records["document"])]
        return np.stack([ordered["high"], ordered["low"]], axis=1).astype(">u8").tobytes()

    def _read(self, start: int, stop: int) -> bytes:
        return storage.read(self.artifact.uri_of(self.path), start, stop)


def key_files(artifact: Artifact[Facts], prefix: str) -> list[KeyFile]:
    """An artifact's files of keys whose paths begin so, in their order."""
    return [KeyFile(artifact, entry.path) for entry in artifact.manifest.files if entry.path.startswith(prefix)]
