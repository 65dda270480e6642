"""How a score was measured: the protocol is part of the number."""

from collections.abc import Mapping

Protocol = Mapping[str, str | int]

NO_START = "none"  # a protocol whose documents begin with no token of their own
# What earlier versions left out of a protocol, since there was no choice.
_EARLIER: dict[str, str | int] = {"packing": "documents", "start_of_text": NO_START}


def complete(protocol: Protocol) -> dict[str, str | int]:
    """A protocol with what earlier versions left out; two scores may be compared if theirs are equal."""
    return _EARLIER | dict(protocol)


def differences(first: Protocol, second: Protocol) -> dict[str, tuple[str | int | None, str | int | None]]:
    """What differs between two protocols, by name; none: their scores may be compared."""
    one, other = complete(first), complete(second)
    names = sorted(one.keys() | other.keys())
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
