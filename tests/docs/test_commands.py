"""Every documented command and snippet does what it says: it is run in a small prepared folder.

A command that is not run has its reason below, and its options and settings have to be right all the same.
"""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import typer
from typer.core import TyperGroup

import pipelines.profiles
from calm_cli.main import app, main
from calm_cli.options import configuration
from calm_cli.sweep_runs import Work
from calm_core.config import RegistryConfig
from calm_core.config import text as settings_text
from calm_core.data.mixture import mix_datasets
from calm_core.errors import ConfigError
from calm_core.registry.aliases import Aliases
from calm_core.registry.stage import register_model
from calm_core.training.launcher import TorchrunLauncher
from pipelines.compile import TRAIN_PIPELINE
from pipelines.local.home import Home
from pipelines.local.run import LocalRun
from pipelines.local.tracking import use_tracking
from tests.conftest import sentences
from tests.docs import documented
from tests.docs.documented import ROOT, Documented
from tests.k8s.rendered import kubectl, render
from tests.weights.public_folders import (
    AUTOENCODER_CONFIG,
    CALM_CONFIG,
    autoencoder_shapes,
    calm_shapes,
    random_weights,
    write_folder,
    write_tokenizer,
)

MINI = ROOT / "tests" / "pipelines" / "mini.yaml"

WRITTEN_AS = (
    (r"calm prepare \.\.\.", "calm prepare --source texts.jsonl --output out/new"),
    (r"s3://bucket/", "bucket/"),  # a folder: what S3 itself needs is tested with a server of its own
    (r"\bURI=WEIGHT\.\.\.", "out/web=1"),
    (r"\bURI\b", "out/calm"),
    (r"\bDIR\b", "llama3_tokenizer"),
    (r"\bNAME\b", "small"),
    (r"\bRUN\b", "1"),
    (r"--output llama3_tokenizer\b", "--output out/new"),
    (r"\b(models:/calm/)\d+", r"\g<1>1"),
    (r"^calm report \d+", "calm report 1"),
    (r"^calm runs (logs|show) \d+", r"calm runs \1 1"),
    (r"^calm runs \d+", "calm runs show 1"),
    (r"^(calm prepare)\b", r"\1 --workers 1"),
)
"""How what stands for something in a command is written here."""

NOT_RUN = (
    (r"make \w+", "installs everything, and then does what the tests and the command line do"),
    (r"docker push|docker/base\.sh|CALM_TEST_IMAGE=\S+ make", "needs an engine of containers; .ci/run has one"),
    (r"\. \.venv/bin/activate|export \w+=", "changes the reader's shell"),
    (
        r"python -m benchmarks",
        "minutes of measuring; tests/models/test_plain_step.py and tests/evaluation run parts of it",
    ),
    (r"python -m tests.reliability", "minutes; tests/reliability runs a part of it"),
    (
        r"pip install|curl|printf|mlflow (models serve|artifacts download)|hf download",
        "needs a package index or a server; tests/registry/test_consumer.py has what concerns MLflow",
    ),
    (r"mlflow (server|db upgrade)", "needs PostgreSQL and S3; tests/registry/test_mlflow_on_postgres.py starts them"),
    (r"kubectl (auth|delete|get|patch|port-forward|rollout|wait)", "needs a cluster"),
    (r"pg_dump", "needs a database; the command is PostgreSQL's own"),
    (r"calm ui", "serves until Ctrl-C"),
    (
        r"calm (submit|schedule|runs .*--host|sweep .*--cluster)",
        "needs Kubeflow; tests/cluster has servers that answer as it does",
    ),
    (r"calm doctor", "ends as the machine is; tests/cluster/test_doctor.py has machines and clusters of all kinds"),
    (r"calm train .*initial_weights", "tests/training/test_initial_weights.py has models of one shape"),
    (r"calm prepare .*(tokenizer\.model|--extends)", "tests/data has that file, and grown datasets"),
    (r"calm prepare .*</s>|calm prepare .*eos_token", "stands for names of another tokenizer"),
)
"""Commands that are not run, and why."""


SNIPPETS_NOT_RUN = (
    (r"https?://(localhost|127\.0\.0\.1)", "asks a server; tests/registry/test_serving.py starts one"),
    (r"create_webhook", "needs a server; tests/registry/test_registry_server.py starts one"),
)


class Started(BaseException):
    """A pipeline or the ranks of a training would work from here on, for minutes: every check is passed."""


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    dataset_uri: str,
    model_uris: tuple[str, str],
    transformer_uri: str,
    evaluation_uri: str,
) -> Iterator[Path]:
    """A folder with everything that documented commands read, by the names that they use."""
    folder = tmp_path_factory.mktemp("documented")
    _write_texts(folder, _lines(40))
    (folder / "prompts.csv").write_text("id,prompt\n1,The climate of\n2,The economy\n")
    autoencoder, calm = model_uris
    made = {"autoencoder": autoencoder, "calm": calm, "transformer": transformer_uri, "evaluation": evaluation_uri}
    made |= {"calm-m/autoencoder": autoencoder, "calm-m/calm": calm, "score": evaluation_uri}
    made |= dict.fromkeys(("data", "dataset", "web", "books", "d"), dataset_uri)
    for name, uri in made.items():
        shutil.copytree(uri, folder / "out" / name)
    for name, uri in (("calm/autoencoder", autoencoder), ("calm/dataset", dataset_uri), ("dataset", dataset_uri)):
        shutil.copytree(uri, folder / "bucket" / name)
    _write_public(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _own_environment(patch)
        mix_datasets({"out/web": 0.8, "out/books": 0.2}, "out/mixture")
        _evaluate_baseline(folder)
        home = Home.find()
        use_tracking(home, "calm")
        register_model(RegistryConfig(), calm, evaluation_uri, str(folder / "out" / "registration"))
        _promote_another(folder)
        run = home.logs / "run-20261125-181530-abcdefgh"
        run.mkdir(parents=True)
        (run / "pipeline.log").write_text("what it printed\n")
        (run / "outputs.json").write_text(json.dumps({"evaluation_report": str(folder / "out" / "evaluation")}))
    yield folder
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # unset, or it would count for all tests after these


def _lines(number: int) -> str:
    return "".join(json.dumps({"text": sentences(i, 12), "body": sentences(i, 9)}) + "\n" for i in range(number))


def _write_texts(folder: Path, texts: str) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "texts").mkdir()
    (folder / "bucket" / "web").mkdir(parents=True)
    (folder / "texts" / "a.jsonl.gz").write_bytes(gzip.compress(texts.encode()))
    (folder / "texts" / "b.jsonl").write_text(texts)
    (folder / "texts.jsonl").write_text(texts)
    (folder / "wikitext-103-test.jsonl").write_text(_lines(160))  # more than one sequence of 8,192 tokens
    (folder / "notes.txt").write_text(sentences(99, 50))
    rows = [json.loads(line) for line in texts.splitlines()]
    for path in ("more.parquet", "bucket/a.parquet", "bucket/web/a.parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / path)


def _write_public(folder: Path) -> None:
    inner, whole = random_weights(autoencoder_shapes(), 1), random_weights(calm_shapes(), 2)
    whole |= {f"ae_model.{name}": value for name, value in inner.items()}
    for name in ("llama3_tokenizer", "downloads/llama3_tokenizer", "path/to/hugging-face-folder", "path/to", "CALM-AE"):
        config = write_tokenizer(folder / name) / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": "<|eot_id|>"}))
    for parent in (folder, folder / "downloads"):
        write_folder(parent / "CALM-M", CALM_CONFIG, whole)
        write_folder(parent / "CALM-Autoencoder", AUTOENCODER_CONFIG, inner)
    write_folder(folder / "CALM-AE", AUTOENCODER_CONFIG, inner)


def _evaluate_baseline(folder: Path) -> None:
    from calm_core.config import EvaluationConfig
    from calm_core.evaluation.stage import evaluate

    config = EvaluationConfig(samples=2, max_sequences=16, prompts=("the river",), prompt_tokens=4)  # as the other one
    evaluate(config, "out/dataset", "out/transformer", str(folder / "out" / "baseline"), seed=0)


def _promote_another(folder: Path) -> None:
    """A second version, of the same model with other noise, which somebody has made champion."""
    from calm_core.config import EvaluationConfig
    from calm_core.evaluation.stage import evaluate

    config = EvaluationConfig(samples=2, max_sequences=16, prompts=("the river",), prompt_tokens=4)  # as the other one
    scores = evaluate(config, "out/dataset", "out/calm", str(folder / "second"), seed=1)
    second = register_model(RegistryConfig(promote="never"), "out/calm", scores.uri, str(folder / "second-version"))
    Aliases(RegistryConfig(), lambda *_: None).promote(second.facts.version, "to be rolled back")


def _own_environment(patch: pytest.MonkeyPatch) -> None:
    for name in ("CALM_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "CALM_PROGRESS_FILE"):
        patch.setenv(name, "restored after the test")
        patch.delenv(name)


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the place as the current folder, where `tiny` is as small as every stage can be."""
    folder = tmp_path / "here"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    _own_environment(monkeypatch)
    load = pipelines.profiles.load
    mini = settings_text.read(MINI.read_text(encoding="utf-8"))
    monkeypatch.setattr(pipelines.profiles, "load", lambda name: dict(mini) if name == "tiny" else load(name))

    def start_pipeline(arguments: dict[str, Any], *others: Any, **named: Any) -> None:
        from kfp import components

        components.load_component_from_file(str(TRAIN_PIPELINE))  # its inputs are what a run is given
        raise Started

    def start_ranks(*others: Any) -> None:
        raise Started

    monkeypatch.setattr(LocalRun, "start", start_pipeline)
    monkeypatch.setattr(TorchrunLauncher, "run", start_ranks)
    monkeypatch.setattr(Work, "do", start_ranks)
    return folder


def _missing(arguments: list[str]) -> str:
    """What a command lacks to be run, as one in a sentence may; its options and settings are right.

    Raises:
        ConfigError: A command, an option or a setting does not exist, or takes no such value.
    """
    command: Any = typer.main.get_command(app)
    name = "calm"
    while isinstance(command, TyperGroup) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in command.commands:
            raise ConfigError(f"no command {name}")
        command = command.commands[name]
    try:
        with command.make_context(name, list(arguments)) as context:
            values = context.params
    except typer.Exit:  # --help, --version
        return ""
    except ConfigError as error:
        if " is missing (" not in str(error):
            raise
        return str(error)
    if "profile" in values and Path(values["profile"]).suffix != ".yaml":
        configuration(values["profile"], values.get("set_"))
    return ""


def _run(arguments: list[str], output: Path | None, monkeypatch: pytest.MonkeyPatch) -> int:
    written = io.BytesIO()
    if output:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", write_through=True))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the river"), encoding="utf-8"))
    try:
        main(arguments)
    except Started:
        assert arguments[0] in ("run", "retrain", "train", "sweep")
        return 0
    except SystemExit as ending:
        return int(ending.code or 0)
    finally:
        if output:
            output.write_bytes(written.getvalue())
    raise AssertionError


def _without_a_cluster(words: list[str]) -> None:
    """What a command of Kubernetes would apply or make."""
    if "|" in words:
        words, taker = words[: words.index("|")], words[words.index("|") + 1 :]
        assert taker[:2] in (["kubectl", "create"], ["kubectl", "replace"])
    if words[0] == "sh":
        subprocess.run([words[0], str(ROOT / words[1])], check=True, stdout=subprocess.DEVNULL)
    elif words[1] in ("kustomize", "apply"):
        assert len(words) == (3 if words[1] == "kustomize" else 4) and words[2:-1] in ([], ["--kustomize"])
        assert render(ROOT / words[-1])
    else:
        assert words[1] == "create"
        for name in ("runs.env", "mlflow.env"):
            Path(name).write_text("AWS_ACCESS_KEY_ID=a\n")
        made = subprocess.run(
            [kubectl(), *words[1:], "--dry-run=client", "--output=name"], check=True, capture_output=True
        )
        assert made.stdout


@pytest.mark.parametrize("command", documented.commands(), ids=lambda each: f"{each.where}: {each.text.strip()[:90]}")
def test_a_documented_command_runs(
    command: Documented, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = command.text.strip()
    for pattern, written in WRITTEN_AS:
        text = re.sub(pattern, written, text)
    words = [word for word in shlex.split(text, comments=True) if not word.startswith("2>")]
    output = Path(words[words.index(">") + 1]) if ">" in words else None
    words = words[: words.index(">")] if output else words
    is_run = not any(re.match(pattern, text) for pattern, _ in NOT_RUN)
    if words[0] in ("kubectl", "sh") and is_run:
        _without_a_cluster(words)
        return
    if words[0] != "calm":
        assert not is_run, f"{command.where}: say in NOT_RUN why this is not run, or run it here: {text}"
        return
    missing = _missing(words[1:])
    assert not missing or command.is_named, missing
    if missing or not is_run:
        return
    if "my.yaml" in words:
        assert _run(["config"], Path("my.yaml"), monkeypatch) == 0
    if "--output" in words:
        shutil.rmtree(here / words[words.index("--output") + 1], ignore_errors=True)
    assert _run(words[1:], output, monkeypatch) == 0, capsys.readouterr().err


def test_a_command_that_does_not_exist_is_noticed() -> None:
    typed = ("rum", "run --sauce a", "run --set calm.lerning_rate=1", "train picture", "data nix", "inspect --frist")
    for wrong in typed:
        with pytest.raises(ConfigError):
            _missing(shlex.split(wrong))


@pytest.mark.parametrize("snippet", documented.blocks("python"), ids=lambda each: each.where)
def test_a_documented_snippet_runs(snippet: Documented, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves nothing behind in the current folder."""
    if any(re.search(pattern, snippet.text) for pattern, _ in SNIPPETS_NOT_RUN):
        return
    before = set(here.iterdir())
    text = snippet.text.replace("http://mlflow.example:5000", "sqlite:///.calm/mlflow.db")
    if "set_tracking_uri" not in text:  # the page says before it which variable to set
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///.calm/mlflow.db")
        mlflow.set_tracking_uri("sqlite:///.calm/mlflow.db")
    exec(compile(text, snippet.where, "exec"), {})
    assert set(here.iterdir()) == before


@pytest.mark.parametrize("block", documented.blocks("yaml"), ids=lambda each: each.where)
def test_a_documented_profile_is_one(block: Documented, tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(block.text)
    configuration(str(tmp_path / "profile.yaml"), ())


def test_the_tables_name_what_is_documented() -> None:
    texts = [each.text.strip() for each in documented.commands()]
    for pattern, _ in NOT_RUN:
        assert any(re.match(pattern, text) for text in texts), f"no command any more: {pattern}"
