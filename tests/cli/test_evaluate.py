"""`calm evaluate` of what a registry holds, and of what was interrupted."""

import json
from pathlib import Path

import pytest

from calm_core.config import RegistryConfig
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts
from pipelines.local.home import Home
from pipelines.local.tracking import use_tracking
from tests.cli.test_main import call

SMALL = [
    item
    for setting in ("samples=2", "max_sequences=16", "prompts=['the river']", "prompt_tokens=4", "temperatures=[]")
    for item in ("--set", f"evaluation.{setting}")
]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_registered_model_is_the_one_that_was_trained(
    dataset_uri: str, model_uris: tuple[str, str], evaluation_uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    use_tracking(Home.find(), "calm")
    register_model(RegistryConfig(), model_uris[1], evaluation_uri, "registration")
    assert call("evaluate", model_uris[1], "--dataset", dataset_uri, "--output", "trained", *SMALL) == 0
    capfd.readouterr()
    registered = "models:/calm@champion"
    assert call("evaluate", registered, "--dataset", dataset_uri, "--output", "registered", *SMALL) == 0
    assert "next: calm compare registered EVALUATION" in capfd.readouterr().out
    first, second = (Artifact(uri, EvaluationFacts) for uri in ("trained", "registered"))
    assert first.digest == second.digest

    arguments = ("--dataset", dataset_uri, "--output", "out")
    assert call("evaluate", registered, "--autoencoder", model_uris[0], *arguments) == 2
    assert call("evaluate", "models:/calm@challanger", *arguments) == 1
    refused = capfd.readouterr().err
    assert "--autoencoder: a registered model brings its autoencoder" in refused
    assert "calm has no alias challanger" in refused and "Traceback" not in refused
    # What is wrong with the rest is no damage of the registered files.
    assert call("evaluate", registered, "--dataset", dataset_uri, "--output", "trained") == 1
    assert "trained: holds another evaluation" in capfd.readouterr().err


def test_what_is_unfinished_lies_where_checkpoints_are(
    dataset_uri: str, transformer_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folder is in use when it is told so, and gone in the end."""
    arguments = [transformer_uri, "--dataset", dataset_uri, *SMALL, "--json"]
    assert call("evaluate", *arguments, "--output", "one", "--checkpoints", "kept") == 0
    assert call("evaluate", *arguments, "--output", "kept/two", "--checkpoints", "kept") == 0
    digests = [json.loads(text)["digest"] for text in capfd.readouterr().out.replace("}\n{", "}\0{").split("\0")]
    assert digests[0] == digests[1]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["two"]
