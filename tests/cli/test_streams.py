"""Standard streams and environments of every kind: a command does its work, or says in one line why not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-c", "from calm_cli.start import main; main()"]


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command of a shell in which `calm` is the program."""
    program = " ".join(f"'{part}'" for part in PROGRAM)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'calm() {{ {program} "$@"; }}; {command}'],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[2]), "CALM_HOME": "home", "COLUMNS": "80"}
        | environment,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_standard_output_may_lack_characters(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("experiment: é€\n", encoding="utf-8")
    ended = shell("calm config --profile my.yaml", tmp_path, PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert 'experiment: "é€"'.encode() in ended.stdout  # a profile is UTF-8
    ended = shell("calm --help", tmp_path, PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_reader_that_has_gone_ends_a_command_without_a_word(tmp_path: Path) -> None:
    ended = shell("calm config --profile tiny | true", tmp_path)
    assert ended.stderr == b""
    assert ended.returncode in (0, 141)  # of the signal that ends other programs then, unless all fits into the pipe
    ended = shell("calm config | head -1", tmp_path)
    assert (ended.stdout, ended.stderr) == (b"seed: 0\n", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device, whose writes fail")
@pytest.mark.parametrize("command", ["config", "--help", "--version"])
def test_a_full_disk_is_one_line(command: str, tmp_path: Path) -> None:
    ended = shell(f"calm {command} > /dev/full", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == b"error standard output cannot be written (No space left on device); free some space\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device, whose writes fail")
@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        ("config >&-", 0),
        ("config >&- 2>&- <&-", 0),
        ("config --set a=1 2>&-", 2),
        ("config --set a=1 2>/dev/full", 2),
    ],
)
def test_closed_streams_change_no_exit_code(command: str, exit_code: int, tmp_path: Path) -> None:
    ended = shell(f"calm {command}", tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (exit_code, b"", b"")


def test_closed_standard_input_holds_no_prompt(tmp_path: Path) -> None:
    ended = shell("calm generate <&-", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error standard input: holds no prompt")


def test_bytes_that_are_no_text_are_shown(tmp_path: Path) -> None:
    ended = shell(r"calm run --profile $'caf\xe9'", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error --profile caf\\udce9: ")
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONDONTWRITEBYTECODE": "1"},
        {"PYTHONWARNINGS": "error"},
        {"COLUMNS": "0"},
        {"COLUMNS": "1"},
        {"COLUMNS": "wide"},
        {"TERMINAL_WIDTH": "wide"},
        {"TERM": ""},
        {"HOME": ""},
        {"TMPDIR": "/nowhere"},
    ],
    ids=str,
)
def test_odd_environments_do_no_harm(environment: dict[str, str], tmp_path: Path) -> None:
    ended = shell("calm config > my.yaml && calm config --profile my.yaml && calm run --help", tmp_path, **environment)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.startswith((tmp_path / "my.yaml").read_bytes())
    assert b"--source" in ended.stdout
