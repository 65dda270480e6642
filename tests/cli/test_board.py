"""Events of stages -> what is shown."""

import io

from rich.console import Console

from calm_cli.board import STAGES, Board
from calm_cli.display import PLAIN_INTERVAL_SECONDS, PlainDisplay, board_table, clock, plain_line
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
    board.succeed()
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
    assert [line.split()[2] for line in lines] == ["0:00", "0:15", "0:30"]
    assert lines[-1] == "prepare: done  0:30  9 documents"


def test_the_live_table_has_a_line_for_each_stage_and_takes_notes_literally() -> None:
    output = io.StringIO()
    board = board_of(event("prepare", "running", 0, done=1, total=2, note="[file] a.txt"))
    Console(file=output, width=120).print(board_table(board, now=5))
    lines = output.getvalue().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(STAGES)
    assert "[file] a.txt" in lines[1]


def test_clock() -> None:
    assert [clock(0), clock(65.4), clock(3665)] == ["0:00", "1:05", "1:01:05"]


def test_a_stage_that_nobody_announced_gets_a_row_at_the_end() -> None:
    board = board_of(event("prepare", "finished", 1), event("distil", "running", 2, note="new"))
    assert [row.stage for row in board.rows] == [*STAGES, "distil"]
    assert board.row("distil").state == "running"
