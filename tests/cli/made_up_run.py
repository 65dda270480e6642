"""Show a run that is made up: ``python -m tests.cli.made_up_run FOLDER SCENE [LINES_BEFORE]``.

After each of a scene's frames it writes FOLDER/drawn-N, and goes on when FOLDER/go-on-N is there.
"""

import sys
import time
import tty
from pathlib import Path

from calm_cli.board import BASELINE_STAGES, STAGES, Board
from calm_cli.display import display_for
from calm_cli.screen import Screen
from calm_core.telemetry.progress import ProgressEvent, State

BEFORE = "$ earlier"
HOUR = 3600.0


def event(at: float, stage: str, state: State = "running", **details: object) -> ProgressEvent:
    return ProgressEvent.model_validate({"time": at, "stage": stage, "state": state, **details})


_PREPARED = [
    event(1, "prepare", note="finding the sources"),
    event(14, "prepare", "finished", note="256 documents, 2,235,365 tokens, 0 rejected"),
]
# Of each scene its stages, and its frames: when, and what has been said by then.
SCENES: dict[str, tuple[tuple[str, ...], list[tuple[float, list[ProgressEvent]]]]] = {
    "short": (
        STAGES,
        [
            (21, [*_PREPARED, event(15, "train-autoencoder", note="starting")]),
            (
                45,
                [
                    event(
                        45, "train-autoencoder", done=100, total=400, rate=23696, eta=75,
                        note="validation accuracy 80.92%",
                    ),
                ],
            ),
        ],
    ),
    "long": (
        STAGES + BASELINE_STAGES,
        [
            (
                11.5 * HOUR,
                [
                    *_PREPARED,
                    event(20, "train-calm", note="starting"),
                    event(
                        11.5 * HOUR, "train-calm", done=123_456, total=250_000, rate=1_234_567, eta=11.75 * HOUR,
                        note="validation flow loss 1.4983",
                    ),
                ],
            ),
        ],
    ),
    "failing": (
        STAGES,
        [
            (
                60,
                [
                    *_PREPARED,
                    event(15, "train-autoencoder", done=1, total=9),
                    event(60, "train-autoencoder", "failed", note="loss is not a number at step 12"),
                ],
            ),
        ],
    ),
}  # fmt: skip


def wait_for_the_terminal() -> None:
    """Return when the terminal, if there is one, has taken all that was written: it answers where the cursor is."""
    if sys.stdin.isatty():
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\x1b[6n")
        sys.stdout.flush()
        while sys.stdin.read(1) != "R":
            pass


def main(folder: Path, scene: str, lines_before: int = 0) -> None:
    """Draw the frames of a scene, below some lines that were in the terminal before."""
    stages, frames = SCENES[scene]
    board, screen = Board(stages), Screen()
    for _ in range(lines_before):
        screen.print(BEFORE)
    with display_for(board, screen) as display:
        for number, (now, events) in enumerate(frames):
            for one in events:
                board.apply(one)
            display.refresh(now)
            wait_for_the_terminal()
            (folder / f"drawn-{number}").touch()
            while not (folder / f"go-on-{number}").exists():
                time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
