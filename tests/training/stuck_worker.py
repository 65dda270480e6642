"""The library's own ranks, of which the second one gets stuck at its third batch, where no other thread can run."""

import os
import re
import sys

from calm_core.data.reading.loader import Batch, Loader


def get_stuck() -> None:
    """Keep the interpreter's lock for ever: a pattern that is tried in 2**60 ways."""
    re.match("(a+)+$", "a" * 60 + "b")


if __name__ == "__main__":
    from calm_core.training.worker import main

    next_batch, batches = Loader.next_batch, 0

    def stuck(loader: Loader) -> Batch:
        global batches
        batches += 1
        if batches == 3 and os.environ["RANK"] == "1":
            get_stuck()
        return next_batch(loader)

    Loader.next_batch = stuck  # type: ignore[method-assign]
    main(sys.argv[1])
