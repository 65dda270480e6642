"""Progress of a stage, one JSON object a line.

Whoever runs a pipeline names a file in CALM_PROGRESS_FILE and shows what appears in it; without one, the lines go to
standard error, so that a terminal or a pod's log shows them.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from calm_core.errors import LONGEST_MESSAGE, CalmError, first_line
from calm_core.shown import shortened

PROGRESS_FILE_VARIABLE = "CALM_PROGRESS_FILE"

State = Literal["running", "finished", "failed"]


class ProgressEvent(BaseModel):
    """What a stage says of itself.

    Attributes:
        time: Seconds since the epoch.
        stage: Name of the stage, e.g. "train-autoencoder".
        done, total: Units of work, 0 where they are not counted.
        rate: Tokens (or units) per second, 0 where it is not measured.
        eta: Seconds left, estimated; 0 where it is unknown.
        note: The number that matters, or what is being done, or the reason of a failure.
        detail: More numbers, for whoever reads lines.
        can_pass: Of a failure: whether running the same command again can help.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    time: float
    stage: str
    state: State
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta: float = 0.0
    note: str = ""
    detail: str = ""
    can_pass: bool = False

    def __str__(self) -> str:
        counts = f" {self.done}/{self.total}" if self.total else ""
        speed = f" {self.rate:,.0f}/s" if self.rate else ""
        left = f" {self.eta:,.0f} s left" if self.eta else ""
        more = f" ({self.detail})" if self.detail else ""
        return f"[{self.stage}] {self.state}{counts}{speed}{left} {self.note}{more}".rstrip()


def report(
    stage: str,
    state: State = "running",
    *,
    done: int = 0,
    total: int = 0,
    rate: float = 0.0,
    eta: float = 0.0,
    note: str = "",
    detail: str = "",
    can_pass: bool = False,
) -> None:
    """Tell whoever watches how far a stage is.

    Without a file, nothing is said of a failure: whoever has called the stage gets the error itself.
    """
    event = ProgressEvent(
        time=time.time(),
        stage=stage,
        state=state,
        done=done,
        total=total,
        rate=rate,
        eta=eta,
        note=shortened(note, LONGEST_MESSAGE),
        detail=detail,
        can_pass=can_pass,
    )
    line = event.model_dump_json()
    if path := os.environ.get(PROGRESS_FILE_VARIABLE):
        # One short append, so lines of several processes never mix. A full disk ends nothing that is at work.
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    elif state != "failed":
        # In one write, so that lines of several processes never mix.
        print(f"{event}\n", end="", file=sys.stderr, flush=True)


@contextmanager
def reported(stage: str, note: str = "starting") -> Iterator[None]:
    """Report the start of the block, and its failure."""
    report(stage, note=note)
    with failure_reported(stage):
        yield


@contextmanager
def failure_reported(stage: str) -> Iterator[None]:
    """Report a failure of the block as one line, which passes on."""
    try:
        yield
    except CalmError as error:
        report(stage, "failed", note=str(error), can_pass=error.can_pass)
        raise
    except Exception as error:  # whatever it was, the watcher gets one line; the error passes on
        report(stage, "failed", note=f"{type(error).__name__}: {first_line(error)}")
        raise


def parse(line: str) -> ProgressEvent:
    """Read one line of a progress file."""
    return ProgressEvent.model_validate(json.loads(line))


class ProgressFile:
    """What stages have written to a progress file, while they write on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0

    def events(self) -> Iterator[ProgressEvent]:
        """What has come since the last call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read_bytes += len(line)
                try:
                    event = parse(line.decode())
                except ValueError:  # the disk was full: a part of one, and the next one behind it
                    continue
                yield event
