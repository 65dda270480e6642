"""Settings as text: YAML 1.2, of which JSON is a part, within the bounds of what a person writes.

`1e8` is a number, `1:30`, `no` and `2024-01-31` are text, and `0777` is 777. (YAML 1.1 makes text, 90, False, a date
and 511 of them.) Aliases, tags and repeated keys are refused rather than followed.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

LARGEST = 128 << 10
"""Characters of a text; a profile has some thousand."""
_DEEPEST = 20
_LONGEST_NUMBER = 100

_PLAIN: tuple[tuple[str, Callable[[str], Any]], ...] = (  # the core schema of YAML 1.2.2, section 10.3.2
    (r"null|Null|NULL|~|", lambda text: None),
    (r"true|True|TRUE", lambda text: True),
    (r"false|False|FALSE", lambda text: False),
    (r"[-+]?[0-9]+", int),
    (r"0o[0-7]+", lambda text: int(text[2:], 8)),
    (r"0x[0-9a-fA-F]+", lambda text: int(text[2:], 16)),
    (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", float),
    (r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", lambda text: float(text.replace(".", ""))),
)
_ESCAPED = re.compile(
    "[^\x20-\x7e\xa0-\u2027\u2030-\u2065\u2070-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    "|[\u202a-\u202e\u2066-\u2069]"
)
"""What YAML does not read as it stands, ends a line in it, or turns the direction on a terminal."""


def read(text: str) -> Any:
    """The value of a YAML text, made of dicts with names as keys, lists, text, numbers, switches and None.

    Raises:
        ValueError: It is no such text; one line that says where.
    """
    if len(text) > LARGEST:
        raise ValueError(f"has {len(text):,} characters, settings may have {LARGEST:,}")
    if foreign := re.search("[\x85\u2028\u2029]", text):  # ends of lines in YAML 1.1, text in 1.2 and JSON
        raise ValueError(f"holds the character U+{ord(foreign[0]):04X}; write {write(foreign[0])} in its place")
    events = _events(text)
    next(events)  # the stream begins
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    value = _value(next(events), events, 0)
    next(events)  # the document ends
    if not isinstance(next(events), yaml.StreamEndEvent):
        raise ValueError("has a second document (---); one is read")
    return value


def write(value: Any) -> str:
    """A value as one line that `read` takes back: JSON, with escapes for what would act on a terminal."""
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{_place(error.problem_mark)}{_in_plain_words(error.problem or '')}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: holds a character that is no text, U+{ord(text[error.position]):04X}") from None
    except (ValueError, OverflowError):  # of chr() and int()
        raise ValueError("an escape or a directive has a number that is out of range") from None


_IN_PLAIN_WORDS = (
    (r"unknown escape character", r"\ begins an escape that does not exist; use single quotes"),
    (r"character '\\t'", "a tab; indent with spaces"),
    (
        r"mapping values are not allowed",
        "a colon that does not belong here: the line above lacks one, the indentation is wrong, or text needs quotes",
    ),
    (r"expected <block end>", "the indentation does not fit the lines above, or something follows a quote or bracket"),
    (r"expected ',' or '[]}]'", "a comma is missing, or the bracket that ends this"),
    (r"did not find expected node|expected the node content", "a value is missing"),
    (r"could not find expected ':'", "a name without a colon and a value behind it"),
    (r"unexpected end of stream", "the quote that ends a text is missing"),
    (r"character '.'", "text that begins with this character needs quotes"),
)
"""What the library says, in terms of YAML's grammar, and how it is meant."""


def _in_plain_words(problem: str) -> str:
    return next((words for pattern, words in _IN_PLAIN_WORDS if re.search(pattern, problem)), problem)


def line_of(settings: str, path: Sequence[str]) -> int | None:
    """The line, from 1, at which a setting stands in a text that `read` takes; None if it is not there."""
    node, line = yaml.compose(settings, Loader=yaml.SafeLoader), None
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        values = {key.value: (key.start_mark.line + 1, value) for key, value in pairs}
        if name not in values:
            return None
        line, node = values[name]
    return line


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
    """The value that begins with an event; its other events are taken from the iterator."""
    place = _place(event.start_mark)
    if depth > _DEEPEST:
        raise ValueError(f"{place}more than {_DEEPEST} values lie within each other")
    if getattr(event, "anchor", None) is not None:
        raise ValueError(f"{place}anchors and aliases (& and *) are not read; write the value out, or quote the text")
    if getattr(event, "tag", None) is not None:
        raise ValueError(f"{place}tags (!) are not read; write the value without, or quote the text")
    if isinstance(event, yaml.ScalarEvent):
        return _plain(event.value, place) if event.implicit[0] else _joined(event.value, place)
    if isinstance(event, yaml.SequenceStartEvent):
        return [_value(item, events, depth + 1) for item in _until(yaml.SequenceEndEvent, events)]
    values: dict[str, Any] = {}
    for item in _until(yaml.MappingEndEvent, events):
        place, name = _place(item.start_mark), _value(item, events, depth + 1)
        if not isinstance(name, str):
            raise ValueError(f"{place}the name of a setting is text, not {json.dumps(name)}")
        if name in values:
            raise ValueError(f"{place}{name} is there twice; join both")
        values[name] = _value(next(events), events, depth + 1)
    return values


def _until(end: type[yaml.Event], events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    for event in events:
        if isinstance(event, end):
            return
        yield event


def _plain(text: str, place: str) -> Any:
    """What text without quotes means."""
    for pattern, meaning in _PLAIN:
        if re.fullmatch(pattern, text):
            if len(text) > _LONGEST_NUMBER:
                raise ValueError(f"{place}a number has {len(text):,} digits")
            return meaning(text)
    return text


def _joined(text: str, place: str) -> str:
    r"""Text whose escapes may name the two halves of a character, as JSON's do: "\\ud83d\\ude00"."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(f"{place}an escape names half a character") from None
