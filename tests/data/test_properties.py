"""What holds of any sources, partitions, mixtures and interruptions."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from calm_core.config import DataConfig
from calm_core.data.preparing.splits import split_of, text_hash
from calm_core.data.reading.dataset import Mixture, groups_of
from calm_core.data.reading.loader import Loader
from calm_core.data.reading.order import MIX_BLOCK, Group, MixOrder
from calm_core.data.sources.documents import read_documents
from calm_core.data.sources.files import find_files
from calm_core.data.sources.formats import Document
from calm_core.data.sources.partitions import partition_files
from calm_core.data.stage import prepare_data
from calm_core.store.facts import SPLITS
from tests.data.test_prepare import TOKENIZER, data_of, documents_of, write_lines


def checked(examples: int, *, phases: tuple[Phase, ...] = tuple(Phase)) -> settings:
    """The same examples in every run."""
    return settings(derandomize=True, deadline=None, max_examples=examples, phases=phases)


LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n"])
LINES = st.text(max_size=30).map(lambda text: json.dumps({"text": f"a{text}"}, ensure_ascii=False).encode()) | st.just(
    b""
)
JSONL = st.builds(
    lambda lines, last: b"".join(line + end for line, end in lines) + last,
    st.lists(st.tuples(LINES, LINE_ENDS), max_size=12),
    LINES,
)
TXT = st.lists(st.sampled_from(["a", "\n", "\r\n", "é", " ", "日", "\ufeff", "word word"]), max_size=80).map(
    lambda parts: "".join(parts).encode()
)


def parquet(texts: list[str | None], rows_per_group: int) -> bytes:
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), file, row_group_size=rows_per_group)
    return bytes(file.getvalue())


PARQUET = st.builds(
    parquet, st.lists(st.text(max_size=20).map("a".__add__) | st.none(), max_size=20), st.integers(1, 8)
)
SMALL = parquet(["one", "two", "three"], 1)
FILES = st.tuples(st.just("jsonl"), JSONL) | st.tuples(st.just("txt"), TXT) | st.tuples(st.just("parquet"), PARQUET)


def read_all(folder: Path, partitions: int) -> list[Document]:
    config = DataConfig(sources=(f"{folder}/*",), partitions=partitions, txt_document_bytes=16, max_document_bytes=60)
    with TemporaryDirectory() as plan:
        parts = partition_files(find_files(config), partitions, plan)
        return [document for part in parts for document in read_documents(part, config)]


def plain_count(suffix: str, content: bytes) -> int:
    """How many documents a .jsonl or .parquet file has."""
    if suffix == "parquet":
        return pq.read_metadata(pa.BufferReader(content)).num_rows
    return sum(bool(line.strip()) for line in content.split(b"\n")) if content else 1  # an empty file is one reject


@given(files=st.lists(FILES, min_size=1, max_size=4), partitions=st.integers(2, 12))
@example(files=[("parquet", SMALL)], partitions=len(SMALL))  # a cut on every byte
@checked(100)
def test_partitions_together_hold_each_document_once_and_in_order(
    files: list[tuple[str, bytes]], partitions: int
) -> None:
    with TemporaryDirectory() as place:
        for number, (suffix, content) in enumerate(files):
            (Path(place) / f"{number}.{suffix}").write_bytes(content)
        whole = read_all(Path(place), 1)
        in_parts = read_all(Path(place), partitions)
        assert [replace(d, origin="") for d in in_parts] == [replace(d, origin="") for d in whole]
        origins = [document.origin for document in whole]
        assert len(set(origins)) == len(origins)
        for number, (suffix, content) in enumerate(files):
            if suffix != "txt":
                count = sum(f"/{number}.{suffix}" in origin for origin in origins)
                assert count == plain_count(suffix, content)


HELD_OUT = 0.5
SOME = {split_of(text_hash(f"text {i}".encode()), HELD_OUT): f"text {i}" for i in range(10)}  # one of each split


@given(
    files=st.lists(st.lists(st.text("ab\0é <|>", max_size=3), min_size=1, max_size=15), max_size=3),
    partitions=st.integers(1, 6),
)
@checked(30)
def test_the_first_of_equal_documents_stays_and_none_is_lost(files: list[list[str]], partitions: int) -> None:
    files = [*files, list(SOME.values())]  # so that no split is empty
    with TemporaryDirectory() as place:
        for number, texts in enumerate(files):
            write_lines(Path(place, f"{number}.jsonl"), texts)
        shares = {"partitions": partitions, "validation_fraction": HELD_OUT, "max_reject_fraction": 0.99}
        dataset = prepare_data(data_of(f"{place}/*.jsonl", **shares), TOKENIZER, f"{place}/dataset")
        found = documents_of(dataset)
    documents = [text for texts in files for text in texts]
    usable = [text for text in documents if text.strip()]
    for split in SPLITS:
        assert found[split] == [
            text for text in dict.fromkeys(usable) if split_of(text_hash(text.encode()), HELD_OUT) == split
        ]
    facts = dataset.facts
    assert facts.documents_in == len(documents)
    assert facts.documents_out == len(set(usable))
    assert facts.duplicates == len(usable) - len(set(usable))
    assert sum(facts.rejected.values()) == len(documents) - len(usable)


class Numbered:
    """A dataset whose every sequence is its part and its number there."""

    sequence_length = 2

    def __init__(self, part: int, rows_of_shard: list[int], rows_per_group: int) -> None:
        self._part = part
        self.groups_of_shard = groups_of(rows_of_shard, rows_per_group)
        self.num_sequences = sum(rows_of_shard)

    def read_group(self, group: Group) -> npt.NDArray[np.int64]:
        rows = np.arange(group.start, group.start + group.rows)
        return np.stack([np.full(len(rows), self._part), rows], axis=1)

    def fetch(self, shard: int) -> None:
        pass


class Mixed(Mixture):
    """A mixture of numbered datasets."""

    def __init__(self, parts: list[Numbered], weights: list[int]) -> None:
        self.parts, self.weights = parts, weights  # type: ignore[assignment]  # stand-ins without files
        self.sequence_length = 2


@st.composite
def mixtures(draw: st.DrawFn) -> Mixed:
    shards = st.lists(st.integers(1, 20), min_size=1, max_size=6)
    shapes = draw(st.lists(st.tuples(shards, st.integers(1, 5)), min_size=1, max_size=2))
    weights = draw(st.lists(st.integers(1, 50), min_size=len(shapes), max_size=len(shapes)))
    return Mixed([Numbered(part, *shape) for part, shape in enumerate(shapes)], weights)


@given(
    dataset=mixtures(),
    seed=st.integers(0, 2**31),
    runs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=4),
)
@checked(60, phases=(Phase.generate,))  # the threads of thousands of loaders would make shrinking take minutes
def test_a_stream_goes_on_exactly_with_other_ranks_and_batches_and_holds_each_sequence_once_an_epoch(
    dataset: Mixed, seed: int, runs: list[tuple[int, int, int]]
) -> None:
    """A run is its ranks, the sequences of each in a batch, and the batches until it is stopped."""
    rows: list[list[int]] = []
    positions: list[int] = []
    state = {"position": 0}
    for world_size, size, batches in runs:
        ranks = [
            Loader(dataset, world_size * size, seed=seed, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.load_state_dict(state)
        for batch in (rank.next_batch() for _ in range(batches) for rank in ranks):
            rows += batch.tokens.tolist()
            positions += batch.positions
        states = [rank.state_dict() for rank in ranks]
        assert states == states[:1] * world_size
        state = states[0]
    plain = Loader(dataset, 1, seed=seed)
    assert rows == [plain.next_batch().tokens[0].tolist() for _ in rows]
    assert positions == list(range(len(rows)))
    for part, numbered in enumerate(dataset.parts):
        numbers = [number for of, number in rows if of == part]
        for start in range(0, len(numbers), numbered.num_sequences):
            epoch = numbers[start : start + numbered.num_sequences]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(numbered.num_sequences))


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    position=st.integers(0, 4 * MIX_BLOCK),
    number=st.integers(1, 2 * MIX_BLOCK),
    block=st.integers(0, 10**9),
)
@checked(100)
def test_a_mixtures_counts_are_those_of_its_parts_and_its_shares_are_exact_but_for_rounding(
    weights: list[int], seed: int, position: int, number: int, block: int
) -> None:
    mix = MixOrder(weights, seed)
    parts = mix.parts(position, number)
    before, after = mix.counts(position), mix.counts(position + number)
    assert before.sum() == position
    assert np.bincount(parts, minlength=len(weights)).tolist() == (after - before).tolist()
    shares = np.array(weights) / sum(weights) * (block * MIX_BLOCK)
    # The bounds on both sides of a share are rounded by half a sequence each; the rest is of floating point.
    assert np.abs(mix.counts(block * MIX_BLOCK) - shares).max() <= 1.01
