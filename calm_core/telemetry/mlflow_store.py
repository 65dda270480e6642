"""Where MLflow keeps runs and models: reached within seconds, or one line says why not and what to do."""

import logging
import os
import re
import socket
import sqlite3
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from calm_core.errors import CalmError, first_line
from calm_core.shown import brief, redacted, shortened
from calm_core.telemetry.progress import report

TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"
REGISTRY_URI_VARIABLE = "MLFLOW_REGISTRY_URI"
WORKSPACE_VARIABLE = "MLFLOW_WORKSPACE"
PATIENCE_SECONDS = 120.0
"""How long a stage that begins waits for an MLflow that has answered the run above it, and does not answer now."""

_PROBE_SECONDS = 5  # a server at work answers within a fraction of it
_PROBE = "/api/2.0/mlflow/experiments/search"  # only MLflow answers it, and a server with users asks who it is
_PROBE_ANSWER = {"experiments", "next_page_token"}
_WAIT_SECONDS = 2.0  # between two questions to one that may be restarting
_SQLITE = ("sqlite:", "sqlite+")
_PAUSES = (5.0, 15.0, 40.0)  # seconds between tries of what MLflow has failed at
_RETRIES = 1  # of one call, at once: for a connection that was closed while nobody used it
_LONGEST_REASON = 300  # characters

ResultT = TypeVar("ResultT")

_AGAIN = "run the same command again"
_LOG_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who may use it, or MLFLOW_TRACKING_TOKEN"
_PLACES = "http://HOST:PORT of an MLflow server or sqlite:////FOLDER/mlflow.db"
_TO_DO = (
    (r"not a database|malformed|disk image", "it is damaged or no database; move it away, and a new one is made"),
    (r"locked", f"another process holds it; wait for that one or end it, then {_AGAIN}"),
    (r"readonly|read-only|Permission denied", "make it and its folder writable, or choose another place"),
    (r"unable to open|[dD]irectory", "it has to be a file in a folder that you may write to"),
    (r"disk is full|No space|disk I/O", f"free space there, then {_AGAIN}"),
    (r"not installed", "install it, or choose another place"),
)
"""What helps against what MLflow and its databases say, by patterns."""
_REFUSALS = {
    "INVALID_PARAMETER_VALUE": "change it",
    "RESOURCE_DOES_NOT_EXIST": "name one that is there; it may have been deleted",
    "PERMISSION_DENIED": _LOG_IN,
    "UNAUTHENTICATED": _LOG_IN,
}
"""What helps against refusals, by MLflow's codes."""


class MlflowUnreachable(CalmError):
    """MLflow, its database or its store of files does not answer, which may pass."""

    can_pass = True


def tracking_place() -> str:
    """Where MLflow keeps runs and models, for people: the file of a database, else its URI without a password."""
    import mlflow  # import costs seconds: only where it is used

    return _place(mlflow.get_tracking_uri())


def place_of(uri: str) -> str:
    """What stays the same of a tracking URI, whoever logs in: the file of a database, else the URI without a user.

    MLflow's workspaces know nothing of each other's runs, so the one that is set is part of it.

    Raises:
        CalmError: It is to name a file of SQLite, and does not.
    """
    if uri.startswith(_SQLITE):
        return str(_sqlite_file(uri))
    workspace = os.environ.get(WORKSPACE_VARIABLE)
    place = redacted(uri).replace("***@", "").rstrip("/")
    return f"{place} (workspace {workspace})" if workspace else place


@contextmanager
def mlflow_answers() -> Iterator[None]:
    """Turn whatever MLflow raises into one line without a password: its messages may repeat the tracking URI.

    Its client would try a call for minutes, and then the next one: unless MLFLOW_HTTP_REQUEST_MAX_RETRIES says how
    often, it is tried twice.

    Raises:
        CalmError: MLflow has failed.
    """
    import mlflow
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES

    with ExitStack() as stack, explained(mlflow.get_tracking_uri()):
        if not RETRIES.is_set():
            RETRIES.set(_RETRIES)
            stack.callback(RETRIES.unset)
        yield


def outlasting(stage: str, work: Callable[[], ResultT]) -> ResultT:
    """Do what uses MLflow and may be done again, and do it again when MLflow has gone away meanwhile and is back.

    Args:
        stage: Who says so.
        work: What to do.

    Raises:
        CalmError: It fails for another reason, or still after some tries.
    """
    for pause in _PAUSES:
        try:
            with mlflow_answers():
                return work()
        except MlflowUnreachable as error:
            report(stage, note=f"trying again in {pause:.0f} s ({_reason_in(error)})")
        time.sleep(pause)
        wait_for_mlflow(stage)
    with mlflow_answers():
        return work()


def reach_mlflow(*, to_read: bool = False) -> None:
    """Ask where MLflow keeps runs and models once, so that what is not there costs seconds.

    MLflow itself tries for minutes, since a server that it knows may be restarting. So does this, if
    MLFLOW_HTTP_REQUEST_MAX_RETRIES and MLFLOW_HTTP_REQUEST_TIMEOUT say how often and how long.

    Args:
        to_read: A database that is not there is an error, instead of being made.

    Raises:
        CalmError: It does not answer, is none of MLflow, or cannot be used.
    """
    import mlflow

    for uri in dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
        with explained(uri):
            if to_read and uri.startswith(_SQLITE) and not _sqlite_file(uri).exists():
                raise CalmError(f"{_place(uri)}: there is no such database; set {_variable(uri)} to {_PLACES}")
            _reach(uri)


def wait_for_mlflow(stage: str) -> None:
    """Wait until MLflow answers that has answered before, since it may be restarting: `PATIENCE_SECONDS` at most.

    Args:
        stage: Who says that it is waited for.

    Raises:
        CalmError: It does not answer in this time, or something is wrong with it that does not pass.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    waiting = False
    while True:
        try:
            _reach.cache_clear()  # what it has answered before says nothing of now
            return reach_mlflow()
        except CalmError as error:
            if not error.can_pass or time.monotonic() > deadline:
                raise
            if not waiting:
                report(stage, note=f"waiting for MLflow, {PATIENCE_SECONDS:.0f} s at most ({_reason_in(error)})")
            waiting = True
        time.sleep(_WAIT_SECONDS)


def _reason_in(error: CalmError) -> str:
    """What is wrong and where; not what to do, which is done."""
    return str(error).rpartition("; ")[0] or str(error)


def quiet_mlflow() -> None:
    """Keep MLflow's own lines, and those of what it uses, off this process's terminal: what matters is raised."""
    from mlflow.utils.logging_utils import disable_logging

    disable_logging()
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries


@lru_cache  # what has answered is not asked again
def _reach(uri: str) -> None:
    scheme, _, rest = uri.partition(":")
    kind = re.split(r"\W", scheme)[0]
    if kind in ("http", "https") and _has_host(uri):
        _ask_server(uri)
    elif kind == "sqlite":
        _ask_sqlite(_sqlite_file(uri))
    elif kind in ("postgresql", "mysql", "mssql"):
        _ask_database(uri)
    elif kind not in ("http", "https") and re.match(r"\d+(/|$)", rest):
        raise CalmError(f"{_place(uri)}: has no scheme; write http://{uri}")
    elif kind not in ("databricks", "uc", *_plugins()) and not os.environ.get("MLFLOW_ALLOW_FILE_STORE"):
        raise CalmError(f"{_place(uri)}: MLflow keeps nothing in such a place; write {_PLACES}")


def _plugins() -> Iterator[str]:
    """Schemes that installed plugins of MLflow know."""
    return (entry.name for entry in entry_points(group="mlflow.tracking_store"))


def _has_host(uri: str) -> bool:
    """Whether a URL says where a server is."""
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", uri)
    except ValueError:  # a port that is no number, or too high
        return False


def _ask_server(uri: str) -> None:
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    response = http_request(
        get_default_host_creds(uri),
        _PROBE,
        "GET",
        params={"max_results": 1},
        max_retries=MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() if MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set() else 0,
        timeout=MLFLOW_HTTP_REQUEST_TIMEOUT.get() if MLFLOW_HTTP_REQUEST_TIMEOUT.is_set() else _PROBE_SECONDS,
        raise_on_status=False,
    )
    status = response.status_code
    if status == 403 and "Host header" in response.text:
        raise CalmError(
            f"{_place(uri)}: that server does not take its name from there (HTTP 403, {brief(response.text)}); add it "
            "to its --allowed-hosts, or write a name that is among them"
        )
    if status in (401, 403):
        raise CalmError(f"{_place(uri)}: asks who you are (HTTP {status}); {_LOG_IN}")
    if status in (408, 429, 500, 502, 503, 504):
        to_do = f"look into that server's log, then {_AGAIN}"
        raise MlflowUnreachable(f"{_place(uri)}: MLflow does not answer (HTTP {status}); {to_do}")
    try:
        is_mlflow = status == 200 and response.json().keys() <= _PROBE_ANSWER
    except (ValueError, AttributeError):  # no JSON, or no object
        is_mlflow = False
    if not is_mlflow:
        raise CalmError(f"{_place(uri)}: what answers there is no MLflow server (HTTP {status}); check that address")


def _ask_sqlite(file: Path) -> None:
    import sqlalchemy  # noqa: F401  # by which MLflow reads it; the bare library comes without

    if file.exists():  # or MLflow makes it
        with closing(sqlite3.connect(file, timeout=_PROBE_SECONDS)) as database:
            _require_current(str(file), sqlite_revision(database))


def sqlite_revision(database: sqlite3.Connection) -> str:
    """Which revision of MLflow's tables a database has; empty for one without any."""
    if not database.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
        return ""
    found = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found[0]) if found else ""


@lru_cache
def known_revisions() -> tuple[str, ...]:
    """The revisions of its tables that the installed MLflow knows, its own first."""
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return tuple(script.revision for script in scripts.walk_revisions())


def _require_current(place: str, revision: str) -> None:
    """Refuse the tables of another MLflow: it would change those of an older one without a copy, or fail later.

    Args:
        place: The database, for people.
        revision: Of its tables.

    Raises:
        CalmError: They are of another MLflow.
    """
    from mlflow import __version__ as installed

    if revision in known_revisions()[1:]:
        raise CalmError(
            f"{place}: its tables are of an older MLflow ({revision}) than {installed}, which is installed; "
            "take a copy of it, then run `mlflow db upgrade URI` with it"
        )
    if revision and revision not in known_revisions():
        raise CalmError(
            f"{place}: its tables are of a newer MLflow ({revision}) than {installed}, which is installed; "
            "install that version, or choose another place"
        )


def _sqlite_file(uri: str) -> Path:
    """The file of a SQLite database.

    Raises:
        CalmError: The URI names none.
    """
    named = re.fullmatch(r"[^/]*:///(?P<file>[^?]+)(\?.*)?", uri)
    if not named or named["file"] == ":memory:":
        raise CalmError(f"{_variable(uri)} {redacted(uri)}: names no file; write sqlite:////FOLDER/mlflow.db")
    return Path(named["file"]).absolute()


def _ask_database(uri: str) -> None:
    from alembic.migration import MigrationContext
    from mlflow.store.db.utils import create_sqlalchemy_engine

    os.environ.setdefault("PGCONNECT_TIMEOUT", str(_PROBE_SECONDS))
    engine = create_sqlalchemy_engine(uri)
    try:
        with engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    _require_current(_place(uri), revision or "")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what fails at a place of MLflow's into one line: where, why, what to do.

    Args:
        uri: The place, as MLflow is told it; its password is not shown.

    Raises:
        CalmError: Something has failed.
    """
    before = sys.exception()
    try:
        yield
    except CalmError:
        raise
    except Exception as error:  # those of its clients and databases have no common base
        reason = reason_of(error, before)
        to_do = next((to_do for pattern, to_do in _TO_DO if re.search(pattern, reason)), _to_reach(uri))
        failed = "cannot be used" if uri.startswith(_SQLITE) else "MLflow does not answer"
        code = getattr(error, "error_code", "")
        if code in _REFUSALS:
            failed, to_do = "MLflow refuses this", _REFUSALS[code]
        kind = MlflowUnreachable if _AGAIN in to_do else CalmError
        raise kind(f"{_place(uri)}: {failed} ({reason}); {to_do}") from None


def reason_of(error: Exception, before: BaseException | None = None) -> str:
    """Why, in few words: what the system or the database has said, below the layers of libraries over it.

    Args:
        error: What was raised.
        before: What was being handled already then, which has nothing to do with it.
    """
    for cause in reversed(_causes(error, [error, *([before] if before else [])])):
        match cause:
            case ConnectionRefusedError():
                return "nothing listens there"
            case socket.gaierror():
                return "there is no such host"
            case TimeoutError():
                return "no answer in time"
            case ssl.SSLCertVerificationError():
                return f"its certificate is not accepted: {cause.verify_message}"
            case ssl.SSLError():
                return "it does not speak https"
            case ConnectionError():
                return "it ends the connection"
            case OSError(strerror=str(text)):
                return f"{text}: {cause.filename}" if cause.filename else text
            case sqlite3.Error():
                return first_line(cause)
            case ModuleNotFoundError(name=str(module)):
                return f"{module}, which it needs for such a database, is not installed"
    return shortened(first_line(error).partition(". ")[0], _LONGEST_REASON)  # what MLflow goes on with is about itself


def _causes(error: BaseException, seen: list[BaseException]) -> list[BaseException]:
    """An error and all that it came of, the first of all last: libraries name a cause of their own, or none."""
    found = [error]
    for below in (error.__cause__, error.__context__):
        if below is not None and below not in seen:
            seen.append(below)
            found += _causes(below, seen)
    return found


def _place(uri: str) -> str:
    """How a message names a place: the file of a database, else the variable that names it."""
    return str(_sqlite_file(uri)) if uri.startswith(_SQLITE) else f"{_variable(uri)} {redacted(uri)}"


def _variable(uri: str) -> str:
    return REGISTRY_URI_VARIABLE if uri == os.environ.get(REGISTRY_URI_VARIABLE) else TRACKING_URI_VARIABLE


def _to_reach(uri: str) -> str:
    """What to do about a place that cannot be reached."""
    if not urlsplit(uri).netloc:
        return f"check that place, then {_AGAIN}"
    return f"check that address and its server, then {_AGAIN}, or unset {_variable(uri)} to do without it"
