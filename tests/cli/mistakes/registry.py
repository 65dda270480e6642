"""Mistakes with the registered model's versions."""

from tests.cli.mistakes.frame import Mistake
from tests.cli.mistakes.tracking import _home

_WHY = ("--reason", "why not")


def _wrong(name: str, command: tuple[str, ...], *says: str, exit_code: int = 1) -> Mistake:
    return Mistake(f"registry: {name}", ("registry", *command), says, exit_code=exit_code, arrange=_home)


MISTAKES = [
    Mistake("registry: nothing yet", ("registry", "list"), ("no run here yet",)),
    _wrong("a command that is none", ("rolback",), "did you mean `calm registry rollback`?", exit_code=2),
    _wrong(
        "another model", ("list", "--model", "clam"), "there is no registered model clam; did you mean models:/calm?"
    ),
    _wrong("a model that cannot be one", ("list", "--model", "a/b"), "model_name: holds /", exit_code=2),
    _wrong("no such version", ("show", "9"), "models:/calm/9: calm has no version 9; it has 1 to 3"),
    _wrong("a version that is no number", ("show", "champion"), "champion", "VERSION", exit_code=2),
    _wrong("version 0", ("show", "0"), "VERSION", exit_code=2),
    _wrong("no version", ("promote", *_WHY), "VERSION", exit_code=2),
    _wrong("no reason", ("promote", "1"), "--reason", exit_code=2),
    _wrong("an empty reason", ("rollback", "--reason", " "), "--reason: is empty; say why", exit_code=2),
    _wrong("files that are gone", ("promote", "1", *_WHY), "models:/calm/1: its files are gone"),
    _wrong("a version that failed", ("promote", "3", *_WHY), "version 3 of calm is not ready (FAILED_REGISTRATION)"),
    _wrong("no version before", ("rollback", *_WHY), "which version was champion before version 2, and was not"),
    _wrong("no champion", ("rollback", "--model", "calm-small", *_WHY), "no version of calm-small is champion"),
    _wrong("an alias that cannot be one", ("rollback", "--alias", "v1", *_WHY), "v1 is a version", exit_code=2),
    _wrong("a comparison with a version that is gone", ("compare", "1", "9"), "models:/calm/1: its files are gone"),
    _wrong("keeps nothing", ("delete-unused", "--keep", "0"), "--keep", exit_code=2),
]
