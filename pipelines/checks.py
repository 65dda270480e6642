"""Checks of an environment, one row each: what was found, or what is wrong and how to mend it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from calm_core.errors import CalmError

State = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True)
class Check:
    """One row.

    Attributes:
        name: What is looked at.
        state: unknown: it cannot be looked at from here, or is right for some.
        told: What was found, or what is wrong.
        mend: What to do.
    """

    name: str
    state: State
    told: str
    mend: str = ""


class NotLookedAt(CalmError):
    """Something cannot be looked at from here, or is right for some."""


def check(name: str, look: Callable[[], str], mend: str = "") -> Check:
    """Look at one thing.

    Args:
        name: Of the row.
        look: Returns what it has found, or raises `CalmError`.
        mend: What to do if it fails.
    """
    try:
        return Check(name, "ok", look())
    except NotLookedAt as error:
        return Check(name, "unknown", str(error))
    except CalmError as error:
        return Check(name, "failed", str(error), mend)
