"""Data sets and their parts whose manifests and files were edited together: refused, or read as they are."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calm_core.config import TokenizerConfig
from calm_core.data.mixture import mix_datasets
from calm_core.data.preparing.dropped import read_dropped
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.reading.dataset import TokenDataset, open_dataset
from calm_core.data.shards import ShardWriter
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, ConfigError, StorageError
from calm_core.store.artifact import MANIFEST_NAME, Artifact, digest_of
from calm_core.store.facts import DatasetFacts, DuplicatesFacts
from tests.data.test_prepare import TOKENIZER, data_of, texts, write_lines


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    config = data_of(write_lines(folder / "texts.jsonl", texts(60)))
    return Path(prepare_data(config, TOKENIZER, f"{folder}/dataset").uri)


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "dataset")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Edit a manifest, and all that it says of its files, as somebody does who knows of checksums."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    for entry in content["files"]:
        data = (folder / entry["path"]).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(content)
    del content["checksum"]
    content["checksum"] = digest_of(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
    return str(folder)


def all_rows(uri: str) -> list[list[int]]:
    opened = open_dataset(uri, "train")
    rows: list[list[int]] = opened.rows(np.arange(opened.num_sequences)).tolist()
    return rows


def rows_told(by: int) -> Callable[[dict[str, Any]], None]:
    """As many sequences more or less, in all numbers that tell of them."""

    def change(content: dict[str, Any]) -> None:
        train, length = content["results"]["splits"]["train"], content["results"]["sequence_length"]
        train["shards"][0]["rows"] += by
        train["sequences"] += by
        train["tokens"] += by * length

    return change


@pytest.mark.parametrize("by", [-1, 1, 16])
def test_sequences_that_a_shard_does_not_hold_are_not_believed(by: int, dataset: Path) -> None:
    """One less was dropped in silence."""
    with pytest.raises(ArtifactError, match=r"\.parquet: file is damaged \(\d+ sequences in \d+ groups, not "):
        all_rows(edit(dataset, rows_told(by)))


def test_numbers_that_no_file_can_hold_take_no_memory(dataset: Path) -> None:
    with pytest.raises(ArtifactError, match=r"\.parquet: file is damaged \(too small for 1,000,000,0"):
        open_dataset(edit(dataset, rows_told(10**12)), "train")


@pytest.mark.parametrize("vocab_size", [259, 261, 2**16 + 1])
def test_the_vocabulary_is_that_of_the_tokenizer(vocab_size: int, dataset: Path) -> None:
    """Here 260."""
    uri = edit(dataset, lambda content: content["results"].update(vocab_size=vocab_size))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: file is damaged \(\d+ tokens, not "):
        open_dataset(uri, "train")


def test_a_shard_with_tokens_of_another_vocabulary_is_refused(dataset: Path) -> None:
    facts = Artifact(str(dataset), DatasetFacts).facts
    shard = facts.splits["train"].shards[0]
    with open(dataset / shard.path, "wb") as file:
        writer = ShardWriter(file, facts.vocab_size, facts.sequence_length)
        for start in range(0, shard.rows, facts.rows_per_group):
            rows = min(facts.rows_per_group, shard.rows - start)
            writer.write_group(np.full((rows, facts.sequence_length), facts.vocab_size, np.uint16))
        writer.close()
    told = f"token {facts.vocab_size} of a vocabulary of {facts.vocab_size}"
    with pytest.raises(ArtifactError, match=rf"{shard.path}: file is damaged \({told}\)"):
        all_rows(edit(dataset, lambda content: None))


def test_a_shard_is_no_link_to_elsewhere(dataset: Path) -> None:
    path = dataset / Artifact(str(dataset), DatasetFacts).facts.splits["train"].shards[0].path
    path.rename(dataset.parent / "elsewhere.parquet")
    path.symlink_to(dataset.parent / "elsewhere.parquet")
    with pytest.raises(StorageError, match="is a link that leads out of the folder"):
        all_rows(str(dataset))


def test_a_tokenizer_that_is_none_is_one_line(dataset: Path) -> None:
    (dataset / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: file is damaged \(no tokenizer: ") as caught:
        open_dataset(edit(dataset, lambda content: None), "train")
    assert "\n" not in str(caught.value)


def test_datasets_of_a_mixture_have_to_fit_together(made: Path, dataset: Path, tmp_path: Path) -> None:
    """Their manifest was edited: `calm data mix` would have refused them."""
    mixture = mix_datasets({str(made): 1, str(dataset): 1}, f"{tmp_path}/mixture")
    lines = write_lines(tmp_path / "more.jsonl", texts(60))
    other = prepare_data(
        data_of(lines, sequence_length=32), TokenizerConfig(source=f"{made}/tokenizer.json"), f"{tmp_path}/other"
    )

    def change(content: dict[str, Any]) -> None:
        content["results"]["digests"][1] = other.digest
        content["origins"]["datasets"][1] = other.uri

    with pytest.raises(ConfigError, match="has another sequence_length than"):
        open_dataset(edit(Path(mixture.uri), change), "train")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    config = data_of(write_lines(tmp_path / "texts.jsonl", texts(20)), partitions=1)
    [partition] = plan_partitions(config, f"{tmp_path}/plan")
    return Path(scan_partition(partition, config, f"{tmp_path}/scan").uri)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: data[:8] + b"\xff" * 8 + data[16:],
        lambda data: b"\1" + data[1:],
    ],
)
def test_an_index_of_keys_is_that_of_the_keys(damage: Callable[[bytes], bytes], scan: Path, tmp_path: Path) -> None:
    """Another one would leave keys out, or read over the end."""
    [path] = (scan / "keys").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    uri = edit(scan, lambda content: None)
    with pytest.raises(ArtifactError, match=rf"{path.name}: file is damaged \(its index is of other keys\)"):
        find_duplicates([uri], data_of(tmp_path / "texts.jsonl", partitions=1), f"{tmp_path}/duplicates")


def test_a_repeated_document_is_one_of_the_documents(tmp_path: Path) -> None:
    """Its number is the place of a bit that is set."""
    config = data_of(write_lines(tmp_path / "texts.jsonl", ["the same text"] * 3), partitions=1)
    [partition] = plan_partitions(config, f"{tmp_path}/plan")
    scan = Path(scan_partition(partition, config, f"{tmp_path}/scan").uri)
    [path] = (scan / "keys").iterdir()
    path.write_bytes(path.read_bytes()[:-4] + b"\xff" * 4)  # the last record ends with its document
    with pytest.raises(ArtifactError, match="keys of documents that are not there"):
        find_duplicates([edit(scan, lambda content: None)], config, f"{tmp_path}/duplicates")


@pytest.mark.parametrize("documents", [21, 10**12])
def test_a_scan_has_a_key_for_each_document(documents: int, scan: Path, tmp_path: Path) -> None:
    """No memory is taken for what a manifest says alone."""

    def claim(content: Any) -> None:
        content["results"].update(documents=documents)
        content["origins"].update(portions=[documents])

    uri = edit(scan, claim)
    with pytest.raises(ArtifactError, match=f"20 keys of {documents:,} documents"):
        find_duplicates([uri], data_of(tmp_path / "texts.jsonl", partitions=1), f"{tmp_path}/duplicates")


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_list_of_dropped_documents_that_is_none_is_one_line(
    content: bytes | None, scan: Path, tmp_path: Path
) -> None:
    found = Path(
        find_duplicates([str(scan)], data_of(tmp_path / "x.jsonl", partitions=1), f"{tmp_path}/duplicates").uri
    )
    path = found / "dropped" / "00000.parquet"
    if content is None:
        with open(path, "wb") as file:
            writer = ShardWriter(file, 300, 2)
            writer.write_group(np.zeros((20, 2), np.uint16))
            writer.close()
    else:
        path.write_bytes(content)
    artifact = Artifact(edit(found, lambda content: None), DuplicatesFacts)
    with pytest.raises(ArtifactError, match="no list of dropped documents"):
        read_dropped(artifact, "dropped/00000.parquet")


def test_the_place_of_the_parts_is_beside_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the current folder too; and no place at all is none."""
    config = data_of(write_lines(tmp_path / "texts.jsonl", texts(30)))
    with pytest.raises(StorageError, match="is empty; name a file or folder"):
        prepare_data(config, TOKENIZER, "")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare_data(config, TOKENIZER, ".")
    assert TokenDataset(".", "train").num_sequences
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "here.parts", "texts.jsonl"]


def test_a_name_that_looks_like_a_chain_of_urls_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the first name for the file behind the second one, and removed it."""
    monkeypatch.chdir(tmp_path)
    config = data_of(write_lines(tmp_path / "texts.jsonl", texts(30)))
    Path("notes").write_text("of the user")
    dataset = prepare_data(config, TOKENIZER, "./notes::v1")
    assert all_rows(dataset.uri) == all_rows(f"{tmp_path}/notes::v1")
    assert Path("notes").read_text() == "of the user"
