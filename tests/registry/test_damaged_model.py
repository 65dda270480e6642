"""A model with damaged files is taken by nothing: not scored, not registered, not written with."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calm_core.config import EvaluationConfig, RegistryConfig
from calm_core.errors import ArtifactError
from calm_core.evaluation.stage import evaluate
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model

QUICK = EvaluationConfig(
    samples=2, max_sequences=4, batch_size=4, bootstrap_resamples=100, prompt_tokens=4, temperature_samples=4
)


@pytest.fixture(scope="module")
def scored(dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder, a CALM model and its evaluation."""
    folder = tmp_path_factory.mktemp("scored")
    for name, uri in zip(("autoencoder", "calm"), model_uris, strict=True):
        shutil.copytree(uri, folder / name)
    evaluation = str(folder / "evaluation")
    evaluate(QUICK, dataset_uri, str(folder / "calm"), evaluation, seed=0, autoencoder_uri=str(folder / "autoencoder"))
    return folder


@pytest.fixture(params=["flipped", "cut", "gone"])
def damage(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        match request.param:
            case "flipped":
                file.write_bytes(data)
            case "cut":
                file.write_bytes(file.read_bytes()[:-1])
            case "gone":
                file.unlink()

    return damage


def scores(folder: Path, dataset_uri: str) -> Any:
    autoencoder = str(folder / "autoencoder")
    return evaluate(QUICK, dataset_uri, f"{folder}/calm", f"{folder}/again", seed=0, autoencoder_uri=autoencoder)


def texts(folder: Path, dataset_uri: str) -> Any:
    return load_generator(f"{folder}/calm", f"{folder}/autoencoder")


def version(folder: Path, dataset_uri: str) -> Any:
    return register_model(
        RegistryConfig(),
        f"{folder}/calm",
        f"{folder}/evaluation",
        f"{folder}/registration",
        autoencoder_uri=f"{folder}/autoencoder",
    )


@pytest.mark.parametrize("use", [scores, texts, version])
@pytest.mark.parametrize("file", ["calm/weights.safetensors", "calm/tokenizer.json", "autoencoder/weights.safetensors"])
def test_a_damaged_file_of_a_model_is_named(
    use: Callable[[Path, str], Any],
    file: str,
    damage: Callable[[Path], None],
    scored: Path,
    dataset_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{scored}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # where MLflow puts files
    if use is not version:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    folder = shutil.copytree(scored, tmp_path / "scored")
    damage(folder / file)
    with pytest.raises(ArtifactError, match=rf"{file}: file is (damaged|missing)") as caught:
        use(folder, dataset_uri)
    assert "\n" not in str(caught.value)


def test_what_is_registered_already_is_not_answered_for_a_damaged_model(
    scored: Path, dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version itself is whole, but it is not what was named."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{scored}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(scored, tmp_path / "scored")
    assert version(folder, dataset_uri).facts.version == "1"
    for file in ("calm/weights.safetensors", "evaluation/report.html", "autoencoder/weights.safetensors"):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=rf"{file}: file is damaged"):
            version(folder, dataset_uri)
        (folder / file).write_bytes(whole)
    assert version(folder, dataset_uri).facts.version == "1"
