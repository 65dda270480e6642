"""Events of stages -> what is shown."""

import io

import pytest
from rich.console import Console

from calm_cli.board import STAGES, Board
from calm_cli.display import PLAIN_INTERVAL_SECONDS, PlainDisplay, board_lines, clock, cut, plain_line
from calm_core.telemetry.progress import ProgressEvent


def event(stage: str, state: str, time: float = 0.0, **details: object) -> ProgressEvent:
    return ProgressEvent.model_validate({"time": time, "stage": stage, "state": state, **details})


def board_of(*events: ProgressEvent) -> Board:
    board = Board()
    for one in events:
        board.apply(one)
    return board


def states(board: Board) -> list[str]:
    return [row.state for row in board.rows]


def test_all_stages_wait_at_first() -> None:
    assert [row.stage for row in Board().rows] == list(STAGES)
    assert set(states(Board())) == {"waiting"}


def test_a_stage_runs_and_is_done() -> None:
    board = board_of(event("prepare", "running", 10), event("prepare", "running", 12), event("prepare", "finished", 15))
    assert states(board) == ["done", "waiting", "waiting", "waiting", "waiting"]
    assert board.row("prepare").seconds(now=99) == 5


def test_a_stage_that_never_finished_before_a_later_one_began_was_cached() -> None:
    """The plan always looks at the sources, as part of `prepare`, also when everything else is cached."""
    board = board_of(event("prepare", "running", 1), event("train-calm", "running", 2))
    assert states(board) == ["cached", "cached", "running", "waiting", "waiting"]


def test_after_success_what_never_finished_was_cached() -> None:
    board = board_of(event("prepare", "running", 1), event("prepare", "finished", 2))
    board.succeed(now=3)
    assert states(board) == ["done", "cached", "cached", "cached", "cached"]


def test_the_first_reason_of_a_failure_stays() -> None:
    """The other partition goes on for a while, and whoever started the failed process reports too."""
    board = board_of(
        event("prepare", "failed", 1, note="a.jsonl: too many rejects"),
        event("prepare", "running", 2),
        event("prepare", "failed", 3, note="process ended with 1"),
    )
    board.fail(now=4)
    assert board.blamed is board.row("prepare")
    assert board.row("prepare").reason == "a.jsonl: too many rejects"


def test_a_stage_killed_at_work_is_blamed_without_a_reason() -> None:
    board = board_of(event("prepare", "finished", 1), event("train-calm", "running", 2, note="loss 3.0"))
    board.fail(now=9)
    assert board.blamed is board.row("train-calm")
    assert board.row("train-calm").reason == ""
    assert board.row("train-calm").seconds(now=99) == 7


def test_nothing_is_blamed_when_no_stage_began() -> None:
    board = Board()
    board.fail(now=1)
    assert board.blamed is None


def test_a_line_has_state_time_progress_speed_and_the_number_that_matters() -> None:
    board = board_of(
        event("train-calm", "running", 0),
        event("train-calm", "running", 60, done=300, total=4000, rate=12345.6, eta=80, note="loss 2.5"),
    )
    line = plain_line(board.row("train-calm"), now=61)
    assert line == "train-calm: running  1:01  300/4,000  12,346/s  1:20 left  loss 2.5"


def test_plain_lines_come_at_a_change_of_state_and_otherwise_rarely() -> None:
    board, output = Board(), io.StringIO()
    display = PlainDisplay(board, Console(file=output))
    for second in range(int(2 * PLAIN_INTERVAL_SECONDS)):
        board.apply(event("prepare", "running", second, done=second, total=30))
        display.refresh(now=second)
    board.apply(event("prepare", "finished", 30, note="9 documents"))
    display.refresh(now=30)
    lines = output.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["0:00", "0:05", "0:30"]
    assert lines[-1] == "prepare: done  0:30  9 documents"


SAID = "comparing 256 documents, the first of [file] a.txt, by what they say"
LONGEST = "validation cross-entropy 1234.5678 at step 250,000"


@pytest.mark.parametrize("width", [*range(20, 130, 7), 59, 60, 79, 80, 119, 120])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_every_stage_has_one_line_at_any_width_whatever_is_known_of_it(width: int, ascii_only: bool) -> None:
    """And the places of names, states and times do not move when more becomes known."""
    board = board_of(event("prepare", "finished", 0, note=SAID), event("train-calm", "running", 10, note="starting"))
    before = board_lines(board, 11, width, ascii_only=ascii_only)
    much = {"done": 123_456, "total": 250_000, "rate": 1_234_567, "eta": 123_456}
    board.apply(event("train-calm", "running", 12, note=LONGEST, **much))
    after = board_lines(board, 12, width, ascii_only=ascii_only)
    for shown in (before, after):
        assert len(shown) == 1 + len(STAGES) + 1
        assert all(line.cell_len <= width and "\n" not in line.plain for line in shown)
    start = len("train-autoencoder  running")
    assert [line.plain[:start] for line in before] == [line.plain[:start] for line in after]
    if width >= 60:
        assert "49%" in after[3].plain and "34:17:36 left" in after[3].plain
    if width >= 119:
        assert ("##" if ascii_only else "━━") in after[3].plain


def test_notes_are_taken_literally_and_do_nothing_to_the_terminal() -> None:
    board = board_of(event("prepare", "running", 0, note="[red] a.txt \x1b[2J \u4e2d\u6587"))
    assert board_lines(board, 5, 120)[1].plain.endswith("[red] a.txt \\x1b[2J \u4e2d\u6587")
    assert all(line.cell_len <= 60 for line in board_lines(board, 5, 60))


def test_why_a_stage_failed_is_said_once_below_the_table() -> None:
    board = board_of(event("prepare", "running", 0), event("prepare", "failed", 4, note="a.jsonl: no such file"))
    assert board_lines(board, 9, 120)[1].plain == "prepare            failed    0:04"
    assert plain_line(board.row("prepare"), 9) == "prepare: failed  0:04"


def test_the_total_is_that_of_the_run_and_stays() -> None:
    """It begins before the first stage says a word, and counts what comes from the cache."""
    board = Board(started=100)
    assert board_lines(board, 107, 80)[-1].plain.split() == ["total", "0:07"]
    board.succeed(now=110)
    assert board_lines(board, 999, 80)[-1].plain.split() == ["total", "0:10"]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("loss 1.98", 9, "loss 1.98"),
        ("validation loss 1.98", 14, "validati… 1.98"),
        ("validation accuracy 80.92%", 14, "valida… 80.92%"),
        ("BrierLM 18.42 [16.37, 20.69]", 20, "BrierLM 18.42 [16.3…"),
        ("partition 1: scanning", 14, "partition 1:…"),
        ("1234567890", 5, "1234…"),
        ("loss 1.98", 5, "loss…"),
        ("\u4e2d\u6587\u4e2d\u6587", 4, "\u4e2d…"),  # of two cells each
        ("", 0, ""),
        ("loss", 1, "…"),
        ("loss", 0, ""),
    ],
)
def test_what_is_cut_says_so(text: str, width: int, expected: str) -> None:
    assert cut(text, width, "…") == expected


def test_clock() -> None:
    assert [clock(0), clock(65.4), clock(4088), clock(-1)] == ["0:00", "1:05", "1:08:08", "0:00"]


def test_a_stage_that_nobody_announced_gets_a_row_at_the_end() -> None:
    board = board_of(event("prepare", "finished", 1), event("distil", "running", 2, note="new"))
    assert [row.stage for row in board.rows] == [*STAGES, "distil"]
    assert board.row("distil").state == "running"
