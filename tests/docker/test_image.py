"""What the image is: it runs for any user, holds what it has to, and nothing that it must not."""

import json
import re
import subprocess
import sys
from typing import Any

import docker

from calm_core.store.code_version import code_version

PIP = re.compile(r"index.url|find.links|/simple|pip\.conf", re.IGNORECASE)
SECRET = re.compile(r"(secret|token|password|key_id)\S*=", re.IGNORECASE)


def test_doctor_has_no_complaint_for_any_user(engine: docker.DockerClient, image: str, pod: dict[str, Any]) -> None:
    said = engine.containers.run(image, ["calm", "doctor"], remove=True, network_disabled=True, **pod).decode()
    assert [line for line in said.splitlines() if not line.startswith(("ok ", "- "))] == []
    assert re.search("^ok +home +/tmp/home can be written", said, re.MULTILINE)
    assert engine.images.get(image).attrs["Config"]["Healthcheck"]["Test"] == ["CMD", "calm", "doctor"]


def test_it_says_what_it_is(engine: docker.DockerClient, image: str, pod: dict[str, Any]) -> None:
    command = ["sh", "-c", "calm --version && calm --help && calm run --help"]
    said = engine.containers.run(image, command, remove=True, network_disabled=True, **pod).decode()
    assert f"code {code_version()}" in said.splitlines()[0], "the image was built of other code: build it again"
    assert "Usage: calm [OPTIONS]" in said and "Usage: calm run" in said
    labels = engine.images.get(image).labels
    assert labels["org.opencontainers.image.title"] == "calm-pipelines"
    assert labels["calm-pipelines.accelerator"] == "cpu"


def test_it_has_no_compiler_and_no_file_that_its_user_may_write(
    engine: docker.DockerClient, image: str, pod: dict[str, Any]
) -> None:
    compilers = "for each in gcc cc g++ c++ clang ld as make nvcc; do command -v $each; done"
    files = "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o -type f -writable -print"
    command = ["sh", "-c", f"{compilers}; {files}; id -u"]
    said = engine.containers.run(image, command, remove=True, **(pod | {"read_only": False})).decode()
    assert said.split() == [pod["user"].removesuffix(":0")]


def test_its_own_user_has_no_rights(engine: docker.DockerClient, image: str) -> None:
    assert int(engine.containers.run(image, ["id", "-u"], remove=True, network_disabled=True)) > 0
    assert int(engine.images.get(image).attrs["Config"]["User"]) > 0  # Kubernetes checks runAsNonRoot by the number


def test_nothing_of_the_machine_that_built_it_is_in_it(engine: docker.DockerClient, image: str) -> None:
    built = engine.images.get(image)
    told = json.dumps([each["CreatedBy"] for each in built.history()]) + json.dumps(built.attrs)
    assert PIP.findall(told) + SECRET.findall(told) == []
    look = "ls -A /etc/pip.conf /etc/xdg/pip /root/.config /root/.cache /build /library 2> /dev/null; pip config list"
    left = engine.containers.run(image, ["sh", "-c", look], remove=True, user="0:0", environment={"HOME": "/root"})
    assert left == b""
    settings = [sys.executable, "-m", "pip", "config", "list"]
    here = subprocess.run(settings, check=True, capture_output=True, text=True).stdout
    for address in re.findall(r"https?://[^\s']+", here):
        assert address not in told


def test_it_lists_what_is_in_it(engine: docker.DockerClient, image: str, pod: dict[str, Any]) -> None:
    command = ["sh", "-c", "pip list --format json; echo; cat /opt/calm/sbom.cdx.json"]
    said = engine.containers.run(image, command, remove=True, network_disabled=True, **pod).decode()
    installed, _, bill = said.partition("\n")
    told = json.loads(bill)
    assert told["bomFormat"] == "CycloneDX" and told["metadata"]["component"]["name"] == "calm-pipelines"
    listed = {(each["name"].lower(), each["version"]) for each in told["components"]}
    packages = {(each["name"].lower(), each["version"]) for each in json.loads(installed)}
    assert packages - listed == {("calm-pipelines", told["metadata"]["component"]["version"])}
