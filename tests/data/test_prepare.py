"""Preparing data: nothing is lost, equal input gives equal bytes, and what cannot work says why."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing import splits
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.merge import Prepared, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.tokenize import tokenize_partition
from calm_core.data.preparing.train_tokenizer import train_tokenizer, training_texts
from calm_core.data.reading.dataset import TokenDataset
from calm_core.data.sources.check import check_sources
from calm_core.data.sources.partitions import Partition
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, CalmError, SourceError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import SPLITS, DatasetFacts, DuplicatesFacts
from calm_core.telemetry.mlflow_run import DIGEST_TAG, Run


def split_of(text: str, fraction: float) -> str:
    return splits.split_of(splits.text_hash(text.encode()), fraction)


TOKENIZER = TokenizerConfig(vocab_size=260)  # 2 merges: training takes no time


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def data_of(*sources: Path | str, **settings: Any) -> DataConfig:
    defaults = {"sequence_length": 16, "rows_per_group": 4, "rows_per_shard": 8, "validation_fraction": 0.3}
    return DataConfig.model_validate({"sources": [str(source) for source in sources], **defaults, **settings})


def texts(count: int, seed: int = 0) -> list[str]:
    numbers = random.Random(seed)
    return [f"text {i} of {seed}: " + "a river " * numbers.randrange(8) for i in range(count)]


def files_of(artifact: Artifact[DatasetFacts]) -> dict[str, bytes]:
    return {entry.path: artifact.read(entry.path) for entry in artifact.manifest.files}


def documents_of(dataset: Artifact[DatasetFacts]) -> dict[str, list[str]]:
    """Every document of each split, decoded, in the order of the shards."""
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        part = TokenDataset(dataset.uri, split)
        found[split] = []
        ids: list[int] = []
        for token in part.rows(np.arange(part.num_sequences)).reshape(-1).tolist():
            if token == part.eos_id:
                found[split].append(part.tokenizer.decode(ids))
                ids = []
            elif token != part.pad_id:
                ids.append(token)
        assert ids == []  # no document without an end
    return found


def test_a_documents_split_depends_on_its_text_alone(tmp_path: Path) -> None:
    old, new = texts(40), texts(40, seed=1)
    before = documents_of(prepare_data(data_of(write_lines(tmp_path / "old.jsonl", old)), TOKENIZER, f"{tmp_path}/a"))
    more = write_lines(tmp_path / "more.jsonl", new + old[::-1])
    after = documents_of(prepare_data(data_of(more, partitions=3), TOKENIZER, f"{tmp_path}/b"))
    for split in SPLITS:
        assert set(before[split]) < set(after[split])
        assert set(after[split]) & set(old) == set(before[split])


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_about_the_asked_fraction_is_held_out(fraction: float) -> None:
    """Within 4 standard deviations of the binomial distribution; a fair hash fails 1 time in 16,000."""
    count = 2000
    held_out = sum(split_of(f"text {i}", fraction) == "validation" for i in range(count))
    assert abs(held_out - count * fraction) < 4 * math.sqrt(count * fraction * (1 - fraction))


def test_every_document_is_once_in_the_dataset(tmp_path: Path) -> None:
    """Duplicates within a file, across files and across partitions; bad lines between them; the first one stays."""
    first, second = texts(30), texts(30, seed=1)
    a = write_lines(tmp_path / "a.jsonl", first + first[5:10])
    b = write_lines(tmp_path / "b.jsonl", second[:20] + first[:3] + second + second[29:])
    with b.open("a") as file:
        file.write("broken\n" * 4)
    dataset = prepare_data(data_of(a, b, partitions=4), TOKENIZER, f"{tmp_path}/dataset")

    everything = first + second
    assert documents_of(dataset) == {
        split: [text for text in everything if split_of(text, 0.3) == split] for split in SPLITS
    }
    facts = dataset.facts
    assert facts.documents_in == 35 + 20 + 3 + 30 + 1 + 4
    assert facts.documents_out == len(everything) == sum(split.documents for split in facts.splits.values())
    assert facts.duplicates == 5 + 20 + 3 + 1
    assert facts.rejected == {"broken_json": 4}
    assert facts.documents_in == (facts.documents_out + facts.duplicates + sum(facts.rejected.values()))
    for split in facts.splits.values():
        assert split.tokens + split.padding == split.sequences * 16


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return data_of(write_lines(tmp_path / "texts.jsonl", texts(20) + texts(20)[:5]), partitions=3)


@pytest.fixture
def prepared(data: DataConfig, tmp_path: Path) -> Prepared:
    """The artifacts of all steps before the merge, of three partitions."""
    prepare_data(data, TOKENIZER, f"{tmp_path}/dataset")
    place = f"{tmp_path}/dataset.parts"
    return Prepared(
        partitions=plan_partitions(data, f"{place}/plan"),
        scan_uris=[f"{place}/scan-{i:05d}" for i in range(3)],
        shards_uris=[f"{place}/shards-{i:05d}" for i in range(3)],
        duplicates_uri=f"{place}/duplicates",
        tokenizer_uri=f"{place}/tokenizer",
    )


def test_the_order_in_which_partitions_are_collected_does_not_matter(
    data: DataConfig, prepared: Prepared, tmp_path: Path
) -> None:
    """Whatever runs the partitions side by side may hand their artifacts on as they become ready."""
    backwards = prepared.scan_uris[::-1]
    duplicates = find_duplicates(backwards, data, f"{tmp_path}/again")
    assert duplicates.digest == Artifact(prepared.duplicates_uri, DuplicatesFacts).digest
    mixed_up = replace(prepared, scan_uris=backwards, shards_uris=[prepared.shards_uris[i] for i in (1, 2, 0)])
    assert (
        merge_partitions(data, mixed_up, f"{tmp_path}/merged").digest
        == Artifact(f"{tmp_path}/dataset", DatasetFacts).digest
    )


@pytest.mark.parametrize("uris", ["scan_uris", "shards_uris"])
def test_a_partition_that_is_missing_or_named_twice_is_refused(
    uris: str, data: DataConfig, prepared: Prepared, tmp_path: Path
) -> None:
    complete = getattr(prepared, uris)
    for wrong in (complete[1:], complete[:-1], [*complete, complete[0]]):
        with pytest.raises(ArtifactError, match="is missing or named twice"):
            merge_partitions(data, replace(prepared, **{uris: wrong}), f"{tmp_path}/merged")


@pytest.fixture
def memory_uri() -> Iterator[str]:
    yield "memory://calm-tests/run"
    fsspec.filesystem("memory").rm("/calm-tests", recursive=True)


def test_equal_input_gives_equal_bytes_wherever_it_runs(
    tmp_path: Path, memory_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run, another folder to stand in, another file system."""
    source = write_lines(tmp_path / "texts.jsonl", [*texts(40), ""])
    first = prepare_data(data_of(source, partitions=2), TOKENIZER, f"{tmp_path}/first")
    monkeypatch.chdir(tmp_path)
    second = prepare_data(data_of(source, partitions=2), TOKENIZER, "second")
    assert second.digest == first.digest
    assert files_of(second) == files_of(first)

    with fsspec.open(f"{memory_uri}/texts.jsonl", "wb") as file:
        file.write(source.read_bytes())
    remote = prepare_data(data_of(f"{memory_uri}/texts.jsonl", partitions=2), TOKENIZER, f"{memory_uri}/dataset")
    assert files_of(remote) == files_of(first)

    assert remote.digest == first.digest


def test_shards_have_the_asked_shape(tmp_path: Path) -> None:
    dataset = prepare_data(data_of(write_lines(tmp_path / "a.jsonl", texts(40))), TOKENIZER, f"{tmp_path}/dataset")
    for split, counts in dataset.facts.splits.items():
        rows = 0
        for shard in counts.shards:
            file = pq.ParquetFile(dataset.open(shard.path))
            field = file.schema_arrow.field(0)
            assert (str(field.type.value_type), field.type.list_size) == ("uint16", 16)
            assert file.metadata.num_rows == shard.rows <= 8
            assert all(file.metadata.row_group(i).num_rows <= 4 for i in range(file.metadata.num_row_groups))
            assert file.metadata.row_group(0).column(0).compression == "ZSTD"
            rows += shard.rows
        assert rows == counts.sequences > 0, split


def test_sources_beyond_those_that_are_looked_at_may_hold_the_text(tmp_path: Path) -> None:
    files = [tmp_path / f"{i:02d}.jsonl" for i in range(70)]  # more than 64
    for file in files:
        file.write_text('{"text": ""}\n')
    empty = data_of(files[0]).model_copy(update={"sources": tuple(str(file) for file in files[:60])})
    with pytest.raises(SourceError, match="nothing else in the sources"):
        check_sources(empty)
    check_sources(empty.model_copy(update={"sources": tuple(str(file) for file in files)}))


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (['{"id": 3}'] * 5, {}, r"texts.jsonl, line 1: has no field text \(it has id\); name .*data.text_field"),
        (
            [*(json.dumps({"text": text}) for text in texts(8)), "3", "broken"],
            {"max_reject_fraction": 0.15},
            r"2 of 10 documents are unusable \(1 broken_json, 1 missing_field\); first: .*raise data.max_reject_fract",
        ),
        ([""], {}, r"texts.jsonl: empty \(no records\); there is nothing else in the sources"),
        (
            [json.dumps({"text": text}) for text in texts(3)],
            {"validation_fraction": 1e-9},
            r"the validation split is empty: 3 documents.*add documents or change data.validation_fraction",
        ),
        (
            [json.dumps({"text": text}) for text in texts(3)],
            {"validation_fraction": 1 - 1e-9},
            "the train split is empty",
        ),
    ],
    ids=["all rejected", "too many rejected", "only a blank line", "no validation", "no training"],
)
def test_unusable_sources_are_refused_on_one_line(
    lines: list[str], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SourceError, match=message) as caught:
        prepare_data(data_of(path, **settings), TOKENIZER, f"{tmp_path}/dataset")
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match=r"half-written|missing"):
        Artifact(f"{tmp_path}/dataset", DatasetFacts)


def test_rejects_up_to_the_set_share_are_let_pass_and_shown(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [*texts(18), "", " "])
    dataset = prepare_data(data_of(path, max_reject_fraction=0.1), TOKENIZER, f"{tmp_path}/dataset")
    assert dataset.facts.rejected == {"empty": 2}  # 2 of 20 are not more than a tenth
    assert [example.split("/")[-1].split(": ")[1] for example in dataset.facts.reject_examples] == ["empty"] * 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    dataset = prepare_data(data_of(write_lines(tmp_path / "a.jsonl", texts(40))), TOKENIZER, f"{tmp_path}/dataset")
    shard = dataset.facts.splits["train"].shards[1].path
    path = tmp_path / "dataset" / shard
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.unlink() if damage == "remove" else path.write_bytes(content[: -1 if damage == "cut" else None])
    train = TokenDataset(dataset.uri, "train")
    with pytest.raises(ArtifactError, match=f"{shard}: file is {'missing' if damage == 'remove' else 'damaged'}"):
        train.rows(np.arange(train.num_sequences))


def test_an_error_of_a_step_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = tmp_path / "progress.jsonl"
    monkeypatch.setenv("CALM_PROGRESS_FILE", str(progress))
    with pytest.raises(CalmError):
        prepare_data(data_of(tmp_path / "none.jsonl"), TOKENIZER, f"{tmp_path}/dataset")
    last = json.loads(progress.read_text().splitlines()[-1])
    assert (last["stage"], last["state"]) == ("prepare", "failed")
    assert "none.jsonl: no such file" in last["note"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("tokenizer", r"shards-00000: was made with another tokenizer"),
        ("sequence length", r"shards-00000: was made with other settings"),
    ],
)
def test_artifacts_of_different_runs_are_not_mixed(
    changed: str, message: str, data: DataConfig, prepared: Prepared, tmp_path: Path
) -> None:
    """Their token ids, or the length of their rows, would mean something else: a wrong dataset without an error."""
    if changed == "tokenizer":
        other = train_tokenizer(prepared.partitions, TokenizerConfig(vocab_size=262), data, f"{tmp_path}/other")
        prepared = replace(prepared, tokenizer_uri=other.uri)
    else:
        data = data.model_copy(update={"sequence_length": 32})
    with pytest.raises(ArtifactError, match=message):
        merge_partitions(data, prepared, f"{tmp_path}/merged")


def test_a_moved_source_is_the_same_dataset(tmp_path: Path) -> None:
    """Else a renamed bucket would train every model again."""
    digests = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        source = write_lines(tmp_path / name / f"{name}.jsonl", texts(40))
        digests.add(prepare_data(data_of(source), TOKENIZER, f"{tmp_path}/{name}/dataset").digest)
    assert len(digests) == 1


@pytest.mark.parametrize("budget", [1, 100, 10**6])
def test_the_tokenizer_learns_from_no_more_than_its_budget_and_each_text_once(budget: int, tmp_path: Path) -> None:
    """One partition is empty; its share is not lost, nor is a text cut inside a character."""
    everything = [text + "é" for text in texts(30)]
    config = data_of(write_lines(tmp_path / "a.jsonl", everything * 2), partitions=3)
    learned = list(training_texts(plan_partitions(config, f"{tmp_path}/plan"), config, budget))
    train = [text for text in everything if split_of(text, 0.3) == "train"]
    assert sum(len(text.encode()) for text in learned) <= budget
    assert all(any(text.startswith(part) for text in train) for part in learned)
    if budget == 10**6:
        assert learned == train


def test_bytes_of_text_are_counted_by_split(tmp_path: Path) -> None:
    everything = texts(30)
    source = write_lines(tmp_path / "a.jsonl", everything + everything[:5])
    facts = prepare_data(data_of(source), TOKENIZER, f"{tmp_path}/dataset").facts
    for split in SPLITS:
        kept = [text for text in everything if split_of(text, 0.3) == split]
        assert facts.splits[split].text_bytes == sum(len(text.encode()) for text in kept)


@pytest.mark.parametrize("step", ["find_duplicates", "tokenize_partition", "merge_partitions"])
def test_a_missing_input_of_a_step_is_reported(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = tmp_path / "progress.jsonl"
    monkeypatch.setenv("CALM_PROGRESS_FILE", str(progress))
    none, config = f"{tmp_path}/none", data_of("none.jsonl")
    part = Partition(index=0, pieces_uri=none, num_bytes=0)
    prepared = Prepared(
        partitions=[part], scan_uris=[none], shards_uris=[none], duplicates_uri=none, tokenizer_uri=none
    )
    run: dict[str, Callable[[str], object]] = {
        "find_duplicates": lambda output: find_duplicates([none], config, output),
        "tokenize_partition": lambda output: tokenize_partition(part, config, none, none, output),
        "merge_partitions": lambda output: merge_partitions(config, prepared, output),
    }
    with pytest.raises(ArtifactError, match="missing"):
        run[step](f"{tmp_path}/output")
    assert json.loads(progress.read_text().splitlines()[-1])["state"] == "failed"


def test_preparing_does_not_wait_for_torch() -> None:
    """Its import takes seconds in each of the pipeline's data tasks."""
    program = (
        "import sys, calm_core.data.stage, calm_core.data.sources.factbook; "
        "sys.exit(bool({'torch', 'mlflow'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_dataset_is_one_run_tagged_while_it_lasts_and_taken_again_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, dict[str, str]]] = []

    class Recorded(Run):
        def set_tags(self, tags: Mapping[str, str]) -> None:
            events.append(("tags", dict(tags)))

    @contextmanager
    def stage_run(stage: str, config: Mapping[str, Any]) -> Iterator[Run]:
        yield Recorded()
        events.append(("end", {}))

    progress = tmp_path / "progress.jsonl"
    monkeypatch.setenv("CALM_PROGRESS_FILE", str(progress))
    monkeypatch.setattr("calm_core.telemetry.stage.stage_run", stage_run)
    source = write_lines(tmp_path / "texts.jsonl", texts(20))
    first, again = (prepare_data(data_of(source), TOKENIZER, f"{tmp_path}/dataset") for _ in range(2))
    assert first.digest == again.digest
    assert events == [("tags", {DIGEST_TAG: first.digest, **first.manifest.parents}), ("end", {})]
    states = [json.loads(line)["state"] for line in progress.read_text().splitlines()]
    assert states.count("finished") == 2  # of both: who watches waits for it
    assert states[-1] == "finished"


def test_a_changed_split_trains_the_tokenizer_anew(tmp_path: Path) -> None:
    """Else it has learned from what is held out now."""
    source = write_lines(tmp_path / "texts.jsonl", texts(60))
    prepare_data(data_of(source, validation_fraction=0.1), TOKENIZER, f"{tmp_path}/dataset")
    other = data_of(source, validation_fraction=0.5)
    with pytest.raises(ArtifactError, match="holds another dataset"):
        prepare_data(other, TOKENIZER, f"{tmp_path}/dataset")
    changed = prepare_data(other, TOKENIZER, f"{tmp_path}/dataset", overwrite=True)
    assert changed.digest == prepare_data(data_of(source, validation_fraction=0.5), TOKENIZER, f"{tmp_path}/b").digest


def test_a_refused_run_leaves_the_dataset_that_is_there(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "texts.jsonl", texts(20))
    before = files_of(prepare_data(data_of(source), TOKENIZER, f"{tmp_path}/dataset"))
    with pytest.raises(SourceError, match="the validation split is empty"):
        prepare_data(data_of(source, validation_fraction=1e-9), TOKENIZER, f"{tmp_path}/dataset", overwrite=True)
    assert files_of(Artifact(f"{tmp_path}/dataset", DatasetFacts)) == before


def test_marks_of_duplicates_that_are_of_other_documents_are_refused(
    data: DataConfig, prepared: Prepared, tmp_path: Path
) -> None:
    other = prepared.partitions[1].model_copy(update={"index": 0})
    with pytest.raises(ArtifactError, match=r"partition 0: the duplicates are of other documents; find them again"):
        tokenize_partition(other, data, prepared.tokenizer_uri, prepared.duplicates_uri, f"{tmp_path}/again")


@pytest.mark.parametrize("in_the_way", ["a file", "a folder that is one"])
def test_an_output_that_cannot_be_written_is_one_line(in_the_way: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "texts.jsonl", texts(20))
    output = tmp_path / "dataset"
    (output if in_the_way == "a file" else tmp_path / "dataset.parts").write_text("")
    with pytest.raises(CalmError, match=r"is no folder.*; name another output") as caught:
        prepare_data(data_of(source), TOKENIZER, str(output))
    assert "\n" not in str(caught.value)
