"""Wrong inputs by the thousand: ``python -m tests.reliability [--count N] [--seed S] [CAMPAIGN ...]``."""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.reliability.campaign import Tally, run
from tests.reliability.campaigns import CAMPAIGNS


def main() -> None:
    """Run campaigns and print their counts.

    Raises:
        SystemExit: 1 if an answer was wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaigns", nargs="*", help=f"of {', '.join(CAMPAIGNS)}; all where none is named")
    parser.add_argument("--count", type=int, help="cases of each campaign [default: what docs/reliability.md reports]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table, bad = Table("campaign", "cases", *Tally.GOOD, *Tally.BAD, "slowest"), 0
    for name in options.campaigns or CAMPAIGNS:
        cases, count = CAMPAIGNS[name]
        with tempfile.TemporaryDirectory() as folder:
            tally = run(cases, Path(folder), options.count or count, options.seed)
        for example in tally.examples:
            print(f"{name}: {example}", file=sys.stderr)
        counts = [f"{tally.answers[kind]:,}" for kind in (*Tally.GOOD, *Tally.BAD)]
        table.add_row(name, f"{tally.answers.total():,}", *counts, f"{tally.slowest[0]:.1f} s")
        bad += tally.bad
    Console().print(table)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
