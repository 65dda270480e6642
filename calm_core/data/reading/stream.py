"""The endless stream of a dataset's epochs, read ahead.

A position counts sequences from the first one of epoch 0 on. An epoch is cut into windows (see `order`): the unit that
is decoded, since its sequences are shuffled among each other. A rank reads a few positions of each global batch and
skips those of the others, so of the windows ahead it needs only those that its next reads will touch.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calm_core.data.reading.dataset import DECODERS, Sequences, TokenDataset
from calm_core.data.reading.order import EpochOrder, Numbers

_WINDOWS_AHEAD = 3
_FETCHES = 4  # shards that are fetched at a time


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
        """Decode the windows that are needed now and next, and fetch the shards behind them.

        Args:
            places: The windows of this read.
            position, number: What this read takes.
            stride: How much further on the next read will be.
        """
        wanted = dict.fromkeys(places)  # an ordered set
        for _ in range(_WINDOWS_AHEAD):
            end = self._end_of(next(reversed(wanted)))
            # Of the reads at position + stride, position + 2 stride, ..., the first that goes beyond this window's end.
            reads = max(1, -(-(end - position - number + 1) // stride))
            position += reads * stride
            wanted |= dict.fromkeys(self._places(position, number))
        self._windows = {place: self._windows.get(place) or self._decode(place) for place in wanted}

    def _end_of(self, place: _Place) -> int:
        """The position behind a window."""
        return place.epoch * self.dataset.num_sequences + self._order(place.epoch).end_of(place.window)

    def _places(self, position: int, number: int) -> list[_Place]:
        """The windows that hold sequences of the stream."""
        places = []
        end = position + number
        while position < end:
            epoch, place = divmod(position, self.dataset.num_sequences)
            places.append(_Place(epoch, self._order(epoch).window_at(place)))
            position = self._end_of(places[-1])
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
