"""Mistakes around MLflow: servers, stores, registered models, and the home."""

import atexit
import functools
import http.server
import os
import shutil
import socket
import socketserver
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.cli.mistakes.frame import Mistake

TEXT = {"a.txt": "the river flows past the old port"}
RUN = ("run", "--source", "a.txt")
GENERATE = ("generate", "the river")
TRAIN = ("train", "transformer", "--dataset", "{dataset}", "--output", "out")


@functools.cache
def _server(status: int, body: str = "hello") -> str:
    """The URL of a server that answers everything alike; it ends with the tests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


@functools.cache
def _listener() -> socket.socket:
    """A socket that takes connections and never answers; it ends with the tests."""
    return socket.create_server(("127.0.0.1", 0))


def _silent() -> str:
    return f"http://127.0.0.1:{_listener().getsockname()[1]}"


@functools.cache
def _closing() -> str:
    """The URL of a server that ends every connection at once; it ends with the tests."""
    server = socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


@functools.cache
def _template() -> Path:
    """A home whose MLflow has the experiment `calm` and the models `calm` and `calm-small`.

    Of calm's versions 1 to 3, 2 is champion and 3 has failed; their files are gone.
    """
    from mlflow import MlflowClient

    home = Path(tempfile.mkdtemp(prefix="calm-mistakes-"))
    atexit.register(shutil.rmtree, home)
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    client.create_experiment("calm", artifact_location=(home / "mlartifacts").as_uri())
    for name in ("calm", "calm-small"):
        client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version("calm", (home / "mlartifacts" / "gone").as_uri())
    client.set_registered_model_alias("calm", "champion", "2")
    _change(home, "UPDATE model_versions SET status = 'FAILED_REGISTRATION' WHERE version = 3")
    return home


def _change(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute(statement)


def _home(folder: Path, *statements: str) -> None:
    """The home of a run that is over, changed by hand."""
    shutil.copytree(_template(), folder / "home")
    for statement in statements:
        _change(folder / "home", statement)


def _homes(*statements: str) -> Callable[[Path], object]:
    return lambda folder: _home(folder, *statements)


def _truncated(folder: Path) -> None:
    _home(folder)
    database = folder / "home" / "mlflow.db"
    database.write_bytes(database.read_bytes()[:20_000])


@functools.cache
def _lock(database: str) -> sqlite3.Connection:
    """A connection that holds a database until the tests end."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def _locked(folder: Path) -> None:
    _home(folder)
    _lock(str(folder / "home" / "mlflow.db"))


def _uri(
    name: str,
    uri: str | Callable[[], str],
    *says: str,
    command: tuple[str, ...] = RUN,
    arrange: Callable[[Path], object] = lambda folder: None,
) -> Mistake:
    """A tracking URI that is wrong, or where something is wrong; of a server, it is known once that runs."""

    def begin(folder: Path) -> None:
        arrange(folder)
        if not isinstance(uri, str):
            os.environ["MLFLOW_TRACKING_URI"] = uri()

    given = uri if isinstance(uri, str) else "of a server that is started before"
    return Mistake(
        f"tracking URI: {name}", command, says, files=TEXT, environment={"MLFLOW_TRACKING_URI": given}, arrange=begin
    )


def _store(name: str, arrange: Callable[[Path], object], *says: str, command: tuple[str, ...] = GENERATE) -> Mistake:
    """Something that is wrong with the home, or with MLflow's database in it."""
    return Mistake(f"home: {name}", command, says, files=TEXT, arrange=arrange)


def _model(uri: str, *says: str, arrange: Callable[[Path], object] = _home) -> Mistake:
    """A registered model that is named wrongly."""
    return Mistake(f"model {uri}", (*GENERATE, "--model", uri), says, arrange=arrange)


def _file(path: str) -> Callable[[Path], object]:
    """A file where a folder belongs."""

    def make(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")

    return make


def _folder(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).mkdir(parents=True)


def _blocked(path: str) -> Callable[[Path], object]:
    """A link into a file system where nobody can make anything."""

    def link(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to("/proc/self/fd/nothing")

    return link


_DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens
_NO_PLACE = "MLflow keeps nothing in such a place; write http://HOST:PORT of an MLflow server or sqlite:"
_NO_MLFLOW = "what answers there is no MLflow server"
_NEWER = "{folder}/home/mlflow.db: its tables are of a newer MLflow (fedcba987654) than "

MISTAKES: list[Mistake] = [
    _uri("nothing listens", _DEAD, f"MLFLOW_TRACKING_URI {_DEAD}: MLflow does not answer (nothing listens there)"),
    _uri("nothing listens, to read", _DEAD, "nothing listens there", command=GENERATE),
    _uri("a single stage", _DEAD, "nothing listens there", command=TRAIN),
    _uri("never answers", _silent, "MLflow does not answer (no answer in time)"),
    _uri("ends every connection", _closing, "MLflow does not answer (it ends the connection)"),
    _uri("another server", functools.partial(_server, 404), _NO_MLFLOW, "(HTTP 404)"),
    _uri("answers everything", functools.partial(_server, 200), _NO_MLFLOW, "(HTTP 200)"),
    _uri("other JSON", functools.partial(_server, 200, '{"status": "up"}'), _NO_MLFLOW),
    _uri("a password is asked for", functools.partial(_server, 401), "MLFLOW_TRACKING_USERNAME", "(HTTP 401)"),
    _uri("forbidden", functools.partial(_server, 403), "MLFLOW_TRACKING_USERNAME", "(HTTP 403)"),
    _uri("the server is broken", functools.partial(_server, 503), "(HTTP 503)", "look into that server's log"),
    _uri("https to http", lambda: _server(404).replace("http", "https"), "it does not speak https"),
    _uri("unknown host", "http://mlflow.invalid:5000", "there is no such host"),
    _uri("no scheme", "mlflow:5000", "MLFLOW_TRACKING_URI mlflow:5000: has no scheme; write http://mlflow:5000"),
    _uri("no scheme, a path", "localhost:5000/ml", "write http://localhost:5000/ml"),
    _uri("unknown scheme", "foo://bar", "MLFLOW_TRACKING_URI foo://bar: ", _NO_PLACE),
    _uri("no host", "http://", _NO_PLACE),
    _uri("no host but a port", "http:5000", _NO_PLACE),
    _uri("a port that is none", "http://localhost:99999", _NO_PLACE),
    _uri("a space", "http://my server:5000", _NO_PLACE),
    _uri("only a space", " ", _NO_PLACE),
    _uri("a folder", "mlruns", "MLFLOW_TRACKING_URI mlruns: ", _NO_PLACE),
    _uri("a folder's URL", "file:///srv/mlruns", _NO_PLACE),
    _uri("a relative database", "sqlite:mlflow.db", "names no file; write sqlite:////FOLDER/mlflow.db"),
    _uri("a database in memory", "sqlite:///:memory:", "names no file"),
    _uri(
        "a database that cannot be made", "sqlite:////proc/nowhere/x.db", "/proc/nowhere/x.db: cannot be used (No such"
    ),
    _uri("a folder for a database", "sqlite:////proc", "/proc: cannot be used (unable to open database file)"),
    _uri("no database to read", "sqlite:///no.db", "{folder}/no.db: there is no such database", command=GENERATE),
    _uri("a text for a database", "sqlite:///a.txt", "{folder}/a.txt: cannot be used (file is not a database)"),
    _uri(
        "no driver",
        "postgresql+psycopg2://u:open-sesame@db/x",
        "postgresql+psycopg2://***@db/x: ",
        "psycopg2",
        "install",
    ),
    _store(
        "damaged database", _truncated, "{folder}/home/mlflow.db: cannot be used (database disk image is malformed)"
    ),
    _store("locked database", _locked, "{folder}/home/mlflow.db: cannot be used (database is locked); another process"),
    _store("newer schema", _homes("UPDATE alembic_version SET version_num = 'fedcba987654'"), _NEWER),
    _store(
        "newer schema with fewer tables",
        _homes("UPDATE alembic_version SET version_num = 'fedcba987654'", "DROP TABLE logged_model_tags"),
        _NEWER,
    ),
    _store(
        "older schema, which it is not",
        _homes("UPDATE alembic_version SET version_num = '0584bdc529eb'"),
        "{folder}/home/mlflow.db: is of an older MLflow, which cannot be upgraded (",
        "it is as it was",
    ),
    _store(
        "deleted experiment",
        _homes("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'calm'"),
        "{folder}/home/mlflow.db: the experiment 'calm' has been deleted; choose another with --set experiment=NAME",
        "mlflow experiments restore -x 1",
        command=RUN,
    ),
    _store("nothing yet", lambda folder: None, "no run here yet; `calm run` trains and registers a model"),
    _store("a file", _file("home"), "{folder}/home: is a file where a folder belongs; move it away", command=RUN),
    _store("a file, to read", _file("home"), "{folder}/home: is a file where a folder belongs"),
    _store("below nothing", _blocked("home"), "{folder}/home: cannot be made or written (", command=RUN),
    _store("logs are a file", _file("home/logs"), "{folder}/home/logs: is a file where a folder belongs", command=RUN),
    _store("corpus is a file", _file("home/corpus"), "{folder}/home/corpus: is a file", command=("run",)),
    _store(
        "lock is a folder", _folder("home/lock"), "{folder}/home/lock: is a folder where a file belongs", command=RUN
    ),
    _store(
        "lock cannot be made", _blocked("home/lock"), "{folder}/home/lock: cannot be made or written (", command=RUN
    ),
    _store("database is a folder", _folder("home/mlflow.db"), "{folder}/home/mlflow.db: is a folder", command=RUN),
    Mistake(
        "home: a file in its path",
        RUN,
        ("{folder}/a.txt/home: cannot be made or written (Not a directory); set CALM_HOME to another folder",),
        files=TEXT,
        environment={"CALM_HOME": "a.txt/home"},
    ),
    Mistake(
        "home: a name that is too long",
        RUN,
        ("cannot be made or written (File name too long)",),
        files=TEXT,
        environment={"CALM_HOME": "n" * 300},
    ),
    _model(
        "models:/clam@champion",
        "no registered model clam; did you mean models:/calm@champion?",
        "registered: calm and calm-small",
    ),
    _model("models:/nobody/1", "there is no registered model nobody; registered: calm and calm-small"),
    _model("models:/calm@prod", "models:/calm@prod: calm has no alias prod; it has champion (version 2)"),
    _model("models:/calm@champoin", "calm has no alias champoin; did you mean champion? It has champion (version 2)"),
    _model("models:/calm-small@prod", "calm-small has no version yet; `calm run` registers one"),
    _model("models:/calm/9", "models:/calm/9: calm has no version 9; it has 1 to 3"),
    _model("models:/calm/champion", "champion is an alias; write models:/calm@champion"),
    _model(
        "models:/calm", "names no version of calm; write models:/calm@champion or models:/calm/NUMBER: it has 1 to 3"
    ),
    _model("models:/calm-small/latest", "calm-small has no version yet"),
    _model("models:/calm/3", "models:/calm/3: version 3 of calm is not ready (FAILED_REGISTRATION)"),
    _model("models:/calm/1", "models:/calm/1: its files are gone ({folder}/home/mlartifacts/gone/MLmodel); register"),
    _model("models:calm", "models:calm: is no address of a registered model; write models:/NAME@ALIAS"),
    _model("models:/", "is no address of a registered model"),
    _model("models:/calm@", "is no address of a registered model"),
    _model("models:/a/b/c", "is no address of a registered model"),
    _model("models:/calm@champion?token=open-sesame", "models:/calm@champion?…: is no address of a registered model"),
    _model("runs:/nothing", "runs:/nothing: is no address of a registered model"),
    _model(
        "runs:/nothing/model", "runs:/nothing/model: cannot be loaded from {folder}/home/mlflow.db (Run with id=nothing"
    ),
    _model("mlflow-artifacts:", "is no address of a registered model"),
    _model(
        "models:/calm@first",
        "no model is registered yet; `calm run` trains and registers one",
        arrange=_homes(
            "DELETE FROM registered_model_aliases", "DELETE FROM model_versions", "DELETE FROM registered_models"
        ),
    ),
    Mistake("ui: nothing yet", ("ui",), ("no run here yet",)),
    Mistake(
        "ui: damaged database", ("ui",), ("cannot be used (database disk image is malformed)",), arrange=_truncated
    ),
    Mistake(
        "ui: a server runs already",
        ("ui",),
        ("MLFLOW_TRACKING_URI names a server that runs already: open http://***@127.0.0.1:9",),
        environment={"MLFLOW_TRACKING_URI": "http://somebody:open-sesame@127.0.0.1:9"},
    ),
]
