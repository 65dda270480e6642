"""The command line: help that teaches, settings, errors of one line."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import pytest
import typer
import yaml

from calm_cli import run
from calm_cli.board import Board
from calm_cli.main import app, main
from calm_cli.options import with_options
from calm_core.config import HEADS, Config, TrainingConfig, parse_section, resolve_config
from calm_core.store.code_version import code_version
from calm_core.telemetry.progress import ProgressEvent
from pipelines import profiles
from pipelines.local.home import Home
from pipelines.local.run import Ending

_COMMAND_LINE: Any = typer.main.get_command(app)
COMMANDS = [name for name in _COMMAND_LINE.commands if name != "data"]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    return int(ending.value.code or 0)


def test_help_names_every_command_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f" {command} " in text
    assert "calm run --source" in text


@pytest.mark.parametrize("arguments", [[], ["-h"], ["data"], ["data", "-h"], ["run", "-h"], ["data", "mix", "-h"]])
def test_help_is_there_for_whoever_asks_or_says_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 0
    captured = capsys.readouterr()
    assert f"Usage: {' '.join(['calm', *arguments]).removesuffix(' -h')} [OPTIONS]" in captured.out
    assert captured.err == ""
    for word_of_python in ("<str>", "<int", "<float", "<bool>", "list["):
        assert word_of_python not in captured.out


def test_the_version_names_code_and_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    shown = capsys.readouterr().out
    assert shown == f"calm {version('calm-pipelines')}, code {code_version()}, Python {python_version()}\n"


def test_what_is_not_there_is_told_before_anything_is_imported_that_takes_seconds() -> None:
    """In one process: each refusal by a command that needs torch or MLflow for its work."""
    program = """
import sys
from calm_cli.main import main
for command in (
    "generate a --model nothere", "evaluate nothere --dataset d --output o", "export nothere --output o",
    "register nothere --evaluation e --output o", "train autoencoder --dataset nothere --output o",
    "compare nothere", "inspect nothere", "verify nothere", "estimate --set calm.steps=0", "run --set a=1",
):
    try:
        main(command.split())
    except SystemExit as ending:
        assert ending.code, command
    heavy = {"torch", "mlflow", "deepspeed", "kfp", "pandas"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stderr.splitlines()) == 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    assert f"calm {command}" in capsys.readouterr().out.split("Example", 1)[1]


def test_config_prints_a_profile_with_descriptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", "--set", "calm.steps=77") == 0
    text = capsys.readouterr().out
    assert "steps: 77" in text
    assert "# optimiser steps" in text
    assert parse_section(Config, yaml.safe_load(text)) == resolve_config(profiles.load("tiny"), ["calm.steps=77"])


def test_source_and_text_field_are_taken_literally(tmp_path: Path) -> None:
    from calm_cli.options import configuration

    config = configuration("tiny", [], {"data.sources": ["a: b/*.jsonl", "c.txt"], "data.text_field": "yes"})
    assert config.data.sources == ("a: b/*.jsonl", "c.txt")
    assert config.data.text_field == "yes"


@pytest.mark.parametrize("command", [["generate", "The climate of"], ["ui"]], ids=["generate", "ui"])
def test_without_a_run_there_is_nothing_to_use(
    command: list[str], empty_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*command) == 1
    assert "`calm run` trains and registers a model" in capsys.readouterr().err
    assert list(empty_home.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["config"], ["estimate"], ["runs"], ["inspect", "nothing"], ["verify", "nothing"], ["compare", "a", "b"]],
)
def test_what_only_reads_makes_no_home(command: list[str], empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(empty_home)
    monkeypatch.delenv("CALM_HOME")
    call(*command)
    assert list(empty_home.iterdir()) == []


def test_a_second_run_in_the_same_home_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Home.find().lock():
        assert call("run", "--source", "a.txt") == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "another `calm run` is at work here" in error


class EndedRun:
    log = Path("logs/pipeline.log")

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    def ending(self) -> Ending:
        return self._ending


KILLED = Ending("train-calm", "its process was killed (SIGKILL)", can_pass=True)
BROKEN = Ending("find-duplicates", "it broke before it could say why (TypeError: x)", can_pass=False)


def failed(note: str, can_pass: bool) -> ProgressEvent:
    return ProgressEvent(time=0, stage="prepare", state="failed", note=note, can_pass=can_pass)


@pytest.mark.parametrize(
    ("event", "ending", "line"),
    [
        (failed("a.jsonl: is gone", False), BROKEN, "prepare: a.jsonl: is gone (log: logs/pipeline.log)"),
        (
            failed("s3://a: the storage failed; then run the same command again", True),
            BROKEN,
            "prepare: s3://a: the storage failed; then run the same command again: finished stages come from the cache "
            "(log: logs/pipeline.log)",
        ),
        (
            failed("prepare: the network is down", True),
            BROKEN,
            "prepare: the network is down; run the same command again: finished stages come from the cache "
            "(log: logs/pipeline.log)",
        ),
        (
            ProgressEvent(time=0, stage="train-calm", state="running"),
            KILLED,
            "train-calm: its process was killed (SIGKILL); run the same command again: finished stages come from the "
            "cache (log: logs/pipeline.log)",
        ),
        (None, BROKEN, "find-duplicates: it broke before it could say why (TypeError: x) (log: logs/pipeline.log)"),
    ],
    ids=["wrong input", "storage", "its own name", "killed", "before a stage has begun"],
)
def test_a_failed_run_says_once_what_why_and_how_to_go_on_where_that_can_help(
    event: ProgressEvent | None, ending: Ending, line: str
) -> None:
    board = Board()
    if event:
        board.apply(event)
    board.fail(now=1)
    error = run.failure(board, EndedRun(ending))  # type: ignore[arg-type]  # a stand-in with what is asked for
    assert str(error) == line
    assert error.can_pass == ("again" in line)


def test_an_estimate_shows_all_three_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("estimate", "--profile", "calm-m", "--gpus", "16") == 0
    text = capsys.readouterr().out
    assert "autoencoder" in text and "CALM" in text and "Transformer" in text
    assert "371,732,608" in text
    assert "ZeRO 3, 16 GPUs" in text


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.txt: no such file; check data.sources", "a.txt: no such file; check data.sources (--source)"),
        ("name it with autoencoder_uri", "name it with --autoencoder"),
        ("run it again (with fewer workers)", "run it again (with fewer --workers)"),
        ("s3://a/workers/output_uri.txt: is gone", "s3://a/workers/output_uri.txt: is gone"),
        ("my_workers and data.sources_of", "my_workers and data.sources_of"),
    ],
)
def test_the_librarys_messages_get_the_options_of_the_command_line(message: str, shown: str) -> None:
    assert with_options(message) == shown


def test_what_can_be_trained_and_chosen_comes_from_the_registries(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "house", "--dataset", "d", "--output", "o") == 2
    error = capsys.readouterr().err
    assert all(kind in error for kind in TrainingConfig.of_kind)
    assert call("train", "calm", "--head", "round", "--dataset", "d", "--output", "o") == 2
    error = capsys.readouterr().err
    assert all(kind in error for kind in HEADS.classes)


def test_a_head_is_calms_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "transformer", "--head", "flow", "--dataset", "d", "--output", "o") == 2
    assert "--head: is CALM's, transformer has none" in capsys.readouterr().err


def test_an_artifact_writes_as_a_registered_model_does(
    model_uris: tuple[str, str], transformer_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a run, a registry or the name of its autoencoder."""
    for model, samples in ((model_uris[1], ["--samples", "4"]), (transformer_uri, [])):
        texts = set()
        for _ in range(2):
            assert call("generate", "the river", "--model", model, "--max-new-tokens", "4", *samples) == 0
            texts.add(capsys.readouterr().out)
        assert len(texts) == 1
        assert texts.pop().startswith("the river")


def test_inspect_shows_a_model(model_uris: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", model_uris[1]) == 0
    text = capsys.readouterr().out
    for shown in ("validation energy loss", "made from autoencoder", "chunk size", '"kind": "energy"'):
        assert shown in text


def test_without_an_extra_the_program_says_what_to_install() -> None:
    program = "import sys; sys.modules['typer'] = None; from calm_cli.start import main; main()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error typer is not installed; the command line and the stages are extras of the library: "
        "pip install 'calm-pipelines[all]'\n"
    )


def test_prepare_takes_the_text_that_comes_with_the_installation_as_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--set", "tokenizer.vocab_size=300", "--set", "tokenizer.max_training_bytes=100000"]
    assert call("prepare", "--output", str(tmp_path / "dataset"), "--workers", "1", *changes) == 0
    assert "factbook.jsonl" in capsys.readouterr().out
