"""A mistake of a user, what is answered, and the proof that nothing was done or lost before the answer."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from calm_cli.main import main

_SECONDS = 120  # after which an answer counts as a hang


@dataclass(frozen=True)
class Mistake:
    """What somebody does wrongly, and the one line that answers it.

    Attributes:
        name: In words.
        command: Arguments of `calm`. {dataset}, {autoencoder}, {calm}, {transformer} and {evaluation} stand for small
            artifacts (copies, free to be changed), {folder} for the current folder.
        says: Parts of the line.
        exit_code: 1, or 2 for wrong settings or usage.
        files: Made in the current folder before, by path; in a path and in a text the same names stand for the same.
        environment: Variables; None unsets one.
        arrange: Does whatever else comes before; gets the current folder.
        as_process: It needs a process of its own, e.g. since the environment is read when Python starts.
        stdin: What is piped in.
    """

    name: str
    command: tuple[str, ...]
    says: tuple[str, ...]
    exit_code: int = 1
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)
    arrange: Callable[[Path], object] = lambda folder: None
    as_process: bool = False
    stdin: bytes = b""


def check(
    mistake: Mistake,
    folder: Path,
    artifacts: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Make the mistake, and look at the answer: its exit code, one line, no traceback, before any stage has begun, and
    every file as it was."""
    home = folder / "home"
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CALM_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "restored after the test")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unset after the test, whatever is set in between")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name, value in mistake.environment.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    places = artifacts | {"folder": str(folder)}
    for path, content in mistake.files.items():
        file = folder / path.format(**places)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.format(**places).encode() if isinstance(content, str) else content)
    mistake.arrange(folder)
    arguments = [argument.format(**places) for argument in mistake.command]
    before = _files(folder.parent, home)

    capfd.readouterr()
    if mistake.as_process:
        exit_code = _in_a_process(arguments, mistake.stdin)
    else:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(mistake.stdin), encoding="utf-8"))
        exit_code = _here(arguments)
    out, err = capfd.readouterr()

    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]  # said on a slow machine
    assert len(lines) == 1, err
    assert lines[0].startswith("error ")
    for part in mistake.says:
        assert part.format(**places) in lines[0], lines[0]
    assert exit_code == mistake.exit_code
    assert out == ""  # a stage that had begun would have said so
    assert not list(home.glob("logs/run-*"))
    assert _files(folder.parent, home) == before


def _files(folder: Path, home: Path) -> dict[Path, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(home))
    return {path: path.read_bytes() for path in found}


def _here(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    return int(ending.value.code or 0)


def _in_a_process(arguments: list[str], stdin: bytes) -> int:
    command = [sys.executable, "-c", "from calm_cli.start import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(command, input=stdin, env=environment, timeout=_SECONDS, check=False).returncode
