"""Telling damage from failure."""

import gzip
import zlib

import pyarrow as pa

_DAMAGE = (pa.ArrowException, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile)
_FAILURE = (MemoryError, pa.ArrowCancelled)


def is_damage(error: Exception) -> bool:
    """Whether an error says that a file's content is broken, and not that it could not be fetched or held."""
    is_plain = type(error) is OSError and error.errno is None  # Arrow's own
    return (isinstance(error, _DAMAGE) and not isinstance(error, _FAILURE)) or is_plain
