"""Telling damage from failure."""

import pyarrow as pa


def is_damage(error: Exception) -> bool:
    """Whether an error says that a file's content is broken, and not that it could not be fetched."""
    return isinstance(error, (pa.ArrowInvalid, UnicodeDecodeError)) or (type(error) is OSError and error.errno is None)
