"""The files in which waits what MLflow is told: damaged, full, bounded, and nobody else's."""

from contextlib import suppress
from pathlib import Path

import pytest

from calm_core.errors import CalmError
from calm_core.telemetry import outbox as module
from calm_core.telemetry.mlflow_store import place_of
from calm_core.telemetry.outbox import OUTBOX_VARIABLE, End, Metrics, Outbox, Tags, move, outbox_folder, outboxes
from tests.telemetry.full_disk import disk_with

PLACE = "http://mlflow:5000"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(OUTBOX_VARIABLE, str(tmp_path / "outbox"))
    return tmp_path / "outbox"


def point(step: int) -> Metrics:
    return Metrics(time=1, step=step, values={"loss": 1 / step})


def steps(outbox: Outbox) -> list[int | None]:
    """Steps of the unsent points, None for what is damaged."""
    return [kept.record.step if isinstance(kept.record, Metrics) else None for kept in outbox.unsent()]


def filled(*of: int) -> Outbox:
    outbox = Outbox(PLACE, "run-1")
    outbox.add(*map(point, of))
    return outbox


def test_another_process_goes_on_behind_what_has_been_sent() -> None:
    outbox = filled(1, 2, 3)
    outbox.sent(list(outbox.unsent())[:2])
    assert steps(outbox) == steps(Outbox(PLACE, "run-1")) == [3]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1000000"])
def test_where_a_cursor_is_damaged_all_is_sent_again(cursor: str) -> None:
    outbox = filled(1, 2)
    outbox.sent(list(outbox.unsent())[:1])
    outbox.path.with_suffix(".cursor").write_text(cursor)
    assert steps(Outbox(PLACE, "run-1")) == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b'{"kind": "metrics"}',
        b'{"kind": "delete"}',
        b'{"kind": "text", "name": "../x", "text": ""}',
        b"\xff",
    ],
)
def test_a_damaged_line_takes_no_other_with_it(line: bytes) -> None:
    outbox = filled(1)
    with open(outbox.path, "ab") as file:
        file.write(line + b"\n")
    outbox.add(point(2))
    assert steps(outbox) == [1, None, 2]


def test_a_line_that_a_kill_has_cut_takes_no_other_with_it() -> None:
    outbox = filled(1, 2)
    outbox.path.write_bytes(outbox.path.read_bytes()[:-5])
    assert steps(outbox) == [1]  # it may be that somebody writes it now
    outbox.add(point(3))
    assert steps(outbox) == [1, None, 3]


@pytest.mark.parametrize("more", [0, 20])
def test_on_a_full_disk_records_wait_in_memory_and_their_order_stays(more: int) -> None:
    """20 bytes: a part of the line would still fit."""
    outbox = filled(1)
    with disk_with(more, outbox.path):
        outbox.add(point(2))
        outbox.add(point(3))
        assert (steps(outbox), outbox.in_memory, steps(Outbox(PLACE, "run-1"))) == ([1, 2, 3], 2, [1])
        outbox.sent(list(outbox.unsent())[:2])
        assert steps(outbox) == [3]
    outbox.add(point(4))
    assert (steps(outbox), outbox.in_memory, outbox.lost) == ([3, 4], 0, 0)
    assert b"\n\n" not in outbox.path.read_bytes()


def test_memory_has_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_IN_MEMORY", 3)
    outbox = filled(1)
    with disk_with(0, outbox.path):
        outbox.add(*map(point, range(2, 7)))
        assert (outbox.in_memory, outbox.lost) == (3, 2)
    outbox.add(*map(point, range(7, 20)))  # many at once, where there is room
    assert steps(outbox) == [1, 2, 3, 4, *range(7, 20)]


def test_beyond_its_bound_a_file_takes_no_points_but_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 200)
    outbox = filled(1)
    for step in range(2, 50):
        outbox.add(point(step))
    outbox.add(Tags(values={"calm.digest": "abc"}), End(time=1, status="FINISHED"))
    kept = [one.record for one in outbox.unsent()]
    assert outbox.path.stat().st_size < 200 + 300
    assert kept[-2:] == [Tags(values={"calm.digest": "abc"}), End(time=1, status="FINISHED")]
    assert len(kept) - 2 + outbox.lost == 49


def test_a_file_does_not_grow_while_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EMPTIED_BYTES", 200)
    outbox = filled()
    for step in range(1, 50):
        outbox.add(point(step))
        assert steps(outbox) == [step]
        outbox.sent(list(outbox.unsent()))
        assert outbox.path.stat().st_size < 300
    assert steps(Outbox(PLACE, "run-1")) == []


def test_what_is_not_sent_is_not_removed() -> None:
    outbox = filled(1, 2)
    outbox.sent(list(outbox.unsent())[:1])
    outbox.remove()
    assert steps(outbox) == [2]
    outbox.sent(list(outbox.unsent()))
    outbox.remove()
    assert not outbox.path.exists()


def test_one_at_a_time_sends() -> None:
    first, second = Outbox(PLACE, "run-1"), Outbox(PLACE, "run-1")
    assert first.take() and not second.take()
    first.give_back()
    assert second.take()


def test_only_what_is_for_the_same_mlflow_is_found() -> None:
    filled(1)
    Outbox(PLACE, "run-2").add(point(2))
    Outbox("http://other:5000", "run-3").add(point(3))
    assert [outbox.run_id for outbox in outboxes(PLACE)] == ["run-1", "run-2"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://me:open-sesame@mlflow:5000", "http://mlflow:5000/", True),
        ("http://mlflow:5000", "http://mlflow:5001", False),
        ("sqlite:////srv/mlflow.db?timeout=9", "sqlite:////srv/mlflow.db", True),
    ],
)
def test_the_same_mlflow_is_the_same_whoever_logs_in(one: str, other: str, same: bool) -> None:
    assert (place_of(one) == place_of(other)) == same
    assert "sesame" not in place_of(one)


@pytest.mark.parametrize("run_id", ["../../x", "", "a/b", "a" * 200])
def test_a_run_whose_id_is_no_name_of_a_file_is_refused(run_id: str) -> None:
    with pytest.raises(CalmError, match="which is no id; check that server"):
        Outbox(PLACE, run_id)


def test_nobody_else_reads_it(folder: Path) -> None:
    outbox = filled(1)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert outbox.path.stat().st_mode & 0o777 == 0o600


def test_where_the_users_folder_cannot_be_written_it_lies_below_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose root is read-only."""
    monkeypatch.delenv(OUTBOX_VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    folder = outbox_folder()
    assert folder.parent == Path("/tmp")
    with suppress(OSError):  # it is used
        folder.rmdir()


def test_what_is_kept_follows_a_database_that_is_moved(folder: Path) -> None:
    filled(1, 2).sent(list(filled().unsent())[:1])
    move(folder, PLACE, "http://moved:5000")
    assert [steps(outbox) for outbox in outboxes("http://moved:5000")] == [[2]]
    assert list(outboxes(PLACE)) == []
