"""Ranks that do one thing, without torch and a model: what the agent makes of it. The argument says which."""

import os
import signal
import sys
import time

FIRST = os.environ["RANK"] == "0"


def says_something() -> None:
    """Lines on both streams, one of them without an end."""
    print("to standard output")
    print("https://user:secret@host/ to standard error, without an end", end="", file=sys.stderr)


def saves_slowly() -> None:
    """Asked to stop, it takes longer than torch would wait, and counts the requests."""
    asked = 0

    def ask(*_: object) -> None:
        nonlocal asked
        asked += 1

    signal.signal(signal.SIGTERM, ask)
    print("ready", flush=True)
    while not asked:
        time.sleep(0.05)
    time.sleep(3)
    print(f"saved, asked {asked} times", flush=True)
    sys.exit(75)


def one_is_killed() -> None:
    """The first rank meets what follows: another one was killed."""
    if not FIRST:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    sys.exit(1)


def one_is_stopped() -> None:
    """The second one cannot run any more; the first one waits."""
    print(f"process {os.getpid()}", flush=True)
    if not FIRST:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


if __name__ == "__main__":
    if sys.argv[1] == "one_is_stopped":
        from calm_core.telemetry.processes import die_with_parent

        die_with_parent()
    globals()[sys.argv[1]]()
