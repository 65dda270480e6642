"""Mixtures: each dataset has its share of the stream, and is read in epochs of its own."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from calm_core.config import TokenizerConfig, TransformerConfig
from calm_core.data.mixture import mix_datasets
from calm_core.data.reading.dataset import Dataset, TokenDataset, open_dataset
from calm_core.data.reading.loader import Loader
from calm_core.data.reading.order import MIX_BLOCK
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, CalmError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts
from tests.data.test_prepare import TOKENIZER, data_of, files_of, write_lines

BATCH = 12  # sequences, for 1, 2 and 3 ranks
WEIGHTS = [0.5, 0.3, 0.2]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact[DatasetFacts]]:
    """Three datasets of different sizes; the letter in a sequence, A, B or C, says which one it is from."""
    folder = tmp_path_factory.mktemp("datasets")
    found: list[Artifact[DatasetFacts]] = []
    for letter, count in zip("ABC", (60, 40, 20), strict=True):
        lines = [f"{i:02d}{letter * 5}" for i in range(count)]  # 8 tokens at most: every sequence holds two
        source = f"{found[0].uri}/tokenizer.json" if found else ""
        tokenizer = TokenizerConfig(vocab_size=260, source=source)
        data = data_of(write_lines(folder / f"{letter}.jsonl", lines))
        found.append(prepare_data(data, tokenizer, f"{folder}/{letter}"))
    return found


@pytest.fixture(scope="module")
def mixture(datasets: list[Artifact[DatasetFacts]], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    weights = {dataset.uri: weight for dataset, weight in zip(datasets, WEIGHTS, strict=True)}
    return open_dataset(mix_datasets(weights, f"{tmp_path_factory.mktemp('mixture')}/out").uri, "train")


def all_rows(dataset: TokenDataset) -> list[list[int]]:
    return dataset.rows(np.arange(dataset.num_sequences)).tolist()


def stream(loader: Loader, batches: int) -> list[list[int]]:
    return [row for _ in range(batches) for row in loader.next_batch().tokens.tolist()]


def dataset_of(mixture: Dataset, row: list[int]) -> int:
    [letter] = {*mixture.tokenizer.decode(row)} & {*"ABC"}
    return "ABC".index(letter)


def test_the_shares_of_a_stream_are_the_weights(mixture: Dataset) -> None:
    batch = MIX_BLOCK // 8
    found = [dataset_of(mixture, row) for row in stream(Loader(mixture, batch, seed=0), 8)]
    assert np.bincount(found).tolist() == [MIX_BLOCK // 2, round(0.3 * MIX_BLOCK), round(0.2 * MIX_BLOCK)]
    for first in range(0, len(found), batch):  # within 5 standard deviations of a random draw
        counts = np.bincount(found[first : first + batch], minlength=3)
        assert all(abs(counts - batch * np.array(WEIGHTS)) < 5 * np.sqrt(batch * 0.25))


def test_each_dataset_has_epochs_of_its_own_with_every_sequence_once(mixture: Dataset) -> None:
    rows = stream(Loader(mixture, BATCH, seed=0), 40)
    found = [dataset_of(mixture, row) for row in rows]
    for number, part in enumerate(mixture.parts):
        own = [row for row, one in zip(rows, found, strict=True) if one == number]
        epochs = len(own) // part.num_sequences
        assert epochs >= 2
        expected = sorted(all_rows(part))
        for epoch in range(epochs):
            assert sorted(own[epoch * part.num_sequences :][: part.num_sequences]) == expected


def test_resuming_at_another_world_size_goes_on_exactly(mixture: Dataset) -> None:
    """2 ranks, then 1, then 3; the middle part goes over the end of a block of the mixture."""
    start = MIX_BLOCK - 5 * BATCH - 1
    expected = stream(Loader(mixture, BATCH, seed=5, start=start), 3 + 6 + 4)
    state = {"position": start}
    rows: list[list[int]] = []
    for world_size, batches in ((2, 3), (1, 6), (3, 4)):
        ranks = [Loader(mixture, BATCH, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
        for rank in ranks:
            rank.load_state_dict(state)
        for _ in range(batches):
            rows += [row for rank in ranks for row in rank.next_batch().tokens.tolist()]
        [state, *others] = [rank.state_dict() for rank in ranks]
        assert all(other == state for other in others)
    assert rows == expected


def test_the_sources_of_a_batch_name_dataset_shard_and_row(mixture: Dataset) -> None:
    """Over the end of a block of the mixture, in epochs of its parts far from the first."""
    loader = Loader(mixture, BATCH, seed=5, start=MIX_BLOCK - 5 * BATCH - 1)
    expected = stream(loader, 8)
    sources = [loader.source_of(position) for position in loader.positions(8)]
    assert {source.dataset for source in sources} == {part.uri for part in mixture.parts}
    tables = {source[:2]: pq.read_table(f"{source.dataset}/{source.shard}") for source in sources}
    assert [tables[source[:2]].column("tokens")[source.row].as_py() for source in sources] == expected


def test_the_stream_depends_on_the_seed_alone(mixture: Dataset) -> None:
    first, again, other = (stream(Loader(mixture, BATCH, seed=seed), 5) for seed in (1, 1, 2))
    assert first == again != other


def test_sequences_by_their_number_are_those_of_one_dataset_after_the_other(mixture: Dataset) -> None:
    everything = [row for part in mixture.parts for row in all_rows(part)]
    assert mixture.num_sequences == len(everything)
    indices = np.random.default_rng(0).permutation(len(everything))
    assert mixture.rows(indices).tolist() == [everything[i] for i in indices]
    assert mixture.rows(indices[:0]).shape == (0, 16)


def test_a_mixture_is_found_from_anywhere(
    datasets: list[Artifact[DatasetFacts]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its datasets were named by a relative path."""
    monkeypatch.chdir(Path(datasets[0].uri).parent)
    weights = {"A": 3.0, "B": 1.0}
    digests = {mix_datasets(weights, f"{tmp_path}/mixture").digest}
    monkeypatch.chdir(tmp_path)
    opened = open_dataset("mixture", "validation")
    assert opened.weights == [0.75, 0.25]
    digests.add(mix_datasets({datasets[0].uri: 6, datasets[1].uri: 2}, f"{tmp_path}/again").digest)
    assert len(digests) == 1  # equal shares of equal datasets


@pytest.mark.parametrize(
    ("settings", "vocab_size", "named"),
    [
        ({}, 262, "has another tokenizer than"),
        ({"sequence_length": 32}, 0, "has another sequence_length than"),
        ({"document_alignment": 4}, 0, "has another document_alignment than"),
    ],
    ids=["tokenizer", "length", "alignment"],
)
def test_datasets_that_do_not_fit_together_are_refused(
    settings: dict[str, int], vocab_size: int, named: str, datasets: list[Artifact[DatasetFacts]], tmp_path: Path
) -> None:
    source = "" if vocab_size else f"{datasets[0].uri}/tokenizer.json"
    tokenizer = TokenizerConfig(vocab_size=vocab_size or 260, source=source)
    lines = write_lines(tmp_path / "other.jsonl", [f"text {i} of a text" for i in range(20)])
    other = prepare_data(data_of(lines, **settings), tokenizer, f"{tmp_path}/other")
    with pytest.raises(ConfigError, match=rf"{other.uri}: {named} {datasets[0].uri}"):
        mix_datasets({datasets[0].uri: 1, other.uri: 1}, f"{tmp_path}/mixture")


@pytest.mark.parametrize("weights", [(1, 0.0005), (1, 0), (1, -1), (1, math.nan), (1, math.inf), (0,), (math.inf,), ()])
def test_weights_without_a_meaning_are_refused_on_one_line(
    weights: tuple[float, ...], datasets: list[Artifact[DatasetFacts]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        mix_datasets({dataset.uri: weight for dataset, weight in zip(datasets, weights, strict=False)}, f"{tmp_path}/m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("state", ["missing", "replaced"])
def test_a_dataset_that_is_not_the_one_that_was_mixed_is_named(state: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i} of a text" for i in range(20)])
    dataset = prepare_data(data_of(source), TOKENIZER, f"{tmp_path}/dataset")
    mixture = mix_datasets({dataset.uri: 1}, f"{tmp_path}/mixture")
    if state == "replaced":
        prepare_data(data_of(source, validation_fraction=0.4), TOKENIZER, dataset.uri, overwrite=True)
    else:
        (tmp_path / "dataset" / "manifest.json").unlink()
    message = "is not the dataset that was mixed into .*; mix again" if state == "replaced" else "half-written"
    with pytest.raises(ArtifactError, match=rf"{dataset.uri}: .*{message}"):
        open_dataset(mixture.uri, "train")


def test_a_mixture_is_not_written_over_one_of_its_datasets(tmp_path: Path) -> None:
    """Its files would be deleted."""
    source = write_lines(tmp_path / "a.jsonl", [f"text {i} of a text" for i in range(20)])
    dataset = prepare_data(data_of(source), TOKENIZER, f"{tmp_path}/dataset")
    before = files_of(dataset)
    with pytest.raises(CalmError):
        mix_datasets({dataset.uri: 1}, f"{dataset.uri}/")
    assert files_of(Artifact(dataset.uri, DatasetFacts)) == before


def test_a_model_is_trained_and_scored_on_a_mixture(dataset_uri: str, tmp_path: Path) -> None:
    from calm_core.config import EvaluationConfig
    from calm_core.evaluation.stage import evaluate
    from calm_core.training.stage import train

    mixture = mix_datasets({dataset_uri: 1}, f"{tmp_path}/mixture")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    training = {"steps": 2, "warmup_steps": 1, "global_batch_size": 4, "micro_batch_size": 4}
    config = TransformerConfig.model_validate(training | {"model": shape})
    model = train(config, mixture.uri, f"{tmp_path}/model", seed=0, checkpoint_root=f"{tmp_path}/checkpoints")
    assert model.manifest.parents == {"dataset": mixture.digest}
    protocol = EvaluationConfig(samples=2, max_sequences=4, prompts=(), bootstrap_resamples=100)
    assert evaluate(protocol, mixture.uri, model.uri, f"{tmp_path}/scores", seed=0).facts.brierlm
