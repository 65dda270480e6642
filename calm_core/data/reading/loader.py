"""Batches of sequences in an order that depends on (seed, epoch) alone."""

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from calm_core.data.damage import is_damage
from calm_core.data.reading.order import BLOCK_SHARDS, EpochOrder, Group, MixOrder, Numbers
from calm_core.data.reading.shard_files import ShardFiles
from calm_core.data.shards import ShardReader
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact

_KEPT_GROUPS = 16  # decoded, for readers that go by number
_WINDOWS_AHEAD = 3
_DECODERS = 2  # threads
_OPEN_SHARDS = 4 * BLOCK_SHARDS * _DECODERS
_FETCHES = 4  # shards that are fetched at a time

Sequences = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Batch:
    """Sequences int64 [B, T], and their positions in the endless global stream (they seed the noise)."""

    tokens: torch.Tensor
    positions: list[int]


class TokenDataset:
    """The sequences of one split of a `dataset` artifact.

    Args:
        uri: The artifact.
        split: "train" or "validation".

    Raises:
        ArtifactError: The artifact is missing, half-written or damaged (found when a shard is first read).
    """

    def __init__(self, uri: str, split: str) -> None:
        self._artifact = Artifact(uri, "dataset")
        results = self._artifact.manifest.results
        self.results = results
        self.uri, self.digest = uri, self._artifact.digest
        self.tokenizer_sha256 = self._artifact.entry("tokenizer.json").sha256
        self.pad_id, self.eos_id = results["pad_id"], results["eos_id"]
        self.tokenizer = Tokenizer.from_bytes(self._artifact.read("tokenizer.json"), self.pad_id, self.eos_id)
        self.vocab_size: int = results["vocab_size"]
        self.sequence_length: int = results["sequence_length"]
        shards = results["splits"][split]["shards"]
        self._shard_paths: list[str] = [shard["path"] for shard in shards]
        self.groups_of_shard = _groups_of([shard["rows"] for shard in shards], results["rows_per_group"])
        self._groups = [group for groups in self.groups_of_shard for group in groups]
        self._group_starts = [group.start for group in self._groups]
        self.num_sequences: int = sum(shard["rows"] for shard in shards)
        self._files = ShardFiles(self._artifact)
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._readers_lock = threading.Lock()
        self._decoded: OrderedDict[int, Sequences] = OrderedDict()

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sequences by their number, int64 [len(indices), T]."""
        out = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for i, index in enumerate(indices.tolist()):
            number = bisect.bisect_right(self._group_starts, index) - 1
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
            if not is_damage(error):
                raise
            raise self._artifact.damaged(self._shard_paths[group.shard]) from None

    def fetch(self, shard: int) -> None:
        """Bring a shard to this machine, where it is not here yet, and check it."""
        self._files.open(self._shard_paths[shard]).close()

    def _reader(self, shard: int) -> ShardReader:
        key = (shard, threading.get_ident())
        with self._readers_lock:
            if key in self._readers:
                self._readers.move_to_end(key)
                return self._readers[key]
        reader = ShardReader(self._files.open(self._shard_paths[shard]))
        with self._readers_lock:
            self._readers[key] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        return reader


def _groups_of(rows_of_shard: Sequence[int], rows_per_group: int) -> list[list[Group]]:
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

    def __init__(self, artifact: Artifact, split: str) -> None:
        results = artifact.manifest.results
        self.uri, self.digest = artifact.uri, artifact.digest
        self.weights: list[float] = results["weights"]
        self.parts = [TokenDataset(uri, split) for uri in artifact.manifest.origins["datasets"]]
        for part, digest in zip(self.parts, results["digests"], strict=True):
            if part.digest != digest:
                raise ArtifactError(f"{part.uri}: is not the dataset that was mixed into {self.uri}; mix again")
        first = self.parts[0]
        self.tokenizer, self.tokenizer_sha256 = first.tokenizer, first.tokenizer_sha256
        self.pad_id, self.eos_id = first.pad_id, first.eos_id
        self.vocab_size, self.sequence_length = first.vocab_size, first.sequence_length
        self._starts = [0, *accumulate(part.num_sequences for part in self.parts)]
        self.num_sequences = self._starts[-1]

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sequences by their number, int64 [len(indices), T]: those of the first dataset, then of the next."""
        part_of = np.searchsorted(self._starts, indices, side="right") - 1
        out = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for number, part in enumerate(self.parts):
            out[part_of == number] = part.rows(indices[part_of == number] - self._starts[number])
        return out


def open_dataset(uri: str, split: str) -> TokenDataset | Mixture:
    """The sequences of one split of a `dataset` or a `mixture` artifact.

    Raises:
        ArtifactError: The artifact is missing, half-written or damaged.
    """
    artifact = Artifact(uri, "dataset", "mixture")
    return Mixture(artifact, split) if artifact.manifest.kind == "mixture" else TokenDataset(uri, split)


class _Place(NamedTuple):
    epoch: int
    window: int


class _Shard(NamedTuple):
    epoch: int
    shard: int


class _Decoding(NamedTuple):
    """A window that begins at a place of the stream, and its row groups, which threads decode."""

    start: int
    order: Numbers
    groups: list[Future[Sequences]]


class _Decoded(NamedTuple):
    """A window's sequences, its places in the stream [start, end), and the row that each place holds."""

    start: int
    end: int
    order: Numbers
    rows: Sequences


class Stream:
    """The endless sequence of a dataset's epochs, read ahead by threads.

    Args:
        dataset: The sequences.
        seed: Of the order.

    Attributes:
        wait_seconds: How long sequences have been waited for in all.
    """

    def __init__(self, dataset: TokenDataset, seed: int) -> None:
        self.dataset = dataset
        self.wait_seconds = 0.0
        self._seed = seed
        self._orders: dict[int, EpochOrder] = {}
        self._windows: dict[_Place, _Decoding] = {}
        self._current: _Decoded | None = None
        self._fetched: dict[_Shard, Future[None]] = {}
        self._decoding = ThreadPoolExecutor(_DECODERS, "decode")
        self._fetching = ThreadPoolExecutor(_FETCHES, "fetch")

    def read(self, position: int, out: npt.NDArray[np.int64], stride: int) -> None:
        """Fill `out`, [n, T], with the sequences from a position of the stream on.

        Args:
            position: The first one's.
            out: Where they are written.
            stride: How much further on the next call will be.
        """
        end = position + len(out)
        current = self._current
        if current and current.start <= position and end <= current.end:  # nearly always
            out[:] = current.rows[current.order[position - current.start : end - current.start]]
            return
        now = position // self.dataset.num_sequences
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch >= now}
        places = self._places(position, len(out))
        self._read_ahead(places, position, len(out), stride)
        for place in places:
            self._current = window = self._wait_for(self._windows[place])
            first, last = max(position, window.start), min(end, window.end)
            out[first - position : last - position] = window.rows[
                window.order[first - window.start : last - window.start]
            ]

    def _read_ahead(self, places: list[_Place], position: int, number: int, stride: int) -> None:
        """Decode the windows that are needed now and next, and fetch the shards behind them."""
        wanted = dict.fromkeys(places)
        for _ in range(_WINDOWS_AHEAD):
            last = next(reversed(wanted))
            window_end = last.epoch * self.dataset.num_sequences + self._order(last.epoch).end_of(last.window)
            position += stride * max(1, -(-(window_end - position - number + 1) // stride))
            wanted |= dict.fromkeys(self._places(position, number))
        self._windows = {place: self._windows.get(place) or self._decode(place) for place in wanted}

    def _places(self, position: int, number: int) -> list[_Place]:
        """The windows that hold sequences of the stream."""
        places = []
        end = position + number
        while position < end:
            epoch, place = divmod(position, self.dataset.num_sequences)
            order = self._order(epoch)
            places.append(_Place(epoch, order.window_at(place)))
            position = epoch * self.dataset.num_sequences + order.end_of(places[-1].window)
        return places

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = EpochOrder(self.dataset.groups_of_shard, self._seed, epoch)
        return self._orders[epoch]

    def _decode(self, place: _Place) -> _Decoding:
        order = self._order(place.epoch)
        window = order.window(place.window)
        needed = [_Shard(place.epoch, shard) for shard in order.shards_about(place.window)]
        self._fetched = {
            key: self._fetched.get(key) or self._fetching.submit(self.dataset.fetch, key.shard) for key in needed
        }
        groups = [self._decoding.submit(self.dataset.read_group, group) for group in window.groups]
        return _Decoding(place.epoch * self.dataset.num_sequences + window.start, window.order, groups)

    def _wait_for(self, window: _Decoding) -> _Decoded:
        started = time.perf_counter()
        late = not all(group.done() for group in window.groups)
        rows = [group.result() for group in window.groups]
        if late:
            self.wait_seconds += time.perf_counter() - started
        return _Decoded(window.start, window.start + len(window.order), window.order, np.concatenate(rows))


class Loader:
    """An endless stream of global batches; each rank takes its contiguous slice of every one.

    Epochs follow each other without dropping a sequence, so a batch may hold the end of one and the start of the next.
    Of a mixture, each batch holds the parts' sequences in the order that `MixOrder` gives.

    Raises:
        ConfigError: The ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        dataset: TokenDataset | Mixture,
        global_batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if global_batch_size % world_size:
            raise ConfigError(f"global_batch_size ({global_batch_size}) must be a multiple of the {world_size} ranks")
        self.dataset = dataset
        parts = dataset.parts if isinstance(dataset, Mixture) else [dataset]
        self._streams = [Stream(part, seed) for part in parts]
        self._mix = MixOrder(dataset.weights if isinstance(dataset, Mixture) else [1.0], seed)
        self._global_batch_size = global_batch_size
        self._rank, self._world_size = rank, world_size
        self._position = start

    @property
    def wait_seconds(self) -> float:
        """How long batches have been waited for in all, because reading was slower than their use."""
        return sum(stream.wait_seconds for stream in self._streams)

    def next_batch(self) -> Batch:
        """This rank's share of the next global batch."""
        size = self._global_batch_size // self._world_size
        first = self._position + self._rank * size
        rows = np.empty((size, self.dataset.sequence_length), dtype=np.int64)
        if len(self._streams) == 1:
            self._streams[0].read(first, rows, self._global_batch_size)
        else:
            self._read_mixed(first, rows)
        self._position += self._global_batch_size
        return Batch(torch.from_numpy(rows), list(range(first, first + size)))

    def _read_mixed(self, first: int, out: npt.NDArray[np.int64]) -> None:
        choice = self._mix.parts(first, len(out))
        before = self._mix.counts(first)
        after = self._mix.counts(first + self._global_batch_size)
        for part, stream in enumerate(self._streams):
            if number := int((choice == part).sum()):
                rows = np.empty((number, out.shape[1]), dtype=np.int64)
                stream.read(int(before[part]), rows, int(max(after[part] - before[part], 1)))
                out[choice == part] = rows

    def state_dict(self) -> dict[str, int]:
        """Where the stream is; the same for every rank and world size."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, also with another number of ranks."""
        self._position = state["position"]
