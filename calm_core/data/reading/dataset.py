"""The sequences of a dataset, or of a mixture of datasets, by their number."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from calm_core.data.damage import is_damage
from calm_core.data.reading.order import BLOCK_SHARDS, Group, Numbers
from calm_core.data.reading.shard_files import ShardFiles
from calm_core.data.shards import ShardReader, ShardShape
from calm_core.data.tokenizers.stored import TOKENIZER_NAME, tokenizer_of
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, ConfigError, first_line
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts, Facts, MixtureFacts, Packing, Split

DECODERS = 2  # threads that read row groups at a time
_KEPT_GROUPS = 16  # decoded, for readers that go by number
_OPEN_SHARDS = 4 * BLOCK_SHARDS * DECODERS
_GROUP_BYTES = 64  # of a file, that each row group takes at least
_EQUAL = ("vocab_size", "pad_id", "eos_id", "bos_id", "packing", "sequence_length", "document_alignment")

Sequences = npt.NDArray[np.unsignedinteger]


class Source(NamedTuple):
    """Where a sequence lies: the dataset, its shard's path there, and the row in it, from 0 on."""

    dataset: str
    shard: str
    row: int


class Dataset(Protocol):
    """The sequences of one split of a dataset, or of several that are read as one.

    Attributes:
        uri, digest: Of the artifact.
        tokenizer: What its tokens mean.
        tokenizer_sha256: Equal hashes say equal tokenizers.
        pad_id, eos_id: The special tokens.
        bos_id: The token that begins each document; None: none does.
        packing: How documents became sequences.
        vocab_size: One more than the highest token.
        sequence_length: T, tokens in a sequence.
        num_sequences: Sequences of all parts.
        parts: The datasets that it is made of; one that is not mixed is its only part.
        weights: The share of each part in every batch.
    """

    uri: str
    digest: str
    tokenizer: Tokenizer
    tokenizer_sha256: str
    pad_id: int
    eos_id: int
    bos_id: int | None
    packing: Packing
    vocab_size: int
    sequence_length: int
    num_sequences: int

    @property
    def parts(self) -> Sequence["TokenDataset"]: ...

    @property
    def weights(self) -> Sequence[float]: ...

    def rows(self, indices: Numbers) -> Numbers:
        """Sequences by their number, int64 [len(indices), T]."""
        ...


class TokenDataset:
    """The sequences of one split of a `dataset` artifact.

    Args:
        uri: The artifact.
        split: "train" or "validation".

    Raises:
        ArtifactError: The artifact is missing, half-written or damaged (found when a shard is first read).
    """

    def __init__(self, uri: str, split: Split) -> None:
        self.artifact = Artifact(uri, DatasetFacts)
        self.uri, self.digest = uri, self.artifact.digest
        self.facts = facts = self.artifact.facts
        self.pad_id, self.eos_id, self.bos_id = facts.pad_id, facts.eos_id, facts.bos_id
        self.packing = facts.packing
        self.vocab_size, self.sequence_length = facts.vocab_size, facts.sequence_length
        self.tokenizer_sha256 = self.artifact.entry(TOKENIZER_NAME).sha256
        self.tokenizer = tokenizer_of(self.artifact, facts)
        self._shards = shards = facts.splits[split].shards
        for shard in shards:
            if shard.rows // facts.rows_per_group > self.artifact.entry(shard.path).size // _GROUP_BYTES:
                raise self.artifact.damaged(shard.path, f"too small for {shard.rows:,} sequences")
        self.num_sequences = sum(shard.rows for shard in shards)
        self.groups_of_shard = groups_of([shard.rows for shard in shards], facts.rows_per_group)
        self._groups = [group for groups in self.groups_of_shard for group in groups]
        self._group_starts = [group.start for group in self._groups]
        self._files = ShardFiles(self.artifact)
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()  # by shard and thread, oldest first
        self._readers_lock = threading.Lock()
        self._decoded: OrderedDict[int, Sequences] = OrderedDict()  # by the number of the group, oldest first

    @property
    def parts(self) -> Sequence["TokenDataset"]:
        """Itself: it is not mixed."""
        return [self]

    @property
    def weights(self) -> Sequence[float]:
        """Its share in every batch."""
        return [1.0]

    def rows(self, indices: Numbers) -> Numbers:
        """Sequences by their number, int64 [len(indices), T]."""
        out = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for i, index in enumerate(indices.tolist()):
            number = bisect.bisect_right(self._group_starts, index) - 1  # the last group that starts no later
            if number not in self._decoded:
                self._decoded[number] = self.read_group(self._groups[number])
                if len(self._decoded) > _KEPT_GROUPS:
                    self._decoded.popitem(last=False)
            self._decoded.move_to_end(number)
            out[i] = self._decoded[number][index - self._group_starts[number]]
        return out

    def read_group(self, group: Group) -> Sequences:
        """The sequences of a row group, [rows, T]; each thread that asks has a reader of its own.

        Raises:
            ArtifactError: Its shard is missing, or damaged, also after it was checked.
        """
        try:
            return self._reader(group.shard).read_group(group.number)
        except Exception as error:  # Arrow has several kinds for damage
            path = self._shards[group.shard].path
            if is_damage(error):
                raise self.artifact.damaged(path) from None
            if isinstance(error, ValueError):  # it is whole, and not as the manifest says
                raise self.artifact.damaged(path, first_line(error)) from None
            raise

    def source_of(self, group: Group, row: int) -> Source:
        """Where a row of a row group lies."""
        return Source(self.uri, self._shards[group.shard].path, group.number * self.facts.rows_per_group + row)

    def numbers_of(self, shard: str) -> range:
        """The numbers of a shard's sequences, row by row, by its path."""
        groups = self.groups_of_shard[[told.path for told in self._shards].index(shard)]
        return range(groups[0].start, groups[-1].start + groups[-1].rows)

    def fetch(self, shard: int) -> None:
        """Bring a shard to this machine, where it is not here yet, and check it."""
        self._files.open(self._shards[shard].path).close()

    def _reader(self, shard: int) -> ShardReader:
        key = (shard, threading.get_ident())
        with self._readers_lock:
            if key in self._readers:
                self._readers.move_to_end(key)
                return self._readers[key]
        facts, told = self.facts, self._shards[shard]
        shape = ShardShape(told.rows, facts.sequence_length, facts.vocab_size, facts.rows_per_group)
        reader = ShardReader(self._files.open(told.path), shape)
        with self._readers_lock:
            self._readers[key] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        return reader


def require_alike(datasets: Sequence[Artifact[DatasetFacts]]) -> None:
    """Refuse to mix datasets whose sequences do not mean the same.

    Raises:
        ConfigError: They have other tokenizers or lengths.
    """
    first, *others = datasets
    for other in others:
        if other.entry(TOKENIZER_NAME).sha256 != first.entry(TOKENIZER_NAME).sha256:
            raise ConfigError(f"{other.uri}: has another tokenizer than {first.uri}; prepare it with tokenizer.source")
        for name in _EQUAL:
            if getattr(other.facts, name) != getattr(first.facts, name):
                raise ConfigError(f"{other.uri}: has another {name} than {first.uri}; prepare it anew")


def groups_of(rows_of_shard: Sequence[int], rows_per_group: int) -> list[list[Group]]:
    """The row groups of each shard; all but a shard's last one are full."""
    starts = [0, *accumulate(rows_of_shard)]
    return [
        [
            Group(shard, first // rows_per_group, min(rows_per_group, rows - first), starts[shard] + first)
            for first in range(0, rows, rows_per_group)
        ]
        for shard, rows in enumerate(rows_of_shard)
    ]


class Mixture:
    """The sequences of one split of a `mixture` artifact: several datasets, read by weight.

    Raises:
        ArtifactError: It, or one of its datasets, is missing, damaged, or not the one that was mixed.
    """

    parts: list[TokenDataset]
    weights: list[float]

    def __init__(self, uri: str, split: Split) -> None:
        artifact = Artifact(uri, MixtureFacts)
        facts = artifact.facts
        self.uri, self.digest = uri, artifact.digest
        self.weights = facts.weights
        self.parts = [TokenDataset(part, split) for part in facts.datasets]
        for part, digest in zip(self.parts, facts.digests, strict=True):
            if part.digest != digest:
                raise ArtifactError(f"{part.uri}: is not the dataset that was mixed into {self.uri}; mix again")
        require_alike([part.artifact for part in self.parts])
        first = self.parts[0]
        self.tokenizer, self.tokenizer_sha256 = first.tokenizer, first.tokenizer_sha256
        self.pad_id, self.eos_id, self.bos_id = first.pad_id, first.eos_id, first.bos_id
        self.packing = first.packing
        self.vocab_size, self.sequence_length = first.vocab_size, first.sequence_length
        self._starts = [0, *accumulate(part.num_sequences for part in self.parts)]  # the number of each part's first
        self.num_sequences = self._starts[-1]

    def rows(self, indices: Numbers) -> Numbers:
        """Sequences by their number, int64 [len(indices), T]: those of the first dataset, then of the next."""
        part_of = np.searchsorted(self._starts, indices, side="right") - 1  # the last part that starts no later
        out = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for number, part in enumerate(self.parts):
            out[part_of == number] = part.rows(indices[part_of == number] - self._starts[number])
        return out


def require_whole_chunks(dataset: Dataset, chunk_size: int) -> None:
    """Refuse chunks that would straddle documents which were packed so that they need not.

    Raises:
        ConfigError: The documents do not begin on a multiple of the chunk size.
    """
    for part in dataset.parts:
        if part.packing == "documents" and part.facts.document_alignment % chunk_size:
            raise ConfigError(
                f"{part.uri}: its documents begin on multiples of {part.facts.document_alignment} tokens, which is no "
                f"multiple of the chunk size {chunk_size}; prepare it with another data.document_alignment"
            )


def open_dataset(uri: str, split: Split) -> Dataset:
    """The sequences of one split of a `dataset` or a `mixture` artifact.

    Raises:
        ArtifactError: The artifact is missing, half-written or damaged.
    """
    facts: Facts = Artifact(uri, DatasetFacts, MixtureFacts).facts
    return Mixture(uri, split) if isinstance(facts, MixtureFacts) else TokenDataset(uri, split)
