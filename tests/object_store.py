"""A proxy in front of an S3 server that fails and dawdles on demand, and the environment that leads to either."""

import http.client
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

from pipelines.local.object_store import ACCESS_KEY, SECRET_KEY


class Trouble:
    """What the proxy does to requests.

    Attributes:
        errors: How many of the next requests are answered with an error.
        failing: Requests for paths that hold this are answered with an error; empty for none.
        delay: Seconds that every request waits.
        requests: How many came in all.
    """

    def __init__(self) -> None:
        self.errors = 0
        self.failing = ""
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
            is_failing = bool(trouble.failing) and trouble.failing in self.path
            if trouble.errors > 0 or is_failing:
                trouble.errors -= not is_failing
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
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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
