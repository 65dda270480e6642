"""A training that starts from the weights of another model."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import pytest
import safetensors.torch
import torch

from calm_core.config import AutoencoderConfig, CalmConfig, DataConfig, RegistryConfig, TokenizerConfig, TrainingConfig
from calm_core.data.stage import prepare_data
from calm_core.errors import CalmError, ConfigError
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts, TransformerFacts
from calm_core.training.job import Job, TrainingSpec, check_inputs
from calm_core.training.stage import train
from calm_core.weights.initial import initial_digest
from tests.conftest import sentences
from tests.mlflow_tables import new_store

STANDING_STILL = {"learning_rate": 1e-12, "weight_decay": 0.0, "steps": 1, "warmup_steps": 0}
"""One step that changes no weight by more than rounding."""
KINDS = {"autoencoder": AutoencoderFacts, "calm": CalmFacts, "transformer": TransformerFacts}


@pytest.fixture
def models(model_uris: tuple[str, str], transformer_uri: str) -> dict[str, str]:
    """Trained models by kind."""
    return {"autoencoder": model_uris[0], "calm": model_uris[1], "transformer": transformer_uri}


def config_of(uri: str, **changed: Any) -> TrainingConfig:
    """The settings of a trained model, with changes."""
    artifact = Artifact.of_any_kind(uri)
    settings = {name: value for name, value in artifact.manifest.config.items() if name != "seed"}
    return TrainingConfig.of_kind[artifact.manifest.kind].model_validate(settings | changed)


def weights(uri: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(Artifact.of_any_kind(uri).read("weights.safetensors"))


def last_record(artifact: Artifact[ModelFacts]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(artifact.read("curves.jsonl").splitlines()[-1])
    return record


@pytest.mark.parametrize(("kind", "zero_stage"), [("autoencoder", 1), ("calm", 1), ("transformer", 3)])
def test_the_first_step_computes_with_the_given_weights(
    kind: str, zero_stage: int, models: dict[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    """On two ranks, which compute the same whether they share the weights or have each all of them."""
    given = Artifact(models[kind], KINDS[kind])
    trained = train(
        config_of(
            models[kind],
            initial_weights=models[kind],
            processes=2,
            micro_batch_size=2,
            precision="fp32",
            zero_stage=zero_stage,
            **STANDING_STILL,
        ),
        dataset_uri,
        str(tmp_path / "out"),
        seed=0,
        checkpoint_root=str(tmp_path / "checkpoints"),
        autoencoder_uri=models["autoencoder"] if kind == "calm" else "",
    )
    before, after = weights(models[kind]), weights(trained.uri)
    assert before.keys() == after.keys()
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-8
    assert trained.facts.validation == pytest.approx(given.facts.validation, rel=1e-4)
    assert trained.manifest.parents["initial_weights"] == given.digest
    assert trained.manifest.config["initial_weights"] == models[kind]


def test_a_registered_version_is_taken_by_its_kind(
    models: dict[str, str], evaluation_uri: str, dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow's files go there
    store = new_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    register_model(RegistryConfig(), models["calm"], evaluation_uri, str(tmp_path / "registration"))
    trained = train(
        config_of(models["calm"], initial_weights="models:/calm/1", **STANDING_STILL),
        dataset_uri,
        str(tmp_path / "out"),
        seed=0,
        checkpoint_root=str(tmp_path / "checkpoints"),
        autoencoder_uri=models["autoencoder"],
    )
    assert trained.manifest.parents["initial_weights"] == Artifact(models["calm"], CalmFacts).digest
    name = min(weights(trained.uri))
    assert torch.allclose(weights(trained.uri)[name], weights(models["calm"])[name], atol=1e-8)
    spec = spec_of(config_of(models["autoencoder"], initial_weights="models:/calm/1"), dataset_uri)
    assert check_inputs(spec).parents["initial_weights"] == Artifact(models["autoencoder"], AutoencoderFacts).digest
    transformer = config_of(models["transformer"], initial_weights="models:/calm/1")
    with pytest.raises(ConfigError, match="models:/calm/1 holds a CALM model and its autoencoder; name a transformer"):
        check_inputs(spec_of(transformer, dataset_uri))


def spec_of(config: TrainingConfig, dataset_uri: str, autoencoder_uri: str = "") -> TrainingSpec:
    return TrainingSpec(
        kind=config.kind, config=config, dataset_uri=dataset_uri, autoencoder_uri=autoencoder_uri, output_uri="", seed=0
    )


def test_what_lies_there_tells_trainings_apart_and_not_where(
    models: dict[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    import shutil

    copy = str(shutil.copytree(models["autoencoder"], tmp_path / "copy"))
    other = train(
        config_of(models["autoencoder"]), dataset_uri, str(tmp_path / "other"), seed=1, checkpoint_root=str(tmp_path)
    ).uri
    places = {}
    for uri in ("", models["autoencoder"], copy, other):
        spec = check_inputs(spec_of(config_of(models["autoencoder"], initial_weights=uri), dataset_uri))
        places[uri] = Job.of(spec, "jobs").uri
    assert places[copy] == places[models["autoencoder"]]
    assert len({*places.values()}) == 3


def test_weights_that_changed_since_the_plan_are_refused(
    models: dict[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    """The run's cache would take what comes of them for what comes of the others."""
    config = config_of(models["autoencoder"], initial_weights=models["autoencoder"])
    assert initial_digest(config) == Artifact(models["autoencoder"], AutoencoderFacts).digest
    with pytest.raises(CalmError, match="has changed since the run was planned; run again") as caught:
        train(
            config, dataset_uri, str(tmp_path / "out"), seed=0, checkpoint_root=str(tmp_path), initial_digest="0" * 64
        )
    assert caught.value.can_pass


def test_an_output_of_other_initial_weights_is_refused_before_training(
    models: dict[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    config, output = config_of(models["autoencoder"], initial_weights=models["autoencoder"]), str(tmp_path / "out")
    train(config, dataset_uri, output, seed=0, checkpoint_root=str(tmp_path / "checkpoints"))
    with pytest.raises(CalmError, match="holds another autoencoder, of other settings or inputs"):
        train(
            config_of(models["autoencoder"]),
            dataset_uri,
            output,
            seed=0,
            checkpoint_root=str(tmp_path / "checkpoints"),
        )
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


def test_what_does_not_fit_is_one_line(models: dict[str, str], dataset_uri: str, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(40)))
    data = DataConfig(
        sources=(str(source),), sequence_length=32, rows_per_group=16, rows_per_shard=64, validation_fraction=0.2
    )
    other_text = prepare_data(data, TokenizerConfig(vocab_size=290), str(tmp_path / "dataset")).uri
    autoencoder, calm = models["autoencoder"], models["calm"]
    narrower = AutoencoderConfig.model_validate(
        config_of(autoencoder).model_dump() | {"model": {"chunk_size": 4, "latent_size": 4, "hidden_size": 16}}
    )
    deeper = config_of(calm).model_dump()
    deeper["model"]["num_hidden_layers"] = 2
    for config, text, expected in (
        (config_of(autoencoder, initial_weights=calm), dataset_uri, "is a calm artifact, an autoencoder artifact was"),
        (config_of(autoencoder, initial_weights=str(tmp_path / "nothing")), dataset_uri, "no such artifact|nothing"),
        (
            narrower.model_copy(update={"initial_weights": autoencoder}),
            dataset_uri,
            r"has another shape \(hidden_size 32 there, 16 here, .*latent_size 8 there, 4 here\); set it so, or leave",
        ),
        (
            CalmConfig.model_validate(deeper | {"initial_weights": calm}),
            dataset_uri,
            r"has another shape \(num_hidden_layers 1 there, 2 here\); set it so",
        ),
        (config_of(autoencoder, initial_weights=autoencoder), other_text, "has another tokenizer than .*/dataset; "),
    ):
        with pytest.raises(ConfigError, match=expected) as caught:
            train(
                config,
                text,
                str(tmp_path / "out"),
                seed=0,
                checkpoint_root=str(tmp_path / "checkpoints"),
                autoencoder_uri=autoencoder if config.kind == "calm" else "",
            )
        assert re.match(rf"{config.kind}\.initial_weights: ", str(caught.value))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()
