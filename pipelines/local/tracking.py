"""MLflow of the runs on one machine: a SQLite file, unless MLFLOW_TRACKING_URI names a server."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from urllib.parse import unquote, urlsplit

from calm_core.errors import CalmError
from calm_core.shown import shortened
from calm_core.telemetry import outbox
from calm_core.telemetry.delivery import Delivery
from calm_core.telemetry.mlflow_run import EXPERIMENT_VARIABLE, STAGE_TAG, Run, experiment_id
from calm_core.telemetry.mlflow_store import (
    TRACKING_URI_VARIABLE,
    explained,
    known_revisions,
    mlflow_answers,
    quiet_mlflow,
    reach_mlflow,
    sqlite_revision,
)
from calm_core.telemetry.progress import report
from pipelines.local.home import Home
from pipelines.local.run import last_words

_EMBEDDED_SCHEME = "sqlite:"
_LONGEST_REASON = 300  # characters
_STAGE = "mlflow"  # as which progress tells of it
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Tables and columns in which MLflow keeps absolute places of files."""


def tracking_uri(home: Home) -> str:
    """Where MLflow keeps runs and models."""
    return os.environ.get(TRACKING_URI_VARIABLE) or _own_uri(home)


def _own_uri(home: Home) -> str:
    return f"{_EMBEDDED_SCHEME}///{home.mlflow_database}"  # as it is: a home's path has nothing to be quoted


def use_tracking(home: Home, experiment: str) -> None:
    """Point this process and its children to MLflow, and make the experiment if it is new.

    Raises:
        CalmError: MLflow does not answer, or cannot be used.
    """
    _point(home)
    os.environ[EXPERIMENT_VARIABLE] = experiment
    reach_mlflow()
    from mlflow import MlflowClient

    embedded = tracking_uri(home).startswith(_EMBEDDED_SCHEME)
    with mlflow_answers():
        experiment_id(MlflowClient(), experiment, home.mlflow_artifacts.as_uri() if embedded else None)


def read_tracking(home: Home) -> None:
    """Point this process and its children to an MLflow that is there already; nothing is made.

    Raises:
        CalmError: No run has been made in this home, and no other MLflow is named; or MLflow does not answer.
    """
    if not os.environ.get(TRACKING_URI_VARIABLE) and not home.mlflow_database.exists():
        raise CalmError(f"{home.path}: no run here yet; `calm run` trains and registers a model")
    _point(home)
    reach_mlflow(to_read=True)
    from mlflow import MlflowClient

    with mlflow_answers():  # of a database, this looks at its tables
        MlflowClient().search_experiments(max_results=1)


def send_what_is_left(home: Home) -> None:
    """Begin to send what earlier commands could not tell MLflow; nobody waits for it."""
    Delivery(tracking_uri(home), "ui")


def _point(home: Home) -> None:
    if tracking_uri(home) == _own_uri(home) and home.mlflow_database.exists():
        with explained(_own_uri(home)):
            _upgrade(home)
            _follow(home)
    os.environ[TRACKING_URI_VARIABLE] = tracking_uri(home)
    os.environ.setdefault(outbox.OUTBOX_VARIABLE, str(home.outbox))
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # of the children, whose lines go to logs
    quiet_mlflow()


def _upgrade(home: Home) -> None:
    """Give the database of a home's own MLflow the tables of the installed version, if an older one has made it.

    A copy of it as it was stays beside it. Another one is upgraded, and written back at once when that is done, so that
    nothing is half done however this ends. It stays the same file: others may have it open. Of several processes that
    find it so, one does it, and the others wait for that.

    Raises:
        CalmError: MLflow cannot upgrade it.
        sqlite3.Error: It cannot be read or written.
    """
    database = home.mlflow_database
    if not _is_older(_revision_of(database)):
        return
    with _held(home.path), closing(sqlite3.connect(database, isolation_level=None)) as original:
        if not _is_older(sqlite_revision(original)):  # another process has done it
            return
        original.execute("BEGIN IMMEDIATE")  # nobody writes to what is replaced
        revision = sqlite_revision(original)
        new = database.with_name(f"{database.name}.upgrading")
        backup = _free(database.with_name(f"{database.name}.{revision}.backup"))
        try:
            for copy in (backup, new):
                _copy(database, copy)
            _run_upgrade(database, new)
            original.execute("ROLLBACK")
            with closing(sqlite3.connect(new)) as upgraded:
                upgraded.backup(original)
        except BaseException:
            backup.unlink(missing_ok=True)
            raise
        finally:
            new.unlink(missing_ok=True)
    report(_STAGE, note=f"{database}: was of an older MLflow, and has been upgraded; as it was, it is {backup}")


def _revision_of(database: Path) -> str:
    with closing(sqlite3.connect(database)) as opened:
        return sqlite_revision(opened)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder, which one process can at a time, while the block lasts."""
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folder; the database has a lock of its own
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _is_older(revision: str) -> bool:
    """Whether tables are of an older MLflow than the installed one."""
    return revision in known_revisions()[1:]


def _free(file: Path) -> Path:
    """A name that nothing has."""
    others = (file.with_name(f"{file.name}-{number}") for number in count(2))
    return next(name for name in chain([file], others) if not name.exists())


def _copy(database: Path, file: Path) -> None:
    """Write a whole database to a file, for the same users."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)  # left by one that was killed
    try:
        with closing(sqlite3.connect(database)) as original, closing(sqlite3.connect(part)) as copy:
            original.backup(copy)
        shutil.copymode(database, part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)  # of a disk that is full


def _run_upgrade(database: Path, copy: Path) -> None:
    """Upgrade a copy of a database.

    Raises:
        CalmError: MLflow cannot.
    """
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"{_EMBEDDED_SCHEME}///{copy}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if ended.returncode == 0 and _revision_of(copy) == known_revisions()[0]:
        return
    reason = shortened(last_words(ended.stderr) or f"exit code {ended.returncode}", _LONGEST_REASON)
    raise CalmError(
        f"{database}: is of an older MLflow, which cannot be upgraded ({reason}); it is as it was: install the "
        "MLflow that has made it, or move it away, and a new one is made"
    )


def _follow(home: Home) -> None:
    """Let the records of a home's own MLflow follow where the home was moved to: they hold absolute places.

    Of a copied home they would still name the original's, and new files would go there. A folder that is no home's
    stays as it is: it may be shared.

    Raises:
        sqlite3.Error: The records cannot be changed.
    """
    new = home.mlflow_artifacts.as_uri()
    with closing(sqlite3.connect(home.mlflow_database)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master").fetchall()}
        if "experiments" not in tables:  # it is new, and MLflow has not filled it yet
            return
        experiments = database.execute(
            "SELECT artifact_location FROM experiments WHERE typeof(artifact_location) = 'text'"
        ).fetchall()
        for old in {location for (location,) in experiments if location != new and _is_of_a_home(location, home)}:
            for table, column in _LOCATIONS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
            old_database = _folder_of(old).parent / home.mlflow_database.name
            outbox.move(home.outbox, str(old_database), str(home.mlflow_database))


def _is_of_a_home(location: object, home: Home) -> bool:
    """Whether a place of artifacts is that of a home, which may be no longer there."""
    folder = _folder_of(location)
    # Of a Path, the question is an error where nothing may be read, as in the home of the user whose copy this is.
    is_home = not os.path.exists(folder) or os.path.exists(folder.parent / home.mlflow_database.name)  # noqa: PTH110
    return str(location).startswith("file:") and folder.name == home.mlflow_artifacts.name and is_home


def _folder_of(location: object) -> Path:
    return Path(unquote(urlsplit(str(location)).path))


def end_open_stages(parent: Run, status: str) -> None:
    """End the stages' runs whose processes were killed before they could do so."""
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    still_open = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}' and attributes.status = 'RUNNING'"
    with mlflow_answers():
        client = MlflowClient()
        experiment_id = client.get_run(parent.run_id).info.experiment_id
        for run in client.search_runs([experiment_id], still_open):
            if STAGE_TAG in run.data.tags:
                client.set_terminated(run.info.run_id, status)
