"""Telling damage from failure."""

import gzip
import zlib

import pyarrow as pa

_DAMAGE = (pa.ArrowException, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile)
_FAILURE = (MemoryError, pa.ArrowCancelled)
_UNSUPPORTED = "Not yet implemented"  # how Arrow begins where it raises another class than its own for this


def is_damage(error: Exception) -> bool:
    """Whether an error says that a file's content is broken, and not that it could not be fetched or held."""
    is_plain = type(error) is OSError and error.errno is None  # Arrow's own
    is_other = isinstance(error, _FAILURE) or is_unsupported(error)
    return (isinstance(error, _DAMAGE) or is_plain) and not is_other


def is_unsupported(error: Exception) -> bool:
    """Whether an error says that a whole file is of a form that its reader does not know."""
    return isinstance(error, pa.ArrowNotImplementedError) or str(error).startswith(_UNSUPPORTED)
