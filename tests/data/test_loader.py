"""The loader: one global order, shared by any number of ranks, resumed anywhere."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from calm_core.data.reading import dataset as dataset_module
from calm_core.data.reading import shard_files
from calm_core.data.reading.dataset import TokenDataset
from calm_core.data.reading.loader import Loader
from calm_core.data.reading.order import BLOCK_SHARDS, EpochOrder, Group
from calm_core.errors import ConfigError

BATCH = 8


@pytest.fixture(scope="module")
def train(dataset_uri: str) -> TokenDataset:
    dataset = TokenDataset(dataset_uri, "train")
    assert dataset.num_sequences % BATCH  # so that a batch holds the end of one epoch and the start of the next
    return dataset


def stream(loader: Loader, batches: int) -> list[list[int]]:
    """The sequences of the next batches, flat."""
    return [row for _ in range(batches) for row in loader.next_batch().tokens.tolist()]


def test_an_epoch_holds_every_sequence_once(train: TokenDataset) -> None:
    epochs = 3
    batches = -(-epochs * train.num_sequences // BATCH)
    rows = stream(Loader(train, BATCH, seed=0), batches)
    everything = sorted(train.rows(np.arange(train.num_sequences)).tolist())
    seen = [rows[i * train.num_sequences : (i + 1) * train.num_sequences] for i in range(epochs)]
    assert [sorted(epoch) for epoch in seen] == [everything] * epochs
    assert seen[0] != seen[1] != seen[2] != seen[0]


def groups_of(shards: list[list[int]]) -> list[list[Group]]:
    """Row groups of shards, by their rows."""
    found: list[list[Group]] = []
    start = 0
    for shard, groups in enumerate(shards):
        found.append([])
        for number, rows in enumerate(groups):
            found[-1].append(Group(shard, number, rows, start))
            start += rows
    return found


def order_of(shards: list[list[int]], seed: int, epoch: int) -> list[int]:
    """All sequences of an epoch, by their number, window after window."""
    order = EpochOrder(groups_of(shards), seed, epoch)
    found: list[int] = []
    while len(found) < sum(map(sum, shards)):
        number = order.window_at(len(found))
        window = order.window(number)
        assert window.start == len(found)
        rows = np.concatenate([np.arange(group.start, group.start + group.rows) for group in window.groups])
        found += rows[window.order].tolist()
        assert order.end_of(number) == len(found)
        assert {group.shard for group in window.groups} <= set(order.shards_about(number))
    return found


SHARDS = [[16] * 5 + [3], [16, 2], [7], [16] * 9, [1], [16, 16, 16, 5], [4], [16] * 20, [16, 9]]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = order_of(SHARDS, seed=1, epoch=2)
    assert sorted(order) == list(range(sum(map(sum, SHARDS))))
    np.random.seed(7)  # the global generator takes no part
    assert order_of(SHARDS, seed=1, epoch=2) == order
    others = [order_of(SHARDS, seed=seed, epoch=epoch) for seed, epoch in ((1, 3), (2, 2), (2, 1))]
    assert order not in others


def test_an_epoch_needs_few_shards_at_a_time() -> None:
    """So that a node's cache holds what is read, however many shards there are."""
    shards = [[8] * 10 for _ in range(50)]
    order = order_of(shards, seed=0, epoch=0)
    shard_of = np.array(order) // 80
    last = {shard: int(np.flatnonzero(shard_of == shard)[-1]) for shard in range(50)}
    first = {shard: int(np.flatnonzero(shard_of == shard)[0]) for shard in range(50)}
    for place in range(0, len(order), 80):
        assert sum(first[shard] <= place <= last[shard] for shard in range(50)) <= 2 * BLOCK_SHARDS
    assert len(set(shard_of[:80].tolist())) > 1  # and still mixes several


def test_more_row_groups_than_are_kept_decoded(train: TokenDataset) -> None:
    """The dataset has more groups than the 16 that are kept; what was thrown out is read again, unchanged."""
    assert sum(map(len, train.groups_of_shard)) > 16
    indices = np.random.default_rng(0).integers(train.num_sequences, size=300)
    all_rows = train.rows(np.arange(train.num_sequences))
    assert np.array_equal(train.rows(indices), all_rows[indices])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_slices_are_the_global_batch(train: TokenDataset, world_size: int) -> None:
    whole = Loader(train, BATCH, seed=3)
    ranks = [Loader(train, BATCH, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(2 * train.num_sequences // BATCH):
        expected, slices = whole.next_batch(), [rank.next_batch() for rank in ranks]
        assert torch.equal(torch.cat([piece.tokens for piece in slices]), expected.tokens)
        assert [position for piece in slices for position in piece.positions] == expected.positions


@pytest.mark.parametrize("first", [1, 5])
def test_resuming_at_another_world_size_goes_on_exactly(train: TokenDataset, first: int) -> None:
    """2 ranks, then 1, then 4; the middle part goes over the end of the first epoch."""
    lengths = {2: first, 1: train.num_sequences // BATCH, 4: 3}
    expected = stream(Loader(train, BATCH, seed=5), sum(lengths.values()))
    state = Loader(train, BATCH, seed=5).state_dict()
    rows: list[list[int]] = []
    for world_size, batches in lengths.items():
        ranks = [Loader(train, BATCH, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
        for rank in ranks:
            rank.load_state_dict(state)
        for _ in range(batches):
            rows += [row for rank in ranks for row in rank.next_batch().tokens.tolist()]
        states = [rank.state_dict() for rank in ranks]
        assert all(one == states[0] for one in states)  # rank 0's state serves every rank
        state = states[0]
    assert rows == expected


def test_positions_count_on_over_epochs(train: TokenDataset) -> None:
    """They seed the noise, so the same sequence draws other noise in another epoch."""
    loader = Loader(train, BATCH, seed=0)
    batches = train.num_sequences // BATCH + 2
    positions = [position for _ in range(batches) for position in loader.next_batch().positions]
    assert positions == list(range(batches * BATCH))


def test_ranks_that_cannot_share_a_batch_evenly_are_refused(train: TokenDataset) -> None:
    with pytest.raises(ConfigError, match=r"global_batch_size \(8\) must be a multiple of the 3 ranks"):
        Loader(train, BATCH, seed=0, world_size=3)


def test_a_shard_is_hashed_only_once(train: TokenDataset, dataset_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More would read the dataset many times over in a shuffled epoch of many shards."""
    expected = stream(Loader(train, BATCH, seed=0), 2 * train.num_sequences // BATCH)
    fresh = TokenDataset(dataset_uri, "train")
    hashed: list[str] = []
    check = shard_files._is_whole
    monkeypatch.setattr(shard_files, "_is_whole", lambda file, entry: hashed.append(entry.path) or check(file, entry))
    monkeypatch.setattr(dataset_module, "_OPEN_SHARDS", 1)  # every other shard is closed and opened again
    assert stream(Loader(fresh, BATCH, seed=0), 2 * train.num_sequences // BATCH) == expected
    assert len(hashed) > 1
    assert len(hashed) == len(set(hashed)) == len(fresh.facts.splits["train"].shards)


def test_a_loader_starts_where_it_is_told(train: TokenDataset) -> None:
    loader = Loader(train, BATCH, seed=0)
    loader.next_batch()
    started = Loader(train, BATCH, seed=0, start=BATCH)
    assert torch.equal(started.next_batch().tokens, loader.next_batch().tokens)
    assert started.state_dict() == loader.state_dict() == {"position": 2 * BATCH}


def test_the_sources_of_a_batch_are_the_rows_that_it_holds_on_all_ranks(train: TokenDataset) -> None:
    """Read back by plain Arrow, over more than two epochs; nothing is read to say them."""
    shards = {
        shard.path: pq.read_table(f"{train.uri}/{shard.path}").column("tokens").to_pylist()
        for shard in train.facts.splits["train"].shards
    }
    assert len(shards) > 1
    loader, last_rank = Loader(train, BATCH, seed=3), Loader(train, BATCH, seed=3, rank=1, world_size=2)
    for number in range(2 * train.num_sequences // BATCH + 2):
        expected = loader.next_batch().tokens.tolist()
        last_rank.next_batch()
        assert last_rank.positions(1) == range(number * BATCH, (number + 1) * BATCH)
        sources = [last_rank.source_of(position) for position in last_rank.positions(1)]
        assert [shards[source.shard][source.row] for source in sources] == expected
        assert {source.dataset for source in sources} == {train.uri}
    assert last_rank.positions(3) == range((number - 2) * BATCH, (number + 1) * BATCH)
