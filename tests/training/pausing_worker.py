"""The library's own ranks, of which the last waits for a signal when it takes a chosen batch: CALM_TEST_PAUSE=BATCH:FILE.

The file appears once it waits.
"""

import os
import runpy
import signal
from pathlib import Path
from typing import Any

from calm_core.data.reading.loader import Loader

BATCH, _, PAUSED = os.environ["CALM_TEST_PAUSE"].partition(":")

if __name__ == "__main__":
    taken, next_batch = 0, Loader.next_batch

    def next_batch_after_a_pause(loader: Loader) -> Any:
        global taken
        taken += 1
        if taken == int(BATCH) and int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"]):
            Path(PAUSED).touch()
            signal.pause()
        return next_batch(loader)

    Loader.next_batch = next_batch_after_a_pause  # type: ignore[method-assign]
    runpy.run_module("calm_core.training.worker", run_name="__main__", alter_sys=True)
