"""A node of a TrainJob: ``python -m components.training.node SPEC_URI``, with torchrun's PET_ variables around it.

Exit codes: 0 finished, 1 failed, 2 wrong settings, 75 interrupted with a checkpoint saved. They are those of the
training, whichever node it failed on, so that Kubernetes can tell what to start again from what not.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from calm_core.errors import EXIT_INTERRUPTED, CalmError
from components.mlflow_environment import use_own_mlflow


def _leave(number: int, frame: FrameType | None) -> None:
    """The first process of a container has no handlers but its own, and imports take seconds."""
    sys.exit(EXIT_INTERRUPTED)


def main(spec_uri: str) -> int:
    """Run this node's ranks; returns the exit code."""
    from calm_core.training.launcher import Nodes
    from calm_core.training.stage import work_on
    from components.training.trainer_status import status_pushed

    use_own_mlflow()
    told = os.environ.get("PET_NPROC_PER_NODE", "")
    try:
        nodes = Nodes.from_environment()
        with tempfile.TemporaryDirectory() as folder, status_pushed(Path(folder)):
            return work_on(spec_uri, nodes, int(told) if told.isascii() and told.isdigit() else None)
    except CalmError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(main(sys.argv[1]))
