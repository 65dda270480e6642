"""`calm data`, `calm verify` and a dataset that is extended, from the command line."""

import re
from pathlib import Path

import numpy as np
import pytest

from calm_core.data.reading.dataset import Source, TokenDataset
from calm_core.data.reading.sources import shown_sources
from calm_core.data.stage import prepare_data
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts, MixtureFacts
from tests.cli.test_main import call
from tests.data.test_prepare import TOKENIZER, data_of, documents_of, texts, write_lines

TEXTS = texts(30)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Artifact:
    """30 documents of 30 to 100 bytes, 3 duplicates and 2 rejects."""
    source = write_lines(tmp_path / "texts [red].jsonl", [*TEXTS, *TEXTS[:3]])
    with source.open("a") as file:
        file.write("broken [/red]\n3\n")
    config = data_of(tmp_path / "*.jsonl", unicode_normalization="NFC")
    made = prepare_data(config, TOKENIZER, f"{tmp_path}/dataset")
    capsys.readouterr()
    return made


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


@pytest.mark.parametrize("command", [["data", "inspect"], ["data", "mix"], ["verify"]], ids=" ".join)
def test_every_command_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command, "--help") == 0
    assert f"calm {' '.join(command)} " in capsys.readouterr().out.split("Example", 1)[1]


def test_inspect_shows_the_numbers_of_the_manifest(dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "inspect", dataset.uri) == 0
    out = capsys.readouterr().out
    rows = {name: re.split(r"\s{2,}", rest.strip()) for name, rest in re.findall(r"^(\S.*?)  +(.+)$", out, re.M)}
    results = dataset.manifest.results
    assert rows["documents in"] == ["35"]
    assert rows["documents out"] == ["30"]
    assert rows["exact duplicates"] == ["3"]
    assert rows["near-duplicates"] == ["0"]
    assert rows["rejected: broken_json"] == rows["rejected: missing_field"] == ["1"]
    assert rows["changed by normalisation"] == ["0"]
    assert rows["vocabulary"] == ["260 tokens, encoded by tiktoken"]
    splits = [results["splits"][name] for name in ("train", "validation")]
    for name in ("documents", "sequences", "tokens", "padding", "left_out", "text_bytes"):
        assert rows[name.replace("_", " ")] == [f"{counts[name]:,}" for counts in splits]
    assert rows["shards"] == [f"{len(counts['shards']):,}" for counts in splits]
    shards = [entry.size for entry in dataset.manifest.files if entry.path.endswith(".parquet")]
    assert rows["bytes on disk"][0].startswith(f"{sum(shards):,}, ")
    assert "1 source file" in out
    assert "texts [red].jsonl  " in out  # square brackets are no markup
    assert re.search(r"rejected: .*texts \[red\]\.jsonl, (line|byte) [\d,]+: broken_json", out)


def test_inspect_shows_how_long_documents_are(dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar for each power of two, as long as its share of the most frequent one."""
    assert call("data", "inspect", dataset.uri, "--sequences", "0") == 0
    found = re.findall(r"^(\d+) to (\d+) +(\d+) *(\S*)", capsys.readouterr().out, re.M)
    tokenizer = Tokenizer.from_bytes(dataset.read("tokenizer.json"))
    lengths = [len(tokenizer.encode(text)) + 1 for text in TEXTS]  # with the end of the document
    assert [int(count) for *_, count, _ in found] == [
        sum(int(low) <= length <= int(high) for length in lengths) for low, high, *_ in found
    ]
    assert sum(int(count) for *_, count, _ in found) == len(TEXTS)
    most = max(int(count) for *_, count, _ in found)
    assert [bar for *_, bar in found] == ["█" * round(40 * int(count) / most) for *_, count, _ in found]


def test_inspect_shows_some_sequences_of_a_split(dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "inspect", dataset.uri, "--split", "validation", "--sequences", "2") == 0
    shown = capsys.readouterr().out.partition("validation sequence ")[2]
    first, last = TokenDataset(dataset.uri, "validation"), dataset.manifest.results["splits"]["validation"]["sequences"]
    assert re.findall(r"^(?:validation sequence )?(\d+)$", shown, re.M) == ["0", str(last - 1)]
    assert first.tokenizer.decode(first.rows(np.array([0]))[0].tolist()) in shown
    assert "end of document" in shown


def test_inspect_shows_rows_of_a_shard(dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """As a training names them that has stopped at them."""
    train = TokenDataset(dataset.uri, "train")
    shards = dataset.facts.splits["train"].shards
    shard = max(shards, key=lambda one: one.rows)
    first = sum(before.rows for before in shards[: shards.index(shard)])
    rows = [0, shard.rows - 2, shard.rows - 1]
    assert len({*rows, 1}) == 4
    [(uri, told)] = shown_sources(Source(dataset.uri, shard.path, row) for row in reversed(rows))
    assert told == f"{shard.path}:0,{shard.rows - 2}-{shard.rows - 1}"
    assert call("inspect", uri, "--rows", told) == 0
    shown = capsys.readouterr().out
    assert re.findall(rf"^{shard.path} row (\d+)$", shown, re.M) == list(map(str, rows))
    for tokens in train.rows(np.array(rows) + first).tolist():
        assert train.tokenizer.decode(tokens[: [*tokens, train.eos_id].index(train.eos_id)]) in shown


def test_inspect_names_the_splits_there_are(dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "inspect", dataset.uri, "--split", "test") == 2
    assert "--split: there is no split 'test'; there are train, validation" in one_line(capsys)


def test_inspect_shows_any_other_artifact_too(dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", f"{dataset.uri}.parts/tokenizer") == 0
    assert re.search(r"^vocab size +260$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("part", ["dataset", "dataset.parts/tokenizer", "dataset.parts/scan-00000"])
def test_verify_finds_an_artifact_of_any_kind_whole(
    part: str, dataset: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("verify", f"{tmp_path}/{part}") == 0
    manifest = Artifact.of_any_kind(f"{tmp_path}/{part}").manifest
    expected = f"{part}: whole, {len(manifest.files)} files of the {manifest.kind} and manifest.json, "
    assert expected + f"{sum(entry.size for entry in manifest.files):,} bytes" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_verify_names_a_damaged_file(damage: str, dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """The last byte of the last file: all are read to their end."""
    path = Path(dataset.uri) / dataset.manifest.files[-1].path
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flipped" else b""))
    assert call("verify", dataset.uri) == 1
    assert f"{path}: file is {'missing' if damage == 'missing' else 'damaged'}" in one_line(capsys)


def test_verify_counts_the_other_damaged_files(dataset: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [entry.path for entry in dataset.manifest.files]
    for path in paths[:3]:
        (Path(dataset.uri) / path).unlink()
    assert call("verify", dataset.uri) == 1
    line = one_line(capsys)
    assert paths[0] in line
    assert "and 2 more files" in line


@pytest.mark.parametrize("state", ["nothing", "a file", "a folder", "half-written", "garbage"])
def test_verify_refuses_what_is_no_artifact_on_one_line(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    if state == "a file":
        place.write_text("text")
    elif state != "nothing":
        place.mkdir()
        (place / "train.parquet").write_bytes(b"")
    if state == "garbage":
        (place / "manifest.json").write_text("{}")
    assert call("verify", str(place)) == 1
    assert "place" in one_line(capsys)


def test_mix_writes_a_mixture_and_shows_the_shares(
    dataset: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each on a line of its own, however long; = and square brackets are part of a name."""
    other = tmp_path / f"a=b [red]{'long' * 30}"
    prepare_data(data_of(tmp_path / "*.jsonl", validation_fraction=0.4), TOKENIZER, str(other))
    capsys.readouterr()
    output = f"{tmp_path}/{'deep/' * 20}mixture"
    assert call("data", "mix", f"{dataset.uri}=3", f"{other}=1", "--output", output) == 0
    out = capsys.readouterr().out
    assert call("inspect", output, "--sequences", "1") == 0
    inspected = capsys.readouterr().out
    assert "75.0%" in inspected and "25.0%" in inspected and "train sequence 0" in inspected
    for uri, shown in ((output, "mixture"), (dataset.uri, "75.0%"), (str(other), "25.0%")):
        assert any(uri in line and shown in line for line in out.splitlines())
    mixture = Artifact(output, MixtureFacts)
    assert mixture.digest in inspected and dataset.digest in inspected
    assert mixture.manifest.results["weights"] == [0.75, 0.25]
    assert list(mixture.manifest.parents.values()) == [dataset.digest, Artifact(str(other), DatasetFacts).digest]


@pytest.mark.parametrize(
    ("items", "named"),
    [
        (["{}"], "dataset: give each dataset its weight, e.g. out/web=0.8"),
        (["{}=much"], "is no number; write e.g. "),
        (["=1"], "=1: give each dataset its weight"),
        (["{}=1", "{}=2"], "dataset"),
        (["{}=0"], "dataset: its weight is 0"),
    ],
    ids=["no weight", "no number", "no name", "twice", "zero"],
)
def test_mix_refuses_datasets_without_a_weight_of_their_own(
    items: list[str], named: str, dataset: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [item.format(dataset.uri) for item in items]
    assert call("data", "mix", *arguments, "--output", f"{tmp_path}/mixture") == 2
    assert named in one_line(capsys)
    assert not (tmp_path / "mixture").exists()


def test_prepare_extends_a_dataset_with_workers(
    dataset: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sources that it has may be named again: what is new is found among them."""
    new = texts(10, seed=1)
    write_lines(tmp_path / "new.jsonl", new + TEXTS[:2])
    settings = {
        name: dataset.manifest.config[name]
        for name in ("sequence_length", "rows_per_group", "rows_per_shard", "validation_fraction")
    } | {"unicode_normalization": "NFC"}
    changes = [item for name, value in settings.items() for item in ("--set", f"data.{name}={value}")]
    assert call(
        "prepare", "--extends", dataset.uri, "--source", f"{tmp_path}/*.jsonl", "--output", f"{tmp_path}/larger",
        "--workers", "2", *changes,
    ) == 0  # fmt: skip
    larger = Artifact(f"{tmp_path}/larger", DatasetFacts)
    out = capsys.readouterr().out
    assert larger.digest in out
    assert re.search(r"duplicates dropped +5\b", out)  # 3 before, 2 more
    assert {text for split in documents_of(larger).values() for text in split} == {*TEXTS, *new}
    assert larger.manifest.parents["extends"] == dataset.digest
