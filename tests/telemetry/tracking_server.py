"""A real MLflow server in a process of its own, and a proxy before it that fails as networks and servers do."""

import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.request import urlopen

from tests.mlflow_tables import new_store

_START_SECONDS = 240  # it takes 5 s on an idle machine
_STOP_SECONDS = 60
Fault = Literal["", "503", "401", "hangs", "refused", "answer lost"]


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TrackingServer:
    """MLflow's server, on a database of SQLite and a folder of files unless others are named.

    Args:
        folder: Where its log lies, and its database and files.
        store_uri: Of another database.
        files: The options that say where it keeps files.

    Attributes:
        uri: Where it listens.
        database: The file of its own database.
    """

    def __init__(self, folder: Path, store_uri: str = "", files: Sequence[str] = ()) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.database = folder / "mlflow.db"
        self._store_uri = store_uri or new_store(folder)
        self._files = files or ("--artifacts-destination", str(folder / "artifacts"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self._port)]
        command += ["--backend-store-uri", self._store_uri, *self._files]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_until(self._answers, _START_SECONDS)

    def stop(self) -> None:
        """Ask it to end, as a cluster does, and wait until it has."""
        if self._process:
            self._process.terminate()
            self._process.wait(_STOP_SECONDS)
            self.kill()  # what it may have left

    def kill(self) -> None:
        """Kill it as it is."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process and self._process.poll() is None, (self._folder / "server.log").read_text()[-2000:]
        try:
            with urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.read() == b"OK")
        except (OSError, URLError, http.client.HTTPException):
            return False


class Proxy:
    """Passes requests on to a server, but for a while fails those that tell something of a run.

    Attributes:
        uri: Where it listens.
        fault: How it fails; empty to pass all on.
        headers: Of all requests, in their order.
    """

    def __init__(self, server_uri: str) -> None:
        self.fault: Fault = ""
        self.failed = 0
        self.headers: list[dict[str, str]] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler(server_uri.split("//")[1]))
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def listening(self) -> Iterator["Proxy"]:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        yield self
        self._server.shutdown()
        self._server.server_close()

    def _handler(self, server: str) -> type[http.server.BaseHTTPRequestHandler]:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.headers.append(dict(self.headers))
                tells = self.path.split("?")[0].endswith(("log-batch", "runs/update", ".html"))
                fault = proxy.fault if tells else ""
                proxy.failed += bool(fault)
                if fault == "hangs":
                    while proxy.fault:  # longer than anybody waits in these tests
                        time.sleep(0.1)
                    return
                if fault == "refused":
                    self.close_connection = True
                    return
                if fault in ("503", "401"):
                    self.send_response(int(fault))
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection(server, timeout=60)
                connection.request(self.command, self.path, content, dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                if fault == "answer lost":
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = _pass_on

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something that comes; a hang must not take the tests with it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)
