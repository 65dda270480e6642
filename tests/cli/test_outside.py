"""What comes from outside on its way to a terminal and to files: it acts on no terminal, and no secret is kept."""

import io
import json
import unicodedata
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from calm_cli.main import main
from calm_cli.screen import Screen
from calm_core.config import AutoencoderConfig
from calm_core.errors import CalmError
from calm_core.shown import SafeStream
from calm_core.training.stage import train

SECRET = "s3cr3t"
HTTPS, S3 = f"https://user:{SECRET}@127.0.0.1:9/a.jsonl", f"s3://KEY:{SECRET}@bucket/place"
EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e[red]:warning:\x08\r"
SMALL = [
    "--set",
    "tokenizer.vocab_size=300",
    "--set",
    "data.sequence_length=128",
    "--set",
    "data.validation_fraction=0.3",
]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "restored after the test")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    return int(ending.value.code or 0)


def files_with(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--source", HTTPS],
        ["run", "--source", f"texts/*.jsonl,{HTTPS}"],
        ["run", "--set", f"data.sources=[{HTTPS}]"],
        ["run", "--source", f"https://host/a.jsonl?X-Amz-Credential=a&X-Amz-Signature={SECRET}"],
        ["run", "--set", f"experiment={HTTPS}"],
        ["run", "--set", f"calm.steps={HTTPS}"],
        ["run", "--set", HTTPS],
        ["run", "--profile", f"{HTTPS}.yaml"],
        ["run", "--set", f"tokenizer.source={S3}"],
        ["prepare", "--source", HTTPS, "--output", "out"],
        ["prepare", "--extends", S3, "--output", "out"],
        ["prepare", "--output", S3],
        ["train", "autoencoder", "--dataset", S3, "--output", "out"],
        ["train", "autoencoder", "--dataset", "no", "--output", "out", "--checkpoints", S3],
        ["train", "calm", "--dataset", "no", "--autoencoder", S3, "--output", "out"],
        ["evaluate", S3, "--dataset", "no", "--output", "out"],
        ["evaluate", "no", "--dataset", S3, "--output", "out"],
        ["compare", S3, "no"],
        ["register", S3, "--evaluation", "no", "--output", "out"],
        ["inspect", S3],
        ["verify", HTTPS],
        ["data", "mix", f"{S3}=1", "--output", "out"],
        ["generate", "a", "--model", S3],
        ["export", S3, "--output", "out"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_secret_in_a_url_is_refused_and_kept_nowhere(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) in (1, 2)
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "Traceback" not in shown.err
    assert files_with(SECRET, tmp_path) == []


@pytest.mark.parametrize("place", ["output_uri", "checkpoint_root"])
def test_where_a_stage_writes_is_checked_before_it_starts(place: str, dataset_uri: str, tmp_path: Path) -> None:
    """Called from Python, too, where no command line looks first; a spec with the secret would lie there."""
    places = {"output_uri": str(tmp_path / "out"), "checkpoint_root": str(tmp_path / "checkpoints"), place: S3}
    with pytest.raises(CalmError, match="a password or key in a URL is not taken"):
        train(AutoencoderConfig(), dataset_uri, seed=0, **places)
    assert files_with(SECRET, tmp_path) == []


def test_a_tracking_uri_with_a_password_is_not_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert call("run") == 1
    shown = capfd.readouterr()
    assert "MLflow does not answer" in shown.err
    assert SECRET not in shown.out + shown.err
    assert files_with(SECRET, tmp_path) == []


def test_the_log_of_a_run_holds_no_secret_and_nothing_that_acts() -> None:
    stream = io.StringIO()
    log = SafeStream(stream)
    print(f"Traceback\n  File x\nOSError: cannot reach {HTTPS}\x1b[2J", file=log)
    assert stream.getvalue() == "Traceback\n  File x\nOSError: cannot reach https://***@127.0.0.1:9/a.jsonl\\x1b[2J\n"


def test_a_fault_of_ours_shows_its_traceback_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"cannot reach {HTTPS}\x1b[2J")

    monkeypatch.setattr("calm_cli.main.configuration", broken)
    assert call("config") == 1
    shown = capfd.readouterr().err
    assert "Traceback" in shown and "in broken\n" in shown
    assert SECRET not in shown and "\x1b" not in shown


def acting(text: str) -> set[str]:
    return {char for char in text if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")} | {
        char for char in text if unicodedata.bidirectional(char) in ("RLO", "LRO", "RLI", "LRI", "RLE", "LRE", "PDF")
    }


def test_documents_and_file_names_do_not_act_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    documents = [json.dumps({"text": f"document {i} {EVIL} of many words"}) for i in range(40)]
    evil = texts / "a\x1b[2J\u202e[red].jsonl"
    evil.write_text("\n".join([*documents, '{"no": 1}', "broken"]))
    dataset = str(tmp_path / "dataset")
    prepare = ("prepare", "--source", f"{texts}/*.jsonl", "--output", dataset, "--workers", "1", *SMALL)
    assert call(*prepare) == 1
    evil.rename(texts / "a\u202e[red].jsonl")
    assert call(*prepare) == 0
    assert call("inspect", dataset) == 0
    assert call("verify", dataset) == 0
    assert call("inspect", str(tmp_path / f"no{EVIL}")) == 1
    shown = capfd.readouterr()
    assert acting(shown.out + shown.err) == set()
    for seen in (
        "\\x1b]0;title\\x07\\x9b31m\\u202e[red]:warning:\\x08",
        "rejected: ",
        "a\\x1b[2J",
        "a\\u202e[red].jsonl",
    ):
        assert seen in shown.out + shown.err


def test_only_the_screens_own_controls_reach_a_terminal() -> None:
    """Whatever way text takes into a table, a live display or a line; rich itself lets an escape through."""
    written = io.StringIO()
    screen = Screen(file=written, force_terminal=True, width=200, color_system=None)
    table = Table("name")
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    screen.print(EVIL, style="bold")
    screen.print(table)
    with Live(console=screen, auto_refresh=False, get_renderable=lambda: table) as live:
        live.refresh()
    screen.print_json(data={"a": EVIL})
    assert "\x1b[2J" not in written.getvalue() and "\x1b]0;" not in written.getvalue()
    assert written.getvalue().count("[red]:warning:") >= 4
    plain = io.StringIO()
    Console(file=plain, force_terminal=True).print(Text(EVIL))
    assert "\x1b[2J" in plain.getvalue()  # what this guards against
