"""The program `calm`: the command line, or one line that says what is not installed."""

import sys

from calm_cli.stopping import Ending
from calm_cli.streams import OutputError, open_streams
from calm_core.errors import EXIT_FAILED

_OURS = ("calm_", "components", "pipelines")  # missing, these are a fault of the library and no extra


def main() -> None:
    """Run the command line; the bare library comes without what it needs."""
    open_streams()  # before what opens files, which would take the place of a closed one
    with Ending().listening():
        try:
            try:
                _main()
            finally:
                sys.stdout.flush()  # not when Python ends, where a failure has no answer
        except OutputError as error:
            print(f"error {error}", file=sys.stderr)
            sys.exit(EXIT_FAILED)


def _main() -> None:
    try:
        from calm_cli.main import main as command_line

        command_line()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(_OURS):
            raise
        print(
            f"error {error.name} is not installed; the command line and the stages are extras of the library: "
            "pip install 'calm-pipelines[all]'",
            file=sys.stderr,
        )
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
