"""What a run looks like in a real terminal, which is tmux; and where there is none."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.cli.made_up_run import BEFORE

ROOT = Path(__file__).parents[2]
_SECONDS = 60  # after which a program that draws nothing counts as hanging


class Terminal:
    """A terminal in which a scene of `made_up_run` is shown."""

    def __init__(
        self, folder: Path, columns: int, lines: int, scene: str, lines_before: int = 0, **variables: str
    ) -> None:
        self._folder = folder
        folder.mkdir()
        shown = ["-m", "tests.cli.made_up_run", str(folder), scene, str(lines_before)]
        variables = {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"} | variables
        assignments = [f"{name}={value}" for name, value in variables.items()]
        size = ("-x", str(columns), "-y", str(lines))
        # Nothing of the environment decides what the program draws.
        command = ["env", "-u", "COLUMNS", "-u", "LINES", "-u", "NO_COLOR", *assignments, sys.executable, *shown]
        self._tmux("-f", os.devnull, "new-session", "-d", *size, *command)

    def seen(self, frame: int = 0) -> list[str]:
        """The lines of the terminal once a frame has been drawn."""
        deadline = time.monotonic() + _SECONDS
        while not (self._folder / f"drawn-{frame}").exists():
            assert time.monotonic() < deadline, self._tmux("capture-pane", "-p")
            time.sleep(0.01)
        return self._tmux("capture-pane", "-p").rstrip("\n").splitlines()

    def go_on(self, frame: int) -> None:
        """Let the frame after this one be drawn."""
        (self._folder / f"go-on-{frame}").touch()

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def close(self) -> None:
        self._tmux("kill-server")

    def _tmux(self, *arguments: str) -> str:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        environment.pop("TMUX", None)
        command = ["tmux", "-u", "-S", str(self._folder / "socket"), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


class Terminals:
    """Makes terminals, and closes them in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: list[Terminal] = []

    def __call__(self, columns: int, lines: int, scene: str, lines_before: int = 0, **variables: str) -> Terminal:
        folder = self._folder / str(len(self._open))
        self._open.append(Terminal(folder, columns, lines, scene, lines_before, **variables))
        return self._open[-1]

    def close(self) -> None:
        for terminal in self._open:
            terminal.close()


@pytest.fixture
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminals]:
    if shutil.which("tmux") is None:
        message = "tmux is not installed; Debian: apt-get install tmux"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    made = Terminals(tmp_path_factory.mktemp("t"))
    yield made
    made.close()


def lines(text: str) -> list[str]:
    return text.strip("\n").splitlines()


AT_80_BEFORE = lines("""
stage              state     time  progress
prepare            done      0:13  256 documents, 2,235,365 tokens, 0 rejected
train-autoencoder  running   0:06  starting
train-calm         waiting
evaluate           waiting
register           waiting
total                        0:21
""")
AT_80 = lines("""
stage              state     time  progress
prepare            done      0:13  256 documents, 2,235,365 tokens, 0 rejected
train-autoencoder  running   0:30  ━━────   25%  1:15 left   validation… 80.92%
train-calm         waiting
evaluate           waiting
register           waiting
total                        0:45
""")
AT_120 = lines("""
stage              state     time  progress
prepare            done      0:13  256 documents, 2,235,365 tokens, 0 rejected
train-autoencoder  running   0:30  ━━━─────────   25%  1:15 left    23,696/s  100/400  validation accuracy 80.92%
train-calm         waiting
evaluate           waiting
register           waiting
total                        0:45
""")
AT_60 = lines("""
stage              state     time  progress
prepare            done      0:13  256 documents, 2,235,36…
train-autoencoder  running   0:30   25%  1:15 left
train-calm         waiting
evaluate           waiting
register           waiting
total                        0:45
""")


def test_a_stage_keeps_its_row_when_its_bar_appears(terminal: Terminals) -> None:
    at_80 = terminal(80, 24, "short")
    assert at_80.seen(0) == AT_80_BEFORE
    at_80.go_on(0)
    assert at_80.seen(1) == AT_80


@pytest.mark.parametrize(("columns", "rows", "expected"), [(120, 40, AT_120), (60, 24, AT_60)])
def test_a_wide_terminal_shows_more_and_a_narrow_one_what_matters(
    columns: int, rows: int, expected: list[str], terminal: Terminals
) -> None:
    shown = terminal(columns, rows, "short")
    shown.go_on(0)
    assert shown.seen(1) == expected


LONG = lines("""
stage                 state        time  progress
prepare               done         0:13  256 documents, 2,235,365 tokens, 0 re…
train-autoencoder     cached
train-calm            running  11:29:40   49%  11:45:00 left  validatio… 1.4983
evaluate              waiting
register              waiting
train-transformer     waiting
evaluate-transformer  waiting
total                          11:30:00
""")


def test_a_run_of_hours_with_the_baseline(terminal: Terminals) -> None:
    assert terminal(80, 24, "long").seen() == LONG


FAILING = lines("""
stage              state     time  progress
prepare            done      0:13  256 documents, 2,235,365 tokens, 0 rejected
train-autoencoder  failed    0:45
train-calm         waiting
evaluate           waiting
register           waiting
total                        1:00
""")


def test_the_table_says_which_stage_failed_and_leaves_the_reason_to_the_line_below(terminal: Terminals) -> None:
    assert terminal(80, 24, "failing").seen() == FAILING


@pytest.mark.parametrize(("before", "after"), [((120, 40), (60, 24)), ((60, 24), (120, 40)), ((80, 24), (30, 24))])
def test_a_terminal_that_is_resized_shows_one_table(
    before: tuple[int, int], after: tuple[int, int], terminal: Terminals
) -> None:
    """The table that is drawn over had lines that the terminal has broken, or lengthened."""
    shown = terminal(*before, "short", lines_before=10)
    shown.seen(0)
    shown.resize(*after)
    shown.go_on(0)
    seen = shown.seen(1)
    earlier = seen.count(BEFORE)
    assert earlier >= 5  # what was there stays, but for lines that the terminal has moved out at its top
    seen = seen[earlier:]
    assert [line.split()[0] for line in seen] == [
        "stage", "prepare", "train-autoencoder", "train-calm", "evaluate", "register", "total",
    ]  # fmt: skip
    assert seen == {60: AT_60, 120: AT_120}.get(after[0], seen)


def test_a_low_terminal_shows_the_stage_at_work(terminal: Terminals) -> None:
    shown = terminal(80, 5, "short")
    shown.go_on(0)
    assert shown.seen(1) == [AT_80[0], *AT_80[1:3], AT_80[-1]]


def test_without_the_characters_there_are_others(terminal: Terminals) -> None:
    shown = terminal(80, 24, "short", PYTHONIOENCODING="ascii")
    shown.go_on(0)
    assert shown.seen(1)[2] == "train-autoencoder  running   0:30  ##----   25%  1:15 left   validati... 80.92%"


def test_without_colours_every_state_is_a_word(terminal: Terminals) -> None:
    shown = terminal(80, 24, "short", NO_COLOR="1")
    shown.go_on(0)
    assert shown.seen(1) == AT_80


PLAIN = lines("""
prepare: done  0:13  256 documents, 2,235,365 tokens, 0 rejected
train-autoencoder: running  0:06  starting
""")


def test_a_terminal_that_cannot_be_drawn_over_gets_lines(terminal: Terminals) -> None:
    assert terminal(80, 24, "short", TERM="dumb").seen() == PLAIN


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "colours"])
def test_a_pipe_gets_lines(variables: Mapping[str, str], tmp_path: Path) -> None:
    """Also where colours are forced: a log is not drawn over."""
    for number in range(2):
        (tmp_path / f"go-on-{number}").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"} | dict(variables)
    command = [sys.executable, "-m", "tests.cli.made_up_run", str(tmp_path), "short"]
    ended = subprocess.run(
        command, env=environment, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    shown = ended.stdout.splitlines()
    assert shown[:2] == PLAIN
    assert len(shown) == 3
