"""What is known of each stage of a run, from the events that the stages report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from calm_core.telemetry.progress import ProgressEvent

STAGES = ("prepare", "train-autoencoder", "train-calm", "evaluate", "register")
BASELINE_STAGES = ("train-transformer", "evaluate-transformer")
LAST_STAGES = ("report",)


def stages_of(train_baseline: bool) -> tuple[str, ...]:
    """The stages of a run, in the order in which Kubeflow's local runner begins them."""
    return STAGES + (BASELINE_STAGES if train_baseline else ()) + LAST_STAGES


RowState = Literal["waiting", "running", "done", "cached", "failed"]


@dataclass
class Row:
    """One stage.

    Attributes:
        started, ended: Seconds since the epoch.
        event: The last thing that the stage said.
    """

    stage: str
    state: RowState = "waiting"
    started: float | None = None
    ended: float | None = None
    event: ProgressEvent | None = None

    def seconds(self, now: float) -> float:
        """How long the stage has worked."""
        if self.started is None:
            return 0.0
        return (now if self.ended is None else self.ended) - self.started

    @property
    def note(self) -> str:
        """The number that matters; a failure's reason is told once, at the end."""
        return self.event.note if self.event and self.event.state != "failed" else ""

    @property
    def reason(self) -> str:
        """Why the stage has failed, as far as it said so."""
        return self.event.note if self.event and self.event.state == "failed" else ""


class Board:
    """The stages of a run, in their order.

    A stage says when it begins and when it has finished. One that says nothing of its end, while a later one begins
    or the run succeeds, was answered from the cache.

    Args:
        stages: Their names.
        started: When the run began, in seconds since the epoch.
    """

    def __init__(self, stages: Sequence[str] = STAGES, started: float = 0.0) -> None:
        self.rows = [Row(stage) for stage in stages]
        self._started = started
        self._ended: float | None = None

    def seconds(self, now: float) -> float:
        """How long the run has taken so far, or in all."""
        return (now if self._ended is None else self._ended) - self._started

    def row(self, stage: str) -> Row:
        """The row of a stage; one that nobody announced gets a row at the end."""
        found = next((row for row in self.rows if row.stage == stage), None)
        if found is None:
            found = Row(stage)
            self.rows.append(found)
        return found

    def apply(self, event: ProgressEvent) -> None:
        """Take in one event. The first reason of a failure stays: later ones follow from it."""
        row = self.row(event.stage)
        self._close_as_cached(self.rows[: self.rows.index(row)])
        if row.state == "failed":
            return
        row.started = event.time if row.started is None else row.started
        row.event = event
        row.state = "done" if event.state == "finished" else event.state
        row.ended = None if event.state == "running" else event.time

    def succeed(self, now: float) -> None:
        """The run has succeeded."""
        self._ended = now
        self._close_as_cached(self.rows)

    def fail(self, now: float) -> None:
        """The run has failed: what was at work and reported no failure was killed, or broke before it could report."""
        self._ended = now
        for row in self.rows:
            if row.state == "running":
                row.state, row.ended = "failed", now

    @property
    def blamed(self) -> Row | None:
        """The failed stage, one that gave a reason if there is; None while none has failed."""
        failed = [row for row in self.rows if row.state == "failed"]
        return next((row for row in failed if row.reason), next(iter(failed), None))

    @staticmethod
    def _close_as_cached(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.state in ("waiting", "running"):
                row.state, row.started, row.ended = "cached", None, None
