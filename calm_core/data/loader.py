"""Batches of sequences in an order that depends on (seed, epoch) alone."""

import bisect
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from calm_core import storage
from calm_core.artifact import Artifact
from calm_core.data.shards import ShardReader
from calm_core.data.tokenizer import Tokenizer
from calm_core.errors import ConfigError

_WINDOW_GROUPS = 8  # row groups that are shuffled together; two windows are kept decoded
_OPEN_SHARDS = 16


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
        self._shard_paths: list[str] = [shard["path"] for shard in results["splits"][split]["shards"]]
        self._rows_per_group: int = results["rows_per_group"]
        self.rows_of_group: list[int] = []
        self._group_places: list[tuple[int, int]] = []
        for number, shard in enumerate(results["splits"][split]["shards"]):
            for start in range(0, shard["rows"], self._rows_per_group):
                self._group_places.append((number, start // self._rows_per_group))
                self.rows_of_group.append(min(self._rows_per_group, shard["rows"] - start))
        self._group_starts = [0, *accumulate(self.rows_of_group)]
        self.num_sequences = self._group_starts[-1]
        self._verified: set[int] = set()
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._groups: OrderedDict[int, npt.NDArray[np.unsignedinteger]] = OrderedDict()

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sequences by their number, int64 [len(indices), T]."""
        out = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for i, index in enumerate(indices.tolist()):
            group = bisect.bisect_right(self._group_starts, index) - 1
            out[i] = self._group(group)[index - self._group_starts[group]]
        return out

    def _group(self, group: int) -> npt.NDArray[np.unsignedinteger]:
        if group not in self._groups:
            shard, index = self._group_places[group]
            self._groups[group] = self._reader(shard).read_group(index)
            if len(self._groups) > 2 * _WINDOW_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]

    def _reader(self, shard: int) -> ShardReader:
        """A shard is read whole once, to check it; from then on only the row groups that are asked for."""
        path = self._shard_paths[shard]
        if shard not in self._verified:
            self._artifact.read(path)
            self._verified.add(shard)
        if shard not in self._readers:
            self._readers[shard] = ShardReader(storage.open_uri(storage.join(self._artifact.uri, path)))
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(shard)
        return self._readers[shard]


def epoch_order(rows_of_group: list[int], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of all sequences: row groups shuffled, then sequences within windows of neighbouring groups.

    Only a window's groups have to be decoded at a time, so a shuffled epoch still reads the shards nearly in order.
    """
    random = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(rows_of_group)[:-1]]).astype(np.int64)
    groups = random.permutation(len(rows_of_group))
    windows = [groups[i : i + _WINDOW_GROUPS] for i in range(0, len(groups), _WINDOW_GROUPS)]
    orders = [
        random.permutation(np.concatenate([starts[g] + np.arange(rows_of_group[g]) for g in window]))
        for window in windows
    ]
    return np.concatenate(orders)


class Loader:
    """An endless stream of global batches; each rank takes its contiguous slice of every one.

    Epochs follow each other without dropping a sequence, so a batch may hold the end of one and the start of the next.

    Raises:
        ConfigError: The ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        dataset: TokenDataset,
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
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._position = start
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def next_batch(self) -> Batch:
        """This rank's share of the next global batch."""
        size = self._global_batch_size // self._world_size
        first = self._position + self._rank * size
        positions = range(first, first + size)
        self._position += self._global_batch_size
        rows = self.dataset.rows(np.array([self._row_at(position) for position in positions], dtype=np.int64))
        return Batch(torch.from_numpy(rows), list(positions))

    def _row_at(self, position: int) -> int:
        epoch, place = divmod(position, self.dataset.num_sequences)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.dataset.rows_of_group, self._seed, epoch)
        return int(self._order[place])

    def state_dict(self) -> dict[str, int]:
        """Where the stream is; the same for every rank and world size."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, also with another number of ranks."""
        self._position = state["position"]
