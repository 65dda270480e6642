"""The folder that holds everything that runs on one machine leave behind."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calm_core.errors import CalmError

HOME_VARIABLE = "CALM_HOME"
_NOT_IN_PATHS = re.compile(r"[?%\x00-\x1f\x7f\ud800-\udfff]")
"""What the URL of a SQLite file has no form for that every version of MLflow's database library reads alike."""


@dataclass(frozen=True)
class Home:
    """Where the local runs keep their files: ``.calm`` in the current folder, or $CALM_HOME."""

    path: Path

    @classmethod
    def find(cls, make: bool = True) -> "Home":
        """The home of the current folder and environment.

        Args:
            make: The folder is made; unset, nothing is touched, since the caller only reads.

        Raises:
            CalmError: It cannot be made, or MLflow could not keep its database there.
        """
        path = Path(os.environ.get(HOME_VARIABLE) or ".calm").absolute()
        if found := _NOT_IN_PATHS.search(str(path)):
            raise CalmError(
                f"{str(path)!a}: MLflow cannot keep its database in a folder with {found[0]!a} in its path; "
                f"set {HOME_VARIABLE} to another folder"
            )
        try:
            if make:
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CalmError(
                f"{path}: cannot be made ({error.strerror}); set {HOME_VARIABLE} to another folder"
            ) from None
        return cls(path)

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

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the home for one run; yields the lock's file descriptor, which a child keeps the lock with.

        Raises:
            CalmError: Another run holds it.
        """
        with open(self.path / "lock", "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise CalmError(
                    f"{self.path}: another `calm run` is at work here (process {file.read().strip()}); "
                    f"wait for it, stop it, or set {HOME_VARIABLE} to another folder"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield file.fileno()
