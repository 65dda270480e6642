"""The order of sequences in an epoch: a function of (seed, epoch) alone, computed where it is asked for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK_SHARDS = 4  # shards that are shuffled together; a node holds this many, and fetches as many ahead
WINDOW_GROUPS = 8  # row groups whose sequences are shuffled together, and are decoded at a time

MIX_BLOCK = 8192
SMALLEST_WEIGHT = 1e-3  # share of a dataset in a mixture; below it, rounding in a block is coarse
_MIX_STREAM = 0x6D6978  # keeps this order apart from the epochs' ones, which have the same seed

Numbers = npt.NDArray[np.int64]


class Group(NamedTuple):
    """A row group: its shard, its number there, its rows, and the number of its first sequence in the split."""

    shard: int
    number: int
    rows: int
    start: int


class Window(NamedTuple):
    """Sequences that are shuffled together.

    Attributes:
        start: Place in the epoch of the first one.
        groups: Row groups that hold them.
        order: Permutation of the groups' rows, taken one after the other.
    """

    start: int
    groups: list[Group]
    order: Numbers


class EpochOrder:
    """A permutation of all sequences of a split.

    Shards are shuffled and taken in blocks, the row groups of a block are shuffled and taken in windows, the sequences
    of a window are shuffled: so a shuffled epoch reads each shard once, and needs a few of them at a time.

        shards     | 7 2 9 4              | 0 5 1 8              | 3 6        |    blocks of BLOCK_SHARDS
        groups     | 2 9 9 7 4 2 | 7 4 .. | 8 0 1 5 1 8 | 5 5 .. | 3 6 6 3 .. |    windows of WINDOW_GROUPS
        sequences  | any of these groups' | ...

    (The groups are shown by their shards. A window may hold the end of one block and the start of the next.)
    """

    def __init__(self, groups_of_shard: list[list[Group]], seed: int, epoch: int) -> None:
        self._seed, self._epoch = seed, epoch
        random = np.random.default_rng([seed, epoch])
        self._shards: list[int] = random.permutation(len(groups_of_shard)).tolist()
        self._place_of_shard = {shard: place for place, shard in enumerate(self._shards)}
        self._groups: list[Group] = []
        for i in range(0, len(self._shards), BLOCK_SHARDS):
            block = [group for shard in self._shards[i : i + BLOCK_SHARDS] for group in groups_of_shard[shard]]
            self._groups += [block[j] for j in random.permutation(len(block)).tolist()]
        ends = np.array([group.rows for group in self._groups], dtype=np.int64).cumsum()
        # Where each window ends: with its last group. The last window may have fewer groups, and ends with all of them.
        self._ends = np.append(ends[WINDOW_GROUPS - 1 : -1 : WINDOW_GROUPS], ends[-1:])

    def window_at(self, place: int) -> int:
        """Number of the window that holds a place in the epoch: how many windows end at this place or before it."""
        return int(np.searchsorted(self._ends, place, side="right"))

    def end_of(self, number: int) -> int:
        """Place in the epoch behind a window."""
        return int(self._ends[number])

    def window(self, number: int) -> Window:
        """A window by its number."""
        groups = self._groups[number * WINDOW_GROUPS : (number + 1) * WINDOW_GROUPS]
        random = np.random.default_rng([self._seed, self._epoch, number])
        order = random.permutation(sum(group.rows for group in groups))
        return Window(self.end_of(number) - len(order), groups, order)

    def shards_about(self, number: int) -> list[int]:
        """The shards of a window's block and of the next one, which are worth fetching now."""
        groups = self._groups[number * WINDOW_GROUPS : (number + 1) * WINDOW_GROUPS]
        places = [self._place_of_shard[group.shard] for group in groups]
        block = min(places) // BLOCK_SHARDS * BLOCK_SHARDS  # place of the first shard of the window's first block
        return self._shards[block : block + 2 * BLOCK_SHARDS]


class MixOrder:
    """Which of several datasets each sequence of an endless stream comes from.

    In each block of MIX_BLOCK sequences every dataset has its share, rounded, in a shuffled order. The rounding evens
    out over the blocks, since it is the count over all blocks so far that is rounded, not that of each block. Where a
    stream stands in each dataset is computed, not remembered: that makes resuming exact.

    Args:
        weights: Shares of the datasets; they need not add up to 1.
        seed: Of the order.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        # The datasets lie side by side on [0, 1]: dataset i, with its share, from bounds[i] to bounds[i + 1].
        self._bounds = np.concatenate([[0.0], np.cumsum(weights) / np.sum(weights)])
        self._seed = seed
        self._block: tuple[int, Numbers] = (-1, np.empty(0, dtype=np.int64))

    def counts(self, position: int) -> Numbers:
        """How many of the first `position` sequences come from each dataset, int64 [datasets]."""
        block, place = divmod(position, MIX_BLOCK)
        return self._counts_before(block) + np.bincount(self._order(block)[:place], minlength=len(self._bounds) - 1)

    def parts(self, position: int, number: int) -> Numbers:
        """The dataset of each of the next sequences, int64 [number]."""
        first, last = position // MIX_BLOCK, (position + number - 1) // MIX_BLOCK
        order = np.concatenate([self._order(block) for block in range(first, last + 1)])
        return order[position - first * MIX_BLOCK :][:number]

    def _counts_before(self, block: int) -> Numbers:
        """How many sequences of each dataset the blocks before this one hold.

        Rounding the bounds instead of the shares makes the counts add up to the size of these blocks.
        """
        bounds: Numbers = np.rint(self._bounds * (block * MIX_BLOCK)).astype(np.int64)
        return np.diff(bounds)

    def _order(self, block: int) -> Numbers:
        """The dataset of each sequence of a block; the last block that was asked for is kept."""
        if self._block[0] != block:
            counts = self._counts_before(block + 1) - self._counts_before(block)
            random = np.random.default_rng([self._seed, _MIX_STREAM, block])
            self._block = block, random.permutation(np.repeat(np.arange(len(counts)), counts))
        return self._block[1]
