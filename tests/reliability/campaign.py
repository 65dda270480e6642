"""A campaign: many wrong inputs of one kind, and a count of how the product answers them."""

import random
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from calm_core.errors import CalmError

LONGEST_MESSAGE = 2000
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Lie(AssertionError):
    """Something was accepted that must not be, or has another meaning than it says."""


@dataclass(frozen=True)
class Case:
    """One wrong (or merely odd) input.

    Attributes:
        name: What is odd about it, for the report.
        act: Gives the input to the product; a `CalmError` is a refusal, a `Lie` that what came back is wrong.
        must_refuse: Whether anything but a refusal is a lie.
    """

    name: str
    act: Callable[[], object]
    must_refuse: bool = False


Cases = Callable[[Path, random.Random], Iterator[Case]]
"""Endless cases, made in an empty folder: the same seed gives the same cases."""


@dataclass
class Tally:
    """Counts of answers by kind, examples of the bad ones, and the slowest case."""

    answers: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    GOOD = ("accepted", "refused")
    BAD = ("traceback", "lie", "message", "outside")

    @property
    def bad(self) -> int:
        """How many answers were none of those that are right."""
        return sum(self.answers[kind] for kind in self.BAD)


def run(cases: Cases, folder: Path, count: int, seed: int) -> Tally:
    """Try the first cases of a campaign.

    Args:
        cases: The campaign.
        folder: An empty folder; the cases are made in `inside`, and nothing else in it may change.
        count: How many.
        seed: Of the cases.
    """
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    (outside / "deeper").mkdir(parents=True)
    for victim in (folder / "victim.txt", outside / "victim.txt", outside / "deeper" / "victim.txt"):
        victim.write_text("not yours\n")
    tally, before = Tally(), _snapshot(folder, inside)
    for case in islice(cases(inside, random.Random(seed)), count):
        started = time.perf_counter()
        kind, example = _answer(case)
        tally.slowest = max(tally.slowest, (time.perf_counter() - started, case.name))
        if (after := _snapshot(folder, inside)) != before:
            kind, example, before = "outside", f"{sorted(set(before.items()) ^ set(after.items()))}", after
        tally.answers[kind] += 1
        if kind in Tally.BAD:
            tally.examples.append(f"{kind}: {case.name}: {example}")
    return tally


def _answer(case: Case) -> tuple[str, str]:
    try:
        case.act()
    except CalmError as error:
        message = str(error)
        is_kind = 0 < len(message) <= LONGEST_MESSAGE and not _HIDDEN.search(message)
        return ("refused", "") if is_kind else ("message", repr(message[:300]))
    except Lie as error:
        return "lie", str(error)
    except BaseException as error:  # SystemExit and a Rust panic too
        if isinstance(error, KeyboardInterrupt):
            raise
        return "traceback", "".join(traceback.format_exception(error)[-3:])
    return ("lie", "accepted") if case.must_refuse else ("accepted", "")


def _snapshot(folder: Path, inside: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path != inside and inside not in path.parents and path.is_file()
    }
