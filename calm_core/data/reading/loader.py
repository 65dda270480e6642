"""Batches of sequences in an order that depends on (seed, epoch) alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calm_core.data.reading.dataset import Dataset, Source
from calm_core.data.reading.order import MixOrder
from calm_core.data.reading.stream import Stream
from calm_core.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """Sequences int64 [B, T], and their positions in the endless global stream (they seed the noise)."""

    tokens: torch.Tensor
    positions: list[int]


class Loader:
    """An endless stream of global batches; each rank takes its contiguous slice of every one.

    Epochs follow each other without dropping a sequence, so a batch may hold the end of one and the start of the next.
    Of a mixture, each batch holds the parts' sequences in the order that `MixOrder` gives.

    Raises:
        ConfigError: The ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        dataset: Dataset,
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
        self._streams = [Stream(part, seed) for part in dataset.parts]
        self._mix = MixOrder(dataset.weights, seed)
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
        """Fill `out` with the sequences of the mixed stream from `first` on, each part's from its own stream.

        What comes before them in the mixed stream says where each part's stream stands: with parts a and b,

            mixed    a b a a | b a a b | ...      first = 4: 3 of a and 1 of b come before
            out                b a a b            a's from place 3 of its stream on, b's from place 1
        """
        choice = self._mix.parts(first, len(out))
        before = self._mix.counts(first)
        after = self._mix.counts(first + self._global_batch_size)  # where the parts' streams stand at the next call
        for part, stream in enumerate(self._streams):
            if number := int((choice == part).sum()):
                rows = np.empty((number, out.shape[1]), dtype=np.int64)
                stream.read(int(before[part]), rows, int(max(after[part] - before[part], 1)))
                out[choice == part] = rows

    def positions(self, batches: int) -> range:
        """Those of the last global batches, with the shares of all ranks."""
        return range(max(self._position - batches * self._global_batch_size, 0), self._position)

    def source_of(self, position: int) -> Source:
        """Where the sequence at a position lies; nothing is read."""
        part = int(self._mix.parts(position, 1)[0])
        return self._streams[part].source_of(int(self._mix.counts(position)[part]))

    def state_dict(self) -> dict[str, int]:
        """Where the stream is; the same for every rank and world size."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, also with another number of ranks."""
        self._position = state["position"]
