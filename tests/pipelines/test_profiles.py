"""Profiles, and the arguments that a configuration becomes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calm_core.config import Config, resolve_config
from calm_core.errors import ConfigError
from pipelines import profiles
from pipelines.arguments import arguments_of


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_a_valid_configuration(name: str) -> None:
    resolve_config(profiles.load(name))


def test_an_unknown_profile_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--profile huge: no such profile; there are .*tiny"):
        profiles.load("huge")


@pytest.mark.parametrize("text", ["- 1\n", "data: [\n"])
def test_a_file_that_is_no_profile_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        profiles.load(str(path))


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    else:
        yield value


def test_arguments_hold_every_section_and_no_null() -> None:
    """Kubeflow refuses null as the value of a parameter."""
    arguments = arguments_of(Config(seed=3), "plans", "checkpoints")
    sections = {name for name, value in arguments.items() if isinstance(value, dict)}
    assert sections == {"data", "tokenizer", "autoencoder", "calm", "transformer", "evaluation", "registry"}
    assert arguments["seed"] == 3
    assert None not in list(leaves(arguments))
