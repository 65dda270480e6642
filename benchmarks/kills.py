"""Kill trainings at random moments, start them again, and see whether anything of it shows.

A case is one `calm train`; a seed draws the kind of model, ZeRO stage, ranks, and whether it works on S3. Its parent,
torchrun, a rank or all of them are killed at a moment of the victim's whole life, also while it imports, saves or
writes the artifact, or the parent gets a signal. The same command is started again, and perhaps killed again, until it
finishes; some new starts have other ranks, another stage or interval. In the end weights and curves have to be those of
an undisturbed training, bit for bit where the sums were in one order; no process and no file may be left; each start
has to go on from the newest complete checkpoint, and none may show a traceback.
"""

import argparse
import itertools
import os
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from benchmarks.kills_case import KINDS, Laboratory, Outcome
from benchmarks.kills_start import VICTIMS
from calm_core.errors import EXIT_FAILED, CalmError
from pipelines.local.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, s3_server

COLUMNS = ("kills", "survived", "diverged", "lost", "begun anew", "orphans", "left-over files", "told badly")


class Tally:
    """Counts of kills and of what came of them: in all, by victim, and by how the training was made.

    How a run ended and what it left counts in the row of every victim that it had.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Counter[str]] = {"all": Counter()}

    def add(self, outcome: Outcome) -> None:
        """Count a case."""
        setup = outcome.setup
        common = [setup.kind, f"ZeRO {setup.zero_stage}", f"ranks {setup.ranks}", outcome.place, "all"]
        run = {"left-over files": len(outcome.left), "told badly": len(outcome.told)}
        for row in {*common, *(kill.victim for kill in outcome.kills)}:
            self._rows.setdefault(row, Counter()).update(run)
        for kill in outcome.kills:
            came = {"kills": 1, outcome.ending: 1, "begun anew": bool(kill.anew), "orphans": len(kill.orphans)}
            for row in (*common, kill.victim):
                self._rows[row].update(came)

    @property
    def kills(self) -> int:
        """How many there were in all."""
        return self._rows["all"]["kills"]

    def markdown(self) -> str:
        """A row for each victim, kind, stage, number of ranks and place that there was, and one for all."""
        first = (*VICTIMS, *KINDS)
        names = (*first, *sorted(self._rows.keys() - {*first, "all"}), "all")
        rows = [(name, *(str(self._rows[name][column]) for column in COLUMNS)) for name in names if name in self._rows]
        lines = [("", *COLUMNS), ("---",) * (len(COLUMNS) + 1), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cases(laboratory: Laboratory, options: argparse.Namespace) -> Iterator[Outcome]:
    """Cases as they end, until there were so many kills, or the one that is asked for."""
    numbers = iter([options.case]) if options.case is not None else itertools.count()
    made, running = 0, set[Future[Outcome]]()
    with ThreadPoolExecutor(options.jobs) as pool, laboratory:
        while True:
            for number in itertools.islice(numbers, options.jobs - len(running) if made < options.kills else 0):
                running.add(pool.submit(laboratory.try_case, number, options.seed))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                made += len(future.result().kills)
                yield future.result()


def run(laboratory: Laboratory, options: argparse.Namespace) -> bool:
    """Try cases, tell of each, and print the table; whether anything was wrong."""
    tally, began, is_wrong = Tally(), time.monotonic(), False
    for outcome in cases(laboratory, options):
        tally.add(outcome)
        rate = tally.kills / (time.monotonic() - began)
        left = f"{max(0, options.kills - tally.kills) / rate / 60:.0f} min left" if rate else ""
        ending = "; ".join(outcome.faults) or outcome.ending
        story = "; ".join(outcome.story) or "nothing met it"
        print(
            f"[{tally.kills}/{options.kills} kills, {60 * rate:.1f} a minute, {left}] case {outcome.number}: "
            f"{outcome.setup}, {outcome.place}: {story}: {ending}",
            flush=True,
        )
        if outcome.faults:
            is_wrong = True
            again = ["python", "-m", "benchmarks.kills", f"--seed={options.seed}", f"--case={outcome.number}"]
            print(f"    again: {shlex.join(again)}", flush=True)
    print(tally.markdown())
    minutes = (time.monotonic() - began) / 60
    print(f"{minutes:.1f} minutes, {options.jobs} at a time; seed {options.seed}")
    return is_wrong


def main() -> None:
    """Make the kills that are asked for; exit 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20, help="how many, at least: a case that was begun is ended")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--case", type=int, help="only this case of the seed")
    parser.add_argument("--local", action="store_true", help="no cases on S3, for which SeaweedFS is needed")
    parser.add_argument("--keep", metavar="DIR", help="work in this new folder, and keep what failing cases left there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_FAILED))  # as Ctrl-C, so that what is started ends
    with ExitStack() as stack:
        if options.keep:
            folder = Path(options.keep).absolute()
            folder.mkdir(parents=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calm-kills-")))
        try:
            s3_folder = "" if options.local else _serve(stack, folder / "s3")
            is_wrong = run(Laboratory(folder, s3_folder, keep=bool(options.keep)), options)
        except CalmError as error:
            sys.exit(f"error {error}")
    sys.exit(EXIT_FAILED if is_wrong else 0)


def _serve(stack: ExitStack, folder: Path) -> str:
    """Start an S3 server for this process and all that it starts; the URL of a bucket there."""
    folder.mkdir()
    os.environ["AWS_ENDPOINT_URL"] = stack.enter_context(s3_server(folder))
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return f"s3://{BUCKET}"


if __name__ == "__main__":
    main()
