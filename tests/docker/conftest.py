"""The image, as `.ci/run` has built it; CALM_TEST_IMAGE names it."""

import os
import random
from collections.abc import Iterator
from typing import Any, NoReturn

import docker
import pytest

IMAGE_VARIABLE = "CALM_TEST_IMAGE"


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """A container engine; where none runs the tests are skipped, but never in CI."""
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except docker.errors.DockerException as error:
        _missing(f"no container engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient) -> str:
    """The name of the image; where there is none the tests are skipped, but never in CI."""
    name = os.environ.get(IMAGE_VARIABLE, "")
    if not name:
        _missing(f"{IMAGE_VARIABLE} names no image; `make image` builds one")
    try:
        engine.images.get(name)
    except docker.errors.ImageNotFound:
        _missing(f"{IMAGE_VARIABLE}: the engine has no image {name}; `make image` builds one")
    return name


@pytest.fixture(scope="session")
def pod() -> dict[str, Any]:
    """Arguments of `containers.run` for what strict clusters do to pods: a user that nobody knows, nothing to write."""
    return {
        "user": f"{random.randint(100_000, 2**31)}:0",
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }


def _missing(reason: str) -> NoReturn:
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
