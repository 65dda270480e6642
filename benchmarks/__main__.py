"""Measure everything, or some groups, and print one Markdown table: `python -m benchmarks`."""

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks import engine, generation, samplers, scoring, training
from benchmarks.measure import Row


def data_rows() -> Iterator[Row]:
    """The data group, whose packages are more than the project's own."""
    try:
        from benchmarks import data
    except ModuleNotFoundError as error:
        sys.exit(
            f"{error.name} is not installed; the data benchmarks need the tests' packages: pip install -e '.[dev]'"
        )
    return data.rows()


GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "training": training.rows,
    "engine": engine.rows,
    "scoring": scoring.rows,
    "generation": generation.rows,
    "serving": generation.serving_rows,
    "data": data_rows,
    "baseline": lambda: itertools.chain(training.baseline_rows(), generation.baseline_rows()),
}
ON_REQUEST = ("data",)
"""Groups that are left out by default: they install other libraries, and take longer than all the others."""
_HELP = (
    f"{', '.join(GROUPS)}; all but {', '.join(ON_REQUEST)} by default (it needs the packages of "
    "benchmarks/requirements-peers.txt, which it installs into build/peers); samplers --help: of a trained model"
)


def main() -> None:
    """Print the table's rows as they are measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    if sys.argv[1:2] == ["samplers"]:  # of a trained model, with arguments of its own
        samplers.main(sys.argv[2:])
        return
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=_HELP)
    groups = parser.parse_args().groups or [group for group in GROUPS if group not in ON_REQUEST]
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
