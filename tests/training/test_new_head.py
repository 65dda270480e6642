"""Adding a head is one file (toy_head.py) and one line (`named`): all else follows from its kind."""

from pathlib import Path

import pytest

from calm_core.config import HEADS, CalmConfig, EvaluationConfig, parse_section, resolve_config
from calm_core.errors import CalmError, ConfigError
from calm_core.evaluation.stage import evaluate
from calm_core.registry.load import load_generator
from calm_core.scaling.cost import estimate
from calm_core.training import launcher
from calm_core.training.stage import train
from calm_core.weights.huggingface import export_checkpoint


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS.classes, "gaussian", "tests.training.toy_head:GaussianHead")
    monkeypatch.setattr(launcher, "WORKER", "tests.training.toy_worker")  # the ranks need the line too


def test_its_settings_are_its_own_and_those_of_other_heads_are_refused() -> None:
    config = resolve_config({}, ["calm.model.head=gaussian", "calm.model.head.smallest_std=0.1"])
    assert config.calm.model_dump()["model"]["head"] == {
        "kind": "gaussian",
        "num_layers": 4,
        "model_samples": 8,
        "smallest_std": 0.1,
    }
    with pytest.raises(ConfigError, match=r"calm\.model\.head\.noise_size: is a setting of another kind"):
        resolve_config({}, ["calm.model.head=gaussian", "calm.model.head.noise_size=8"])


def test_its_cost_is_counted() -> None:
    cost = estimate(resolve_config({}, ["calm.model.head=gaussian"]), gpus=1)["CALM"]
    hidden, latent = 1024, 128
    assert cost.parameters["gaussian head"] == (hidden + 1) * 2 * latent


def test_it_is_trained_scored_and_writes_and_is_no_public_checkpoint(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    training = {"steps": 4, "warmup_steps": 1, "global_batch_size": 4, "micro_batch_size": 4, "validation_interval": 2}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = parse_section(CalmConfig, training | {"model": shape | {"head": "gaussian"}})
    calm = train(
        config,
        dataset_uri,
        str(tmp_path / "calm"),
        seed=0,
        checkpoint_root=str(tmp_path / "checkpoints"),
        autoencoder_uri=model_uris[0],
    )
    assert set(calm.facts.validation) == {"gaussian_loss"}
    protocol = EvaluationConfig(samples=2, max_sequences=2, prompts=("the river",), prompt_tokens=4)
    scores = evaluate(protocol, dataset_uri, calm.uri, str(tmp_path / "scores"), seed=0)
    assert scores.facts.model == "CALM, K = 4, gaussian head"
    first, again = (load_generator(calm.uri).generate(["the river"], max_new_tokens=4, seed=1) for _ in range(2))
    assert first == again
    with pytest.raises(CalmError, match="the public format knows the energy head only, this is gaussian"):
        export_checkpoint(calm.uri, str(tmp_path / "public"))
