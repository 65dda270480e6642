"""The library's own ranks; the last waits for a signal when it takes its third batch, and a file says that it waits."""

import os
import runpy
import signal
from pathlib import Path

from tests.training.faulty_ranks import prepare_rank

PAUSED_FILE = "CALM_TEST_PAUSED_FILE"


def pause() -> None:
    """Wait, and say so."""
    Path(os.environ[PAUSED_FILE]).touch()
    signal.pause()


if __name__ == "__main__":
    prepare_rank({3: pause} if int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"]) else {})
    runpy.run_module("calm_core.training.worker", run_name="__main__", alter_sys=True)
