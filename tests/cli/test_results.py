"""What single stages print: a small table for people, one JSON document for machines, progress beside it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from calm_cli.result import print_json
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import EvaluationFacts, TransformerFacts
from tests.cli.test_main import call
from tests.weights.public_folders import (
    AUTOENCODER_CONFIG,
    autoencoder_shapes,
    random_weights,
    write_folder,
    write_tokenizer,
)

KEYS = ["kind", "uri", "digest", "results", "timings"]
EVALUATION = ("samples=2", "max_sequences=2", "prompt_tokens=4", "temperature_samples=4", "bootstrap_resamples=100")
TRAINING = (
    "steps=2", "warmup_steps=1", "global_batch_size=4", "micro_batch_size=4", "validation_interval=2",
    "validation_sequences=4", "model.hidden_size=16", "model.intermediate_size=32",
)  # fmt: skip


def settings(section: str, *changes: str) -> list[str]:
    return [item for change in changes for item in ("--set", f"{section}.{change}")]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "restored after the test")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def commands(
    tmp_path: Path, dataset_uri: str, model_uris: tuple[str, str], transformer_uri: str, evaluation_uri: str
) -> dict[str, tuple[str, list[str]]]:
    """Commands that make an artifact, and the kind of it."""
    documents = [json.dumps({"text": f"Port {number} lies near river {number}. " * 40}) for number in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(documents))
    inner = random_weights(autoencoder_shapes(), 1)
    write_folder(tmp_path / "public", AUTOENCODER_CONFIG, inner)
    write_tokenizer(tmp_path / "tokenizer")
    text = ["--source", str(tmp_path / "texts.jsonl"), "--set", "tokenizer.vocab_size=260", "--workers", "1"]
    small = [*settings("autoencoder", *TRAINING), "--dataset", dataset_uri]
    alike = [*settings("evaluation", *EVALUATION), "--dataset", dataset_uri]
    scores = ["--evaluation", evaluation_uri, "--autoencoder", model_uris[0]]
    copy = shutil.copytree(dataset_uri, str(tmp_path / "copy"))
    return {
        "prepare": ("dataset", ["prepare", *text, "--set", "data.validation_fraction=0.5"]),
        "mix": ("mixture", ["data", "mix", f"{dataset_uri}=1", f"{copy}=1"]),
        "train": ("autoencoder", ["train", "autoencoder", *small]),
        "evaluate": ("evaluation", ["evaluate", transformer_uri, *alike]),
        "register": ("registration", ["register", model_uris[1], *scores]),
        "import": ("autoencoder", ["import", str(tmp_path / "public"), "--tokenizer", str(tmp_path / "tokenizer")]),
    }


def strict(text: str) -> Any:
    """A JSON document as the standard defines it."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("command", ["prepare", "mix", "train", "evaluate", "register", "import"])
def test_what_a_command_has_made_is_one_table_or_one_document(
    command: str, commands: dict[str, tuple[str, list[str]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, arguments = commands[command]
    places = [f"{tmp_path}/for people", f"{tmp_path}/for machines"]
    assert call(*arguments, "--output", places[0]) == 0
    table = capfd.readouterr().out
    assert call(*arguments, "--output", places[1], "--json") == 0
    written = strict(capfd.readouterr().out)
    [document] = written if isinstance(written, list) else [written]

    made = Artifact.of_any_kind(places[1])
    assert list(document) == KEYS
    assert document["kind"] == kind and document["uri"] == places[1] and document["digest"] == made.digest
    assert document["results"] == made.manifest.results and document["timings"] == made.manifest.timings
    rows = dict(re.findall(r"^(\S.*?)  +(.+)$", table, re.M))
    assert rows[kind] == places[0] and re.fullmatch(r"[0-9a-f]{64}", rows["digest"])
    assert re.fullmatch(r"\d+:\d\d", rows["time"])
    assert len(table.splitlines()) < 20 and "{" not in table
    assert table.count("\nnext: calm ") == {"prepare": 2, "import": 0}.get(command, 1)


def test_progress_goes_beside_the_result(
    commands: dict[str, tuple[str, list[str]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(*commands["evaluate"][1], "--output", f"{tmp_path}/out") == 0
    captured = capfd.readouterr()
    assert re.search(r"\[evaluate-transformer\] running 2/2 [\d,]+/s BrierLM", captured.err)
    assert "[" not in captured.out.replace("[unknown]", "").replace(" [", "")


def test_an_evaluation_without_prompts_writes_nothing(
    dataset_uri: str, transformer_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = settings("evaluation", *EVALUATION, "prompts=[]")
    arguments = ["--dataset", dataset_uri, "--output", f"{tmp_path}/out"]
    assert call("evaluate", transformer_uri, *arguments, *changes) == 0
    facts = Artifact(f"{tmp_path}/out", EvaluationFacts).facts
    assert facts.samples == [] and facts.generation_tokens_per_second == 0


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["inspect", "{}"], [*KEYS, "config", "parents", "origins", "code_version"]),
        (["verify", "{}"], ["kind", "uri", "digest", "files", "bytes", "seconds"]),
        (["estimate", "--gpus", "16"], ["gpus", "models"]),
    ],
    ids=["inspect", "verify", "estimate"],
)
def test_what_is_only_looked_at_is_one_document_too(
    command: list[str], keys: list[str], dataset_uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(*(part.format(dataset_uri) for part in command), "--json") == 0
    assert list(strict(capfd.readouterr().out)) == keys


def test_a_mixture_is_verified_with_its_datasets(
    dataset_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(dataset_uri, str(tmp_path / "copy"))
    assert call("data", "mix", f"{dataset_uri}=1", f"{copy}=1", "--output", f"{tmp_path}/mixture") == 0
    capfd.readouterr()
    assert call("verify", f"{tmp_path}/mixture", "--json") == 0
    document = strict(capfd.readouterr().out)
    assert document["kind"] == "mixture"
    for part, uri in zip(document["datasets"], (dataset_uri, copy), strict=True):
        assert part["kind"] == "dataset" and part["uri"].endswith(uri)


@pytest.mark.parametrize(
    "command",
    [
        lambda dataset, model: ["estimate", "--profile", "calm-xl", "--gpus", "1024"],
        lambda dataset, model: ["inspect", dataset, "--sequences", "0"],
        lambda dataset, model: ["inspect", model],
    ],
    ids=["estimate", "inspect a dataset", "inspect a model"],
)
def test_tables_fit_80_columns(
    command: Callable[[str, str], list[str]],
    dataset_uri: str,
    model_uris: tuple[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """But for digests and places, which are whole."""
    assert call(*command(dataset_uri, model_uris[0])) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not re.search(r"[0-9a-f]{16}|/", line)) <= 80
    assert not any("…" in line for line in lines)


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    """As a manifest from elsewhere may have them; half a character is escaped."""
    print_json({"loss": float("nan"), "rates": [float("inf"), 1.5], "text": "\ud800é\x1b"})
    out = capsys.readouterr().out
    assert out.isascii() and strict(out) == {"loss": None, "rates": [None, 1.5], "text": "\ud800é\x1b"}


def test_a_model_tells_what_its_training_took_where_that_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks for an hour; 1,800,000 J."""
    facts = {"vocab_size": 9, "pad_id": 0, "eos_id": 1, "parameters": 5, "seconds": 3600.0}
    measured = {"accelerator_seconds": 7200.0, "energy_joules": 1.8e6}
    for name, own in (("measured", measured), ("unknown", {})):
        with ArtifactWriter(str(tmp_path / name), TransformerFacts, {}, {}) as writer:
            writer.facts = TransformerFacts(**facts, **own)
        assert call("inspect", str(tmp_path / name)) == 0
    told, untold = capsys.readouterr().out.split("settings")[:2]
    assert re.search(r"accelerator-hours +2\n", told) and re.search(r"energy +0.5 kWh\n", told)
    assert "accelerator" not in untold and "energy" not in untold
