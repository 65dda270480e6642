"""The storage of the overlay `local`, as its manifests start it, on this machine."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from pipelines.local.object_store import free_port
from tests.k8s.rendered import K8S, find, overlay, secrets_of_local

CLIENT = """
import s3fs
storage = s3fs.S3FileSystem()
storage.pipe_file("calm/a/b", bytes(6_000_000))  # in parts
assert storage.ls("calm/a") == ["calm/a/b"] and len(storage.cat("calm/a/b")) == 6_000_000
storage.rm("calm/a", recursive=True)
for refused in (lambda: storage.pipe_file("mlflow/a", b"x"), lambda: storage.ls("mlflow"), lambda: storage.mkdir("b")):
    try:
        refused()
    except PermissionError:
        continue
    raise AssertionError
"""
"""What a run does with its keys, and may not do."""


@pytest.fixture(scope="module")
def secrets() -> dict[str, dict[str, str]]:
    return secrets_of_local()


@pytest.fixture(scope="module")
def endpoint(secrets: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SeaweedFS with its arguments in the manifest, but for folders and ports."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.fail("weed is not installed") if os.environ.get("CI") else pytest.skip("weed is not installed")
    folder = tmp_path_factory.mktemp("seaweedfs")
    (folder / "identities.json").write_text(secrets["seaweedfs-credentials"]["identities.json"])
    (folder / "data").mkdir()
    port = free_port()
    written = find(overlay("local"), "StatefulSet", "seaweedfs")["spec"]["template"]["spec"]["containers"][0]
    places = {"/data": str(folder / "data"), "/etc/seaweedfs": str(folder), "s3.port=8333": f"s3.port={port}"}
    arguments = list(written["args"])
    for place, here in places.items():
        arguments = [each.replace(place, here) for each in arguments]
    others = [f"-{name}.port={free_port()}" for name in ("master", "volume", "filer")]
    others += [f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")]
    others += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen([program, *arguments, *others], stdout=log, stderr=log) as server,
    ):
        try:
            path = written["startupProbe"]["httpGet"]["path"]
            _wait_for(f"http://127.0.0.1:{port}{path}", server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60  # it takes some 4
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(URLError, OSError), urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    pytest.fail(log.read_text()[-2000:])


def test_buckets_are_made_and_a_run_keeps_to_its_own(
    endpoint: str, secrets: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    job = find(overlay("local"), "Job", "buckets")["spec"]["template"]["spec"]["containers"][0]
    assert job["command"][0] == "python3"
    for _ in range(2):  # applied again
        _run([*job["command"][1:], *job["args"]], endpoint, secrets["seaweedfs-credentials"], tmp_path)
    _run(["-c", CLIENT], endpoint, secrets["calm-credentials"], tmp_path)


def _run(arguments: list[str], endpoint: str, keys: dict[str, str], folder: Path) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    environment = os.environ | {name: keys[name] for name in names} | {"AWS_ENDPOINT_URL": endpoint}
    environment["AWS_DEFAULT_REGION"] = "us-east-1"
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_passwords_are_new_each_time_and_agree() -> None:
    first, second = secrets_of_local(), secrets_of_local()
    assert first.keys() == second.keys()
    password = first["postgres-credentials"]["POSTGRES_PASSWORD"]
    assert len(password) == 48 and password != second["postgres-credentials"]["POSTGRES_PASSWORD"]
    assert f":{password}@postgres:5432/" in first["mlflow-credentials"]["MLFLOW_BACKEND_STORE_URI"]


def test_kubeflows_launcher_is_led_to_the_same_storage_with_the_keys_of_runs() -> None:
    patch = yaml.safe_load((K8S / "overlays" / "local" / "kfp-launcher.yaml").read_text())
    told = yaml.safe_load(patch["data"]["providers"])["s3"]["default"]
    objects = overlay("local")
    service = find(objects, "Service", "seaweedfs")
    host, port = service["metadata"], service["spec"]["ports"][0]["port"]
    assert told["endpoint"] == f"{host['name']}.{host['namespace']}:{port}"
    assert told["region"] == find(objects, "ConfigMap", "calm-environment")["data"]["AWS_REGION"]
    reference = told["credentials"]["secretRef"]
    assert {reference["accessKeyKey"], reference["secretKeyKey"]} == secrets_of_local()[reference["secretName"]].keys()
