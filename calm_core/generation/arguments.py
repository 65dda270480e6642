"""What a generator is asked for: prompts, seeds, lengths and stop strings, checked before anything is written."""

import math
import numbers
import operator
import re
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

from calm_core.errors import CalmError
from calm_core.shown import brief, visible

MAX_NEW_TOKENS = 2**20
MAX_SEED = 2**63 - 1
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1000  # each character that is written is compared with all that a stop string may begin with

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def texts_of(what: str, values: object) -> list[str]:
    """Some texts as a list.

    Args:
        what: What each of them is, for messages: "prompt".
        values: A list, tuple, array or column.

    Raises:
        CalmError: They are no list, or one of them is no text.
    """
    if not isinstance(values, Sequence) and hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str | bytes | bytearray) or not isinstance(values, Sequence):
        raise CalmError(f"{what}s must be a list of texts (got {described(values)})")
    return [text_of(f"{what} {number}", value) for number, value in enumerate(values, 1)]


def text_of(where: str, value: object) -> str:
    """A value as a text.

    Raises:
        CalmError: It is none, or holds half a character.
    """
    value = _plain(value)
    if not isinstance(value, str):
        raise CalmError(f"{where}: is {described(value)}, and not a text")
    if half := _HALF_CHARACTER.search(value):
        raise CalmError(
            f"{where}: holds half a character ({visible(half[0])} at {half.start()}), which is no "
            "text; take it out, or check the encoding that it was read with"
        )
    return value


def whole_number(name: str, value: object, least: int, most: int, hint: str = "") -> int:
    """A value as an integer.

    Raises:
        CalmError: It is none, or out of range; the message ends with the hint.
    """
    value = _plain(value)
    number = operator.index(value) if isinstance(value, SupportsIndex) and not isinstance(value, bool) else None
    if number is None or not least <= number <= most:
        shown = described(value) if number is None else f"{number:,}"
        raise CalmError(f"{name} must be a whole number from {least:,} to {most:,} (got {shown}){hint}")
    return number


def seeds_of(seed: object, count: int) -> list[int]:
    """The seed of each of some prompts.

    Args:
        seed: One for all of them, or one for each.
        count: How many there are.

    Raises:
        CalmError: There are more or fewer seeds, or one is out of range.
    """
    if not isinstance(seed, Sequence) and hasattr(seed, "tolist"):
        seed = seed.tolist()
    if isinstance(seed, str) or not isinstance(seed, Sequence):
        return [whole_number("seed", seed, 0, MAX_SEED)] * count
    if len(seed) != count:
        raise CalmError(f"there are {len(seed)} seeds for {count} prompts; give one seed, or one for each")
    return [whole_number(f"seed {number}", one, 0, MAX_SEED) for number, one in enumerate(seed, 1)]


def stop_strings_of(stop: object) -> list[str]:
    """What a text ends before: one string, or several.

    Raises:
        CalmError: One is empty, too long or no text, or there are too many.
    """
    strings = texts_of("stop string", [stop] if isinstance(stop, str) else stop)
    if len(strings) > MAX_STOP_STRINGS:
        raise CalmError(f"there are {len(strings):,} stop strings; give at most {MAX_STOP_STRINGS}")
    for number, string in enumerate(strings, 1):
        if not string:
            raise CalmError("a stop string must not be empty")
        if len(string) > MAX_STOP_CHARACTERS:
            raise CalmError(
                f"stop string {number}: has {len(string):,} characters; give at most {MAX_STOP_CHARACTERS:,}"
            )
    return strings


def described(value: object) -> str:
    """What a value is, in words that do not depend on the language that it comes from."""
    value = _plain(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null or NaN"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, numbers.Real):
        return f"the number {brief(value, 40)}"
    if isinstance(value, str):
        return f"the text {brief(value, 40)}"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    if isinstance(value, Mapping):
        return "a dictionary"
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        return "a list"
    return "something else"


def _plain(value: object) -> object:
    """The text, number or truth that one of numpy's stands for."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
