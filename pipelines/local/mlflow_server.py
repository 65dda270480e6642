"""MLflow's own server on this machine, for as long as somebody looks at it."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from http.client import HTTPException
from typing import IO
from urllib.request import urlopen

from calm_core.errors import CalmError, Stopped
from calm_core.telemetry.mlflow_store import TRACKING_URI_VARIABLE

_HOST = "127.0.0.1"
_START_SECONDS = 120  # MLflow takes some 5 on an idle laptop
_STOP_SECONDS = 10
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 2


def address(port: int) -> str:
    """Where a server with this port is opened."""
    return f"http://{_HOST}:{port}"


def require_free(port: int) -> None:
    """Make sure that a server can have a port.

    Raises:
        CalmError: Something else listens there, or this user may not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CalmError(
                    f"port {port} cannot be used ({error.strerror}); choose another with --port, from 1024 up"
                ) from None
        else:
            return
    other = port + 1 if port < 65535 else port - 1
    if re.match(r"\d+\.\d+", _answer(f"{address(port)}/version")):
        raise CalmError(
            f"port {port} is taken: an MLflow server, perhaps another `calm ui`, runs already; "
            f"open {address(port)}, or choose another port, e.g. --port {other}"
        )
    raise CalmError(f"port {port} is taken by another program; choose another port, e.g. --port {other}")


def serve(uri: str, artifact_root: str, port: int) -> None:
    """Run MLflow's server until Ctrl-C ends it, in silence, or another signal.

    Args:
        uri: The database that it shows.
        artifact_root: URI of the folder of the files of new experiments.
        port: On this machine, which nobody else reaches.

    Raises:
        CalmError: It ends by itself, or does not answer.
        Stopped: Another signal has come.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", _HOST, "--port", str(port)]
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}  # not in the command, which every user can see
    environment.pop(TRACKING_URI_VARIABLE, None)
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # processes that nothing of ours needs
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--default-artifact-root", artifact_root],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the server's
        )
        try:
            _wait_until_it_answers(process, port, log)
            print(f"MLflow: {address(port)}   (Ctrl-C ends it)", flush=True)
            raise _ended(process.wait(), log)
        except Stopped as stopped:
            if stopped.signal_number != signal.SIGINT:
                raise
        finally:
            _stop(process)


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while _answer(f"{address(port)}/health") != "OK":
        if process.poll() is not None:
            raise _ended(process.returncode, log)
        if time.monotonic() > deadline:
            raise CalmError(f"MLflow's server does not answer at {address(port)} after {_START_SECONDS} s; try again")
        time.sleep(_POLL_SECONDS)


def _ended(exit_code: int, log: IO[bytes]) -> CalmError:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    said = f": {lines[-1].strip()}" if lines else ""
    return CalmError(f"MLflow's server has ended by itself (exit code {exit_code}){said}")


def _answer(url: str) -> str:
    """What a web server says, empty if there is none."""
    try:
        with urlopen(url, timeout=_ANSWER_SECONDS) as answer:  # of this machine
            return str(answer.read(100).decode(errors="replace"))
    except (OSError, ValueError, HTTPException):  # what answers may speak anything
        return ""


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server and its workers: they are asked, and then killed."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(_STOP_SECONDS)
    finally:  # also when an impatient user interrupts the waiting
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
