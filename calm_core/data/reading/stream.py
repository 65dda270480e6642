"""One dataset's sequences in the order of its epochs, read ahead."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calm_core.data.reading.dataset import DECODERS, Sequences, Source, TokenDataset
from calm_core.data.reading.order import EpochOrder, Numbers

_WINDOWS_AHEAD = 3
_FETCHES = 4  # shards that are fetched at a time


class _Place(NamedTuple):
    """A window of an epoch."""

    epoch: int
    window: int


class _Shard(NamedTuple):
    epoch: int
    shard: int


class _Decoding(NamedTuple):
    """A window that begins at a position of the stream, and its row groups, which threads decode."""

    start: int
    order: Numbers
    groups: list[Future[Sequences]]


class _Decoded(NamedTuple):
    """A window's sequences, its positions in the stream [start, end), and the row that each position holds."""

    start: int
    end: int
    order: Numbers
    rows: Sequences

    def at(self, first: int, end: int) -> Sequences:
        """The sequences of positions [first, end)."""
        sequences: Sequences = self.rows[self.order[first - self.start : end - self.start]]
        return sequences


class Stream:
    """The endless sequence of a dataset's epochs, read ahead by threads.

    A position counts sequences from the start of the first epoch. Each epoch is cut into windows (see `EpochOrder`),
    which are decoded whole. A rank reads some sequences, leaves those of the other ranks out, and reads on:

        reads        |mine|......others......|mine|......others......|mine|......others......|
        windows     [ 0               ][ 1               ][ 2               ][ 3              ]

    While it works on a read, threads decode the windows of its next ones, and fetch the shards behind those.

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
        self._decoding = ThreadPoolExecutor(DECODERS, "decode")
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
            out[:] = current.at(position, end)
            return
        epoch = position // self.dataset.num_sequences
        self._orders = {number: order for number, order in self._orders.items() if number >= epoch}
        places = self._windows_of(position, end)
        self._read_ahead(places, position, end, stride)
        for place in places:
            self._current = window = self._wait_for(self._windows[place])
            first, last = max(position, window.start), min(end, window.end)
            out[first - position : last - position] = window.at(first, last)

    def source_of(self, position: int) -> Source:
        """Where the sequence at a position of the stream lies; nothing is read."""
        epoch, place = divmod(position, self.dataset.num_sequences)
        order = self._order(epoch)
        window = order.window(order.window_at(place))
        row = int(window.order[place - window.start])
        for group in window.groups:
            if row < group.rows:
                break
            row -= group.rows
        return self.dataset.source_of(group, row)

    def _read_ahead(self, places: list[_Place], position: int, end: int, stride: int) -> None:
        """Decode the windows of a read of [position, end), and those of the next reads that need others."""
        wanted = dict.fromkeys(places)  # an ordered set: the next read may need the same window again
        for _ in range(_WINDOWS_AHEAD):
            last = next(reversed(wanted))
            # Reads that end in the last window need no other; the first one that ends beyond it does.
            reads = (self._end_of(last) - end) // stride + 1
            position, end = position + reads * stride, end + reads * stride
            wanted |= dict.fromkeys(self._windows_of(position, end))
        self._windows = {place: self._windows.get(place) or self._decode(place) for place in wanted}

    def _windows_of(self, position: int, end: int) -> list[_Place]:
        """The windows that hold positions [position, end) of the stream, which may go over the end of an epoch."""
        places = []
        while position < end:
            epoch, place = divmod(position, self.dataset.num_sequences)
            places.append(_Place(epoch, self._order(epoch).window_at(place)))
            position = self._end_of(places[-1])
        return places

    def _end_of(self, place: _Place) -> int:
        """The position behind a window."""
        return place.epoch * self.dataset.num_sequences + self._order(place.epoch).end_of(place.window)

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = EpochOrder(self.dataset.groups_of_shard, self._seed, epoch)
        return self._orders[epoch]

    def _decode(self, place: _Place) -> _Decoding:
        """Begin to decode a window, and to fetch the shards that it and those behind it need."""
        order = self._order(place.epoch)
        window = order.window(place.window)
        needed = [_Shard(place.epoch, shard) for shard in order.shards_about(place.window)]
        # Only begun here: a shard that cannot be fetched is an error once a window needs it, and no earlier.
        self._fetched = {
            shard: self._fetched.get(shard) or self._fetching.submit(self.dataset.fetch, shard.shard)
            for shard in needed
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
