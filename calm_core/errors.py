"""Errors that a user can cause. Each message is one line: what is wrong, where, and what to do."""


class CalmError(Exception):
    """Base of all errors that are shown to the user as one line, without a traceback."""


class ConfigError(CalmError):
    """A setting is unknown, impossible, or contradicts another one."""


class SourceError(CalmError):
    """A source of text is missing, unreadable, or mostly unusable."""


class ArtifactError(CalmError):
    """An artifact is missing, half-written, damaged, or of another kind than expected."""


class StorageError(CalmError):
    """The storage failed again and again."""


def first_line(error: Exception) -> str:
    """What an error says, on one line: the libraries' messages may have several, or none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
