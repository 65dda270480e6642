"""Measure everything, or some groups, and print one Markdown table: `python -m benchmarks`."""

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks import generation, scoring, training
from benchmarks.measure import Row

GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "training": training.rows,
    "scoring": scoring.rows,
    "generation": generation.rows,
    "baseline": lambda: itertools.chain(training.baseline_rows(), generation.baseline_rows()),
}


def main() -> None:
    """Print the table's rows as they are measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; all of them by default")
    groups = parser.parse_args().groups or list(GROUPS)
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    processor = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}"
    print(f"{time.strftime('%Y-%m-%d')}, {processor}, torch {torch.__version__}\n")
    print("| what | reference | ours | ratio | asked |\n|---|---|---|---|---|")
    for group in groups:
        for row in GROUPS[group]():
            print(row.markdown(), flush=True)


if __name__ == "__main__":
    main()
