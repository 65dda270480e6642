"""Commands of a sweep, in a process that ends with it: ``python -m calm_cli.sweep_task COMMANDS``, as JSON.

A sweep that is killed leaves nothing at work; what its trainings have saved is there when it is run again.
"""

import json
import sys

from calm_core.telemetry.processes import die_with_parent


def run(commands: list[list[str]]) -> None:
    """Run commands one after the other; the first one that fails is the last.

    Raises:
        SystemExit: One has failed.
    """
    from calm_cli.main import main

    for arguments in commands:
        try:
            main(arguments)
        except SystemExit as ending:
            if ending.code:
                raise


if __name__ == "__main__":
    die_with_parent()
    from calm_cli.stopping import Ending
    from calm_cli.streams import open_streams

    open_streams()
    with Ending().listening():
        run(json.loads(sys.argv[1]))
