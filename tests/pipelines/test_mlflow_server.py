"""`calm ui`: a port that is taken, and a real server from its start to Ctrl-C."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from calm_core.errors import CalmError
from pipelines.local.mlflow_server import require_free

ROOT = Path(__file__).parents[2]


class Version(http.server.BaseHTTPRequestHandler):
    """Says its version, as MLflow does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"3.17.2")

    def log_message(self, *_: object) -> None:
        pass


def test_a_port_of_another_program_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CalmError, match=rf"^port {port} is taken by another program; .* --port \d+$"):
            require_free(port)
    require_free(port)


def test_a_port_of_a_program_that_speaks_something_else_is_one_line() -> None:
    def greet() -> None:
        connection, _ = other.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9\r\n")
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(CalmError, match="is taken by another program"):
            require_free(other.getsockname()[1])


def test_a_port_of_mlflow_says_where_to_look() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Version) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = server.server_port
        with pytest.raises(CalmError, match=rf"an MLflow server, .* runs already; open http://127.0.0.1:{port}, or"):
            require_free(port)
        server.shutdown()


def test_a_port_that_is_not_for_users_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(CalmError, match=r"^port 80 cannot be used \(Permission denied\); .* from 1024 up$"):
        require_free(80)


RECORD = """
import sys
from pipelines.local.home import Home
from pipelines.local.tracking import use_tracking
from calm_core.telemetry.stage import Stage
use_tracking(Home.find(), "calm")
with Stage("find", {"size": 3}) as stage:
    stage.begin()
"""


def test_the_address_appears_once_the_server_answers_and_ctrl_c_ends_it_in_silence(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CALM_", "MLFLOW_"))}
    environment |= {"CALM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    record: Callable[..., subprocess.CompletedProcess[str]] = lambda **variables: subprocess.run(  # noqa: E731
        [sys.executable, "-c", RECORD],
        env=environment | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    record()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", "from calm_cli.start import main; main()", "ui", "--port", str(port)],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    assert server.stdout.readline() == f"MLflow: http://127.0.0.1:{port}   (Ctrl-C ends it)\n"
    recorded = record(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    assert "View run" not in recorded.stdout + recorded.stderr
    assert all(line.startswith("[find]") for line in (recorded.stdout + recorded.stderr).splitlines())

    below = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(signal.SIGINT)
    assert server.communicate() == ("", "MLflow's server is starting\n")
    assert server.returncode == 0
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    require_free(port)
