"""Profiles, and the arguments that a configuration becomes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calm_core.config import Config, EnergyHeadConfig, MixtureHeadConfig, resolve_config
from calm_core.errors import ConfigError
from pipelines import profiles
from pipelines.arguments import arguments_of


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_a_valid_configuration(name: str) -> None:
    resolve_config(profiles.load(name))


@pytest.mark.parametrize("name", profiles.names())
def test_no_profile_lets_a_model_on_a_poor_autoencoder_become_champion(name: str) -> None:
    """As one that has hardly been trained; half a percent below what `tiny` reaches may."""
    assert 0.9 < resolve_config(profiles.load(name)).registry.min_autoencoder_accuracy < 0.9938


def test_an_unknown_profile_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--profile huge: no such profile; there are .*tiny"):
        profiles.load("huge")


@pytest.mark.parametrize("text", ["- 1\n", "data: [\n"])
def test_a_file_that_is_no_profile_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        profiles.load(str(path))


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_profile_is_laid_over_its_base_and_that_over_its_own(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, lower="seed: 1\ncalm: {steps: 5, model: {hidden_size: 8, num_hidden_layers: 2}}")
    write(
        tmp_path / "deep",
        middle="base: ../lower.yaml\ncalm: {model: {hidden_size: 16}}",
        upper="base: middle.yaml\nseed: 3",
    )
    assert profiles.load(str(tmp_path / "deep/upper.yaml")) == {
        "seed": 3,
        "calm": {"steps": 5, "model": {"hidden_size": 16, "num_hidden_layers": 2}},
    }


def test_a_base_may_be_a_profile_of_the_library(tmp_path: Path) -> None:
    write(tmp_path, mine="base: tiny\ncalm: {steps: 7}")
    tiny = profiles.load("tiny")
    assert profiles.load(str(tmp_path / "mine.yaml")) == tiny | {"calm": tiny["calm"] | {"steps": 7}}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("huge", r"mine\.yaml: base huge: no such profile; there are .*tiny"),
        ("other.yaml", r"mine\.yaml: base other\.yaml: no such file"),
        ("mine.yaml", r"mine\.yaml: base mine\.yaml: goes in a circle"),
        ("circle.yaml", r"circle\.yaml: base \./mine\.yaml: goes in a circle"),
        ("[tiny]", r"mine\.yaml: base: expected the name of a profile, or the path"),
    ],
)
def test_a_base_that_cannot_be_is_named_with_the_file_that_asks_for_it(base: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, mine=f"base: {base}", circle="base: ./mine.yaml")
    with pytest.raises(ConfigError, match=message) as error:
        profiles.load(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(error.value)


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


def test_another_kind_in_a_profile_starts_from_its_own_defaults(tmp_path: Path) -> None:
    """And keeps what its base says of its own kind."""
    (tmp_path / "mine.yaml").write_text("base: tiny\ncalm: {model: {head: {kind: energy, noise_size: 8}}}\n")
    config = resolve_config(profiles.load(str(tmp_path / "mine.yaml")))
    assert config.calm.model.head == EnergyHeadConfig(noise_size=8)
    (tmp_path / "same.yaml").write_text("base: tiny\ncalm: {model: {head: {target_samples: 6}}}\n")
    head = resolve_config(profiles.load(str(tmp_path / "same.yaml"))).calm.model.head
    assert head == MixtureHeadConfig(target_samples=6)
