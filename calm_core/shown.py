"""Text from outside, made fit to be shown: nothing in it acts on a terminal, and no secret is told."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What acts on a terminal rather than being shown (C0, DEL, C1), ends a line, turns the direction, or is half a
character."""

_URL = re.compile(r"(?P<scheme>(?<![a-z])[a-z]*)://(?P<rest>\S+)", re.IGNORECASE)
_PASSWORD = re.compile(r"^[^\[/:@?#]*:(?!\d*(?:[/?#]|$))\S*@")
"""user:password@, where the password may hold anything; host:port/... is none. Rather too much is hidden."""
_USER = re.compile(r"^[^/?#]+@")
"""A user without a password is a token in http://; in other URLs it says where, e.g. abfs://container@account."""
_KEY = re.compile(
    r"(?<=[?&;#])"
    r"(?=[^?=&;#'\"]*?(?:token|signature|passw|pwd|secret|access[_-]?key|api[_-]?key|credential)|(?:sig|key|auth)=)"
    r"([^?=&;#'\"]*+)=[^&;#'\"]+",
    re.IGNORECASE,
)
_HIDDEN = "***"

WHERE_SECRETS_GO = (
    "a password or key in a URL is not taken, since files and logs would hold it; give it in the environment: "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, FSSPEC_<PROTOCOL> for others"
)
"""What a refusal says instead of repeating a secret."""


def visible(text: str, keep: str = "") -> str:
    r"""A text whose control characters are seen instead of acting: ``\x1b`` for an escape, ``\u202e`` for a turn.

    Args:
        text: Anything, halves of surrogate pairs included; what comes back can always be encoded.
        keep: Control characters that stay, e.g. newlines and tabs.
    """
    return _CONTROL.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode("ascii"), text
    )


def redacted(text: str) -> str:
    """A text with ``***`` for the user and password of its URLs, and for what their queries call a token or key."""
    return _URL.sub(_without_secrets, text)


def holds_secret(uri: str) -> bool:
    """Whether a path or URL carries a password, token or key; white space within it does not hide them."""
    whole = "".join(uri.split())
    return redacted(whole) != whole


def shortened(text: str, limit: int = 80) -> str:
    """One visible line of at most `limit` characters, without secrets; what is cut out of its middle shows as …"""
    line = redacted(visible(text))
    if len(line) <= limit:
        return line
    head = limit * 2 // 3
    return f"{line[:head]}…{line[len(line) + head + 1 - limit :]}"


def brief(value: object, limit: int = 80) -> str:
    """A value as a message repeats it: its repr, shortened."""
    return shortened(repr(value), limit)


def listed(names: Sequence[str], most: int = 8, limit: int = 80) -> str:
    """The first names of many, each shortened, and how many more there are."""
    more = len(names) - most
    return ", ".join(shortened(name, limit) for name in names[:most]) + (f" and {more:,} more" if more > 0 else "")


def by_dotted_name(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as people write them: `section.key` and the value of each."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from by_dotted_name(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def lines_of(text: str) -> str:
    """A text whose lines and tabs stay; anything else in it is seen instead of acting, and there are no secrets."""
    return redacted(visible(text, keep="\n\t"))


class SafeStream:
    """A stream of text for a log, whose tracebacks and libraries' lines are no text of ours.

    Args:
        stream: Where it is written, as `lines_of` makes it; a carriage return stays, for bars of progress.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write("\r".join(map(lines_of, text.split("\r"))))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _without_secrets(url: re.Match[str]) -> str:
    rest = _PASSWORD.sub(f"{_HIDDEN}@", url["rest"])
    if url["scheme"].lower() in ("http", "https"):
        rest = _USER.sub(f"{_HIDDEN}@", rest)
    return url["scheme"] + "://" + _KEY.sub(rf"\1={_HIDDEN}", rest)
