"""A real PostgreSQL server in a process of its own, which may be stopped and crash."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calm_core.errors import CalmError
from pipelines.local.object_store import free_port

USER = "calm"
_FOLDERS = "/usr/lib/postgresql/*/bin"  # where Debian has the programs, outside of PATH
_START_SECONDS, _STOP_SECONDS = 60, 60


class Postgres:
    """A server on a port of this machine, with an empty folder of its own.

    It refuses to run as root, and so runs as another user then.

    Args:
        programs: Where `postgres` and `initdb` are.
        folder: An empty folder, which its user has to reach.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder, self._port = programs, folder, free_port()
        self._user = _other_user() if os.getuid() == 0 else None
        if self._user:
            os.chown(folder, self._user, -1)
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-sync", "--no-instructions")

    def uri(self, database: str) -> str:
        """Of a database, as MLflow is told it."""
        return f"postgresql://{USER}@127.0.0.1:{self._port}/{database}"

    def make(self, database: str) -> str:
        """Make an empty database; returns its URI."""
        self._execute(f'CREATE DATABASE "{database}"')
        return self.uri(database)

    def start(self) -> None:
        """Start it if it does not run, and wait until it answers."""
        if self._process:
            return
        options = [f"-D{self._folder / 'data'}", f"-p{self._port}", "-h127.0.0.1", "-cunix_socket_directories=", "-F"]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), *options],
                stdout=log,
                stderr=log,
                user=self._user,
                extra_groups=[] if self._user else None,
                cwd=self._folder,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise CalmError(f"PostgreSQL does not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Let it end its sessions, write all that it has, and end."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Let it end at once, without writing what it has in memory: the next start recovers it from its log."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(number)
            self._process.wait(_STOP_SECONDS)
            self._process = None

    def _answers(self) -> bool:
        import psycopg

        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        import psycopg

        connection = psycopg.connect(self.uri("postgres"), connect_timeout=5)
        try:
            connection.autocommit = True
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def _run(self, program: str, *arguments: str) -> None:
        made = subprocess.run(
            [str(self._programs / program), f"-D{self._folder / 'data'}", *arguments],
            capture_output=True,
            text=True,
            user=self._user,
            extra_groups=[] if self._user else None,
            cwd=self._folder,
            check=False,
        )
        if made.returncode:
            raise CalmError(f"{program}: {made.stdout[-1000:]} {made.stderr[-1000:]}")


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server that is started, while the block lasts.

    Raises:
        CalmError: Its programs are not installed, or it does not start.
    """
    places = [*sorted(map(str, Path("/").glob(_FOLDERS[1:])), reverse=True), os.environ["PATH"]]
    program = shutil.which("initdb", path=os.pathsep.join(places))
    if program is None:
        raise CalmError("PostgreSQL's programs `initdb` and `postgres` are not installed; Debian: postgresql")
    # Not pytest's folder: only its own user gets there.
    with tempfile.TemporaryDirectory(prefix="calm-postgres-") as folder:
        server = Postgres(Path(program).parent, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.crash()


def _other_user() -> int:
    """A user without rights: PostgreSQL's own where Debian's package has made one."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise CalmError("there is no user postgres or nobody, and PostgreSQL does not run as root")
