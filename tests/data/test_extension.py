"""Growing a dataset: what it holds stays byte for byte, and only what is new is read."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.mixture import mix_datasets
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.merge import Prepared, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.preparing.tokenize import tokenize_partition
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, CalmError, ConfigError, SourceError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import SPLITS, DatasetFacts
from tests.data.test_prepare import TOKENIZER, data_of, documents_of, files_of, split_of, texts, write_lines

OLD, NEW = texts(30), texts(20, seed=1)


@pytest.fixture
def parent(tmp_path: Path) -> Artifact[DatasetFacts]:
    """A dataset of a.jsonl (20 documents, 2 of them twice, and a broken line) and b.jsonl (10 documents)."""
    a = write_lines(tmp_path / "a.jsonl", OLD[:20] + OLD[:2])
    with a.open("a") as file:
        file.write("broken\n")
    b = write_lines(tmp_path / "b.jsonl", OLD[20:])
    return prepare_data(data_of(a, b), TOKENIZER, f"{tmp_path}/parent")


def extended(
    parent: Artifact[DatasetFacts], *sources: Path, name: str = "child", workers: int = 1, **settings: Any
) -> Artifact[DatasetFacts]:
    config = data_of(*sources, extends=parent.uri, **settings)
    return prepare_data(config, TOKENIZER, f"{Path(parent.uri).parent}/{name}", workers)


def all_documents(dataset: Artifact[DatasetFacts]) -> list[str]:
    return sorted(text for split in documents_of(dataset).values() for text in split)


def in_splits(everything: list[str]) -> dict[str, list[str]]:
    return {split: [text for text in everything if split_of(text, 0.3) == split] for split in SPLITS}


def test_new_documents_follow_the_old_ones_whose_files_stay_as_they_are(
    parent: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    child = extended(parent, write_lines(tmp_path / "new.jsonl", NEW))
    assert documents_of(child) == in_splits(OLD + NEW)
    assert files_of(parent).items() < files_of(child).items()
    assert child.manifest.parents["extends"] == parent.digest
    assert [Path(file.uri).name for file in child.facts.sources] == ["a.jsonl", "b.jsonl", "new.jsonl"]


def test_the_counts_are_those_of_both_together(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    """5 documents repeat the parent's and 3 their own file's, 2 lines are broken."""
    new = write_lines(tmp_path / "new.jsonl", NEW + OLD[:5] + NEW[:3])
    with new.open("a") as file:
        file.write("broken\n[]\n")
    before, after = parent.facts, extended(parent, new).facts
    assert after.documents_in == before.documents_in + 20 + 5 + 3 + 2
    assert after.documents_out == before.documents_out + 20 == 50
    assert after.duplicates == before.duplicates + 5 + 3
    assert after.rejected == {"broken_json": 2, "missing_field": 1}
    assert after.documents_in == after.documents_out + after.duplicates + sum(after.rejected.values())
    for split, counts in after.splits.items():
        everything = in_splits(OLD + NEW)[split]
        assert counts.documents == sum(counts.document_lengths) == len(everything)
        assert counts.text_bytes == sum(len(text.encode()) for text in everything)
        assert counts.tokens + counts.padding == counts.sequences * 16
        assert counts.sequences == sum(shard.rows for shard in counts.shards)


def test_what_is_new_is_told_by_content_and_not_by_name(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    """A known file is not read again under another name, and need not be there any more."""
    new = write_lines(tmp_path / "new.jsonl", NEW)
    (tmp_path / "a.jsonl").rename(tmp_path / "moved.jsonl")
    config = data_of(tmp_path / "moved.jsonl", tmp_path / "b.jsonl", new, extends=parent.uri)
    partitions = plan_partitions(config, f"{tmp_path}/plan")
    pieces = [piece for part in partitions for piece in part.pieces()]
    assert {piece.file.uri for piece in pieces} == {f"file://{new}"}
    assert documents_of(prepare_data(config, TOKENIZER, f"{tmp_path}/child")) == in_splits(OLD + NEW)


def test_the_tokenizer_is_the_parents_whatever_the_settings_say(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    config = data_of(write_lines(tmp_path / "new.jsonl", ["zebra quagga " * 9] * 3), extends=parent.uri)
    child = prepare_data(config, TokenizerConfig(vocab_size=400), f"{tmp_path}/child")
    assert child.read("tokenizer.json") == parent.read("tokenizer.json")
    assert child.facts.vocab_size == parent.facts.vocab_size


def test_a_text_like_an_old_one_is_a_near_duplicate(tmp_path: Path) -> None:
    """40 words of which one differs share 32 of 40 shingles: 0.8 is well above 0.5."""
    words = [f"word{i}" for i in range(40)]
    old = write_lines(tmp_path / "old.jsonl", [" ".join(words), *OLD])
    similar = " ".join([*words[:20], "other", *words[21:]])
    parent = prepare_data(data_of(old, near_duplicate_threshold=0.5), TOKENIZER, f"{tmp_path}/parent")
    new = write_lines(tmp_path / "new.jsonl", [similar, " ".join(words), "nothing like it at all"])
    child = extended(parent, new, near_duplicate_threshold=0.5)
    added = set(all_documents(child)) - set(all_documents(parent))
    assert added == {"nothing like it at all"}
    before, after = parent.facts, child.facts
    assert after.near_duplicates - before.near_duplicates == 1
    assert after.duplicates - before.duplicates == 1


def test_a_child_is_extended_like_its_parent(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    """What repeats a document of any generation is a duplicate."""
    child = extended(parent, write_lines(tmp_path / "new.jsonl", NEW), partitions=3)
    newest = texts(9, seed=2)
    source = write_lines(tmp_path / "newest.jsonl", newest + OLD[:4] + NEW[:3])
    grandchild = extended(child, source, tmp_path / "a.jsonl", tmp_path / "new.jsonl", name="grandchild")
    assert documents_of(grandchild) == in_splits(OLD + NEW + newest)
    assert files_of(child).items() < files_of(grandchild).items()
    assert grandchild.facts.duplicates == child.facts.duplicates + 4 + 3


def test_nothing_new_gives_the_same_documents(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    child = extended(parent, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert documents_of(child) == documents_of(parent)
    before, after = parent.facts.part("results"), child.facts.part("results")
    assert after | {"partitions": before["partitions"]} == before


def test_equal_bytes_with_one_and_two_workers(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    new = write_lines(tmp_path / "new.jsonl", NEW + OLD[:3])
    one, two = (extended(parent, new, name=f"with-{workers}", workers=workers) for workers in (1, 2))
    assert one.digest == two.digest
    assert files_of(one) == files_of(two)


def test_bad_new_sources_are_not_hidden_by_many_good_old_ones(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", ["", "good"])
    with pytest.raises(SourceError, match=r"1 of 2 documents are unusable \(1 empty\)"):
        extended(parent, bad)


CHANGES = {"to new text": NEW, "to the text of another file": OLD[20:]}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_changed_under_its_name_is_refused(
    change: list[str], parent: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    """Its old documents would stay in the dataset unnoticed."""
    write_lines(tmp_path / "a.jsonl", change)
    with pytest.raises(SourceError, match=r"a\.jsonl: changed since .*data\.replace_changed=true") as caught:
        extended(parent, tmp_path / "*.jsonl")
    assert "\n" not in str(caught.value)


def test_either_of_two_files_with_equal_content_may_not_change(tmp_path: Path) -> None:
    a, b = (write_lines(tmp_path / name, OLD) for name in ("a.jsonl", "b.jsonl"))
    parent = prepare_data(data_of(a, b), TOKENIZER, f"{tmp_path}/parent")
    write_lines(a, NEW)
    with pytest.raises(SourceError, match=r"a\.jsonl: changed since"):
        extended(parent, a, b)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_file_is_replaced_where_that_is_asked_for(
    change: list[str], parent: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    """Also files of the parent that are not named again are read again; the tokenizer stays."""
    write_lines(tmp_path / "a.jsonl", change)
    child = extended(parent, tmp_path / "a.jsonl", replace_changed=True)
    assert all_documents(child) == sorted({*change, *OLD[20:]})
    assert child.read("tokenizer.json") == parent.read("tokenizer.json")
    assert child.manifest.parents["extends"] == parent.digest
    assert child.facts.rejected == {}


def test_a_replacement_finds_moved_files_and_loses_no_text_that_is_still_named(
    parent: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    """A log that is rotated: the old text goes on under another name, new text takes its place."""
    (tmp_path / "a.jsonl").rename(tmp_path / "a.1.jsonl")
    (tmp_path / "b.jsonl").rename(tmp_path / "b.1.jsonl")
    write_lines(tmp_path / "a.jsonl", NEW)
    child = extended(parent, tmp_path / "*.jsonl", replace_changed=True)
    assert all_documents(child) == sorted(OLD + NEW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_length", 32),
        ("document_alignment", 4),
        ("rows_per_group", 2),
        ("validation_fraction", 0.2),
        ("unicode_normalization", "NFC"),
        ("near_duplicate_threshold", 0.5),
    ],
)
def test_a_setting_that_the_old_shards_cannot_follow_is_refused(
    name: str, value: Any, parent: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    config = data_of(write_lines(tmp_path / "new.jsonl", NEW), extends=parent.uri, **{name: value})
    with pytest.raises(ConfigError, match=rf"data\.{name}: the dataset .*parent has .*, not {value}"):
        plan_partitions(config, f"{tmp_path}/plan")


def parents_keys(parent: Artifact[DatasetFacts]) -> list[str]:
    shown = ("train/", "validation/", "tokenizer.json")
    return [entry.path for entry in parent.manifest.files if not entry.path.startswith(shown)]


@pytest.fixture(params=["flipped", "gone"])
def damage(request: pytest.FixtureRequest, parent: Artifact[DatasetFacts]) -> Iterator[Any]:
    def damage(path: str) -> str:
        file = Path(parent.uri) / path
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.unlink() if request.param == "gone" else file.write_bytes(content)
        return f"{path}: file is {'missing' if request.param == 'gone' else 'damaged'}"

    return damage


@pytest.mark.parametrize("file", ["tokenizer.json", "keys"])
def test_a_damaged_file_of_the_parent_is_named(
    file: str, parent: Artifact[DatasetFacts], damage: Any, tmp_path: Path
) -> None:
    message = damage(parents_keys(parent)[-1] if file == "keys" else file)
    with pytest.raises(ArtifactError, match=message):
        extended(parent, write_lines(tmp_path / "new.jsonl", NEW))


def test_a_damaged_shard_of_the_parent_is_not_vouched_for(
    parent: Artifact[DatasetFacts], damage: Any, tmp_path: Path
) -> None:
    """Copying may not read it; then the child's manifest tells whoever does."""
    shard = parent.facts.splits["train"].shards[0].path
    with pytest.raises(ArtifactError, match=damage(shard)):
        extended(parent, write_lines(tmp_path / "new.jsonl", NEW)).check(shard)


@pytest.mark.parametrize("state", ["missing", "half-written", "a mixture"])
def test_a_parent_that_is_no_dataset_is_one_line(state: str, parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    match state:
        case "missing":
            shutil.rmtree(parent.uri)
        case "half-written":
            (Path(parent.uri) / "manifest.json").unlink()
        case "a mixture":
            parent = mix_datasets({parent.uri: 1}, f"{tmp_path}/mixture")
    with pytest.raises(ArtifactError, match=f"{parent.uri}: .*{state}") as caught:
        extended(parent, write_lines(tmp_path / "new.jsonl", NEW))
    assert "\n" not in str(caught.value)


def test_a_dataset_is_not_written_over_the_one_that_it_extends(parent: Artifact[DatasetFacts], tmp_path: Path) -> None:
    """Its files would be deleted before they are copied."""
    before = files_of(parent)
    config: DataConfig = data_of(write_lines(tmp_path / "new.jsonl", NEW), extends=parent.uri)
    with pytest.raises(CalmError):
        prepare_data(config, TOKENIZER, f"{parent.uri}/")
    assert files_of(Artifact(parent.uri, DatasetFacts)) == before


@pytest.mark.parametrize("moment", ["after the plan", "before the tokenizer", "before the duplicates"])
def test_a_parent_that_is_replaced_while_it_is_extended_is_noticed(
    moment: str, parent: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    """Each step reads it anew, and in a pipeline a step may come from the cache."""
    other = prepare_data(
        data_of(write_lines(tmp_path / "other.jsonl", texts(9, seed=3))), TOKENIZER, f"{tmp_path}/other"
    )
    new = write_lines(tmp_path / "new.jsonl", NEW)
    config = data_of(new, extends=f"{tmp_path}/base", partitions=1)

    def base(artifact: Artifact[DatasetFacts]) -> None:
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        shutil.copytree(artifact.uri, tmp_path / "base")

    base(parent)
    [partition] = partitions = plan_partitions(config, f"{tmp_path}/plan")
    scan = scan_partition(partition, config, f"{tmp_path}/scan")
    base(other if moment == "before the tokenizer" else parent)
    tokenizer = train_tokenizer(partitions, TOKENIZER, config, f"{tmp_path}/tokenizer")
    base(other if moment == "before the duplicates" else parent)
    duplicates = find_duplicates([scan.uri], config, f"{tmp_path}/duplicates")
    base(parent)
    shards = tokenize_partition(partition, config, tokenizer.uri, duplicates.uri, f"{tmp_path}/shards")
    base(other if moment == "after the plan" else parent)
    prepared = Prepared(
        partitions=partitions,
        scan_uris=[scan.uri],
        shards_uris=[shards.uri],
        duplicates_uri=duplicates.uri,
        tokenizer_uri=tokenizer.uri,
    )
    with pytest.raises(ArtifactError, match="base: the dataset that is extended has changed since the run was planned"):
        merge_partitions(config, prepared, f"{tmp_path}/child")
