"""The folder that holds everything that runs on one machine leave behind."""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from calm_core.errors import CalmError

HOME_VARIABLE = "CALM_HOME"
_NOT_IN_PATHS = re.compile(r"[?%\x00-\x1f\x7f\ud800-\udfff]")
"""What the URL of a SQLite file has no form for that every version of MLflow's database library reads alike."""

_ELSEWHERE = f"set {HOME_VARIABLE} to another folder"
_FOLDERS = ("pipeline_root", "cache", "plans", "checkpoints", "logs", "mlflow_artifacts", "outbox")


@dataclass(frozen=True)
class Home:
    """Where the local runs keep their files: ``.calm`` in the current folder, or $CALM_HOME."""

    path: Path

    @classmethod
    def find(cls, make: bool = True) -> "Home":
        """The home of the current folder and environment.

        Args:
            make: It is made, and has to be writable; unset, nothing is touched, since the caller only reads.

        Raises:
            CalmError: It cannot be made or used, or MLflow could not keep its database there.
        """
        path = Path(os.environ.get(HOME_VARIABLE) or ".calm").absolute()
        if found := _NOT_IN_PATHS.search(str(path)):
            raise CalmError(
                f"{str(path)!a}: MLflow cannot keep its database in a folder with {found[0]!a} in its path; "
                f"{_ELSEWHERE}"
            )
        home = cls(path)
        with _usable(path):
            home._check_kinds()
            if make:
                path.mkdir(parents=True, exist_ok=True)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return home

    def _check_kinds(self) -> None:
        """Refuse a file where a folder belongs, and the other way round.

        Raises:
            CalmError: There is one.
        """
        for folder in (self.path, *(getattr(self, name) for name in _FOLDERS), self.corpus.parent):
            if folder.exists() and not folder.is_dir():
                raise CalmError(f"{folder}: is a file where a folder belongs; move it away, or {_ELSEWHERE}")
        for file in (self.mlflow_database, self._lock_file):
            if file.is_dir():
                raise CalmError(f"{file}: is a folder where a file belongs; move it away, or {_ELSEWHERE}")

    @property
    def pipeline_root(self) -> Path:
        return self.path / "pipeline"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def plans(self) -> Path:
        return self.path / "plans"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def corpus(self) -> Path:
        return self.path / "corpus" / "factbook.jsonl"

    @property
    def mlflow_database(self) -> Path:
        return self.path / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.path / "mlartifacts"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox"

    @property
    def _lock_file(self) -> Path:
        return self.path / "lock"

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the home for one run; yields the lock's file descriptor, which a child keeps the lock with.

        Raises:
            CalmError: Another run holds it, or it cannot be written.
        """
        with ExitStack() as stack:
            with _usable(self._lock_file):
                file = stack.enter_context(open(self._lock_file, "ab+", buffering=0))
                self._take(file)
            yield file.fileno()

    def _take(self, file: FileIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read().decode(errors="replace").strip()
            raise CalmError(
                f"{self.path}: another `calm run` is at work here (process {process}); "
                f"wait for it, stop it, or {_ELSEWHERE}"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turn what the system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise CalmError(f"{path}: cannot be made or written ({error.strerror}); {_ELSEWHERE}") from None
