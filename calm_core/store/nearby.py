"""What somebody may have meant who names a place where nothing is, or something else than is wanted."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence

from calm_core.errors import CalmError
from calm_core.shown import shortened
from calm_core.store import storage

_MOST_PARENTS, _MOST_NAMES, _SHOWN = 32, 10_000, 4
_VARIABLE = re.compile(r"\$\{?\w+\}?|%\w+%")


def hint(uri: str) -> str:
    """The end of a message about a place where nothing is: what was meant, or what is there instead.

    Args:
        uri: The place; nothing in it is a pattern.

    Returns:
        A sentence such as "did you mean out/dataset?", or "texts holds a.csv and b.csv"; never empty.
    """
    plain = uri.strip(storage.AROUND)
    try:
        if storage.exists(uri):
            return "it is a file; name its folder"
        if plain not in ("", uri) and storage.exists(plain):
            return f"did you mean {plain}, without the spaces or quotes around it?"
        if _VARIABLE.search(uri):
            return (
                "the shell replaces variables like $HOME, but not in single quotes or settings: write the path itself"
            )
        folder, missing = _nearest_folder(uri)
        if not folder:
            return "check its bucket's name, or make the bucket" if not storage.is_local(uri) else "check the path"
        return _in_folder(folder, missing)
    except CalmError:  # what was asked for is the answer, not this
        return "check the path"


def _nearest_folder(uri: str) -> tuple[str, list[str]]:
    """The nearest folder above a place, in the words of the place, and the parts that are missing there."""
    place, missing = uri.rstrip("/"), []  # type: str, list[str]
    for _ in range(_MOST_PARENTS):
        head, slash, name = place.rpartition("/")
        if head.endswith(":/") or (not slash and not storage.is_local(place)):
            break
        missing.insert(0, name)
        place = head or ("/" if slash else ".")
        if storage.is_folder(place):
            return place, missing
    return "", missing


def _in_folder(folder: str, missing: Sequence[str]) -> str:
    first, *rest = missing
    kinds = dict(list(storage.kinds_in(folder).items())[:_MOST_NAMES])
    of_lower = {name.lower(): name for name in kinds}
    for close in difflib.get_close_matches(first.lower(), of_lower, n=3, cutoff=0.7):
        meant = _joined(folder, of_lower[close], *rest)
        if not rest or storage.exists(meant):
            return f"did you mean {meant}?"
    place = "this folder" if folder == "." else folder
    gone = f"{place} has no folder {shortened(first, 60)}; " if rest else ""
    return f"{gone}{place} {holds(kinds)}"


def _joined(folder: str, *parts: str) -> str:
    return "/".join(parts) if folder == "." else storage.join(folder, *parts)


def holds(kinds: dict[str, bool]) -> str:
    """A few names of a folder as the end of a sentence.

    Args:
        kinds: Its names, and whether each is a folder.
    """
    names = [shortened(name, 60) + "/" * is_folder for name, is_folder in kinds.items() if not name.startswith(".")]
    if not names:
        return "holds hidden files alone" if kinds else "holds nothing"
    more = len(names) - _SHOWN
    if more > 1:
        return f"holds {', '.join(names[:_SHOWN])} and {more:,} more"
    return "holds " + (" and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0])


def counted(kinds: dict[str, bool], suffix_of: Callable[[str], str]) -> str:
    """What a folder holds, by the ends of its names, as the end of a sentence.

    Args:
        kinds: Its names, and whether each is a folder.
        suffix_of: The end of a name that says what the file is.
    """
    counts = Counter(
        "folder" if is_folder else suffix_of(name) or "other"
        for name, is_folder in kinds.items()
        if not name.startswith(".")
    )
    folders = counts.pop("folder", 0)
    told = [f"{count:,} {shortened(suffix, 20)}" for suffix, count in counts.most_common(_SHOWN)]
    told += [f"{folders:,} folder{'s' * (folders > 1)}"] * bool(folders)
    return (
        "holds " + " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
        if told
        else "holds nothing"
    )
