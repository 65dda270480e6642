"""What models have cost, from manifests, against the estimate of the same settings."""

from pathlib import Path
from typing import Any

import pytest

from calm_core.config import Config, parse_section
from calm_core.errors import ArtifactError
from calm_core.evaluation.costs import costs, inference_flops_per_token
from calm_core.scaling.cost import estimate
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts, TransformerFacts

V, LENGTH = 300, 64
SHAPE = {"hidden_size": 32, "intermediate_size": 48}
LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 2, **SHAPE}
CONFIG = parse_section(
    Config,
    {
        "data": {"sequence_length": LENGTH},
        "tokenizer": {"vocab_size": V},
        "autoencoder": {"steps": 7, "warmup_steps": 1, "global_batch_size": 32, "model": {"latent_size": 8, **SHAPE}},
        "calm": {"steps": 11, "warmup_steps": 1, "model": {"head": {"num_layers": 2}, **LAYERS}},
        "transformer": {"steps": 13, "warmup_steps": 1, "model": LAYERS},
    },
)
ESTIMATE = estimate(CONFIG, gpus=1)
COUNTED = {"seconds": 50.0, "accelerator_seconds": 100.0, "energy_joules": 1234.5}


def artifact(folder: Path, kind: type[ModelFacts], tokens: int | None, **facts: Any) -> Artifact[Any]:
    """A trained model without its weights."""
    settings = getattr(CONFIG, kind.kind).model_dump(mode="json") | {"seed": 0}
    own = {"chunk_size": 4, "latent_size": 8} if kind is CalmFacts else {}
    with ArtifactWriter(str(folder / kind.kind), kind, settings, {}) as writer:
        writer.facts = kind(
            vocab_size=V, pad_id=0, eos_id=1, parameters=0, trained_tokens=tokens, **{**own, **COUNTED, **facts}
        )
    return Artifact(str(folder / kind.kind), kind)


def of_estimate(kind: str) -> tuple[int, float, float]:
    cost = ESTIMATE[{"calm": "CALM", "transformer": "Transformer"}.get(kind, kind)]
    return cost.training_tokens, cost.training_flops, cost.inference_flops_per_token


def test_a_calm_model_costs_its_autoencoder_too(tmp_path: Path) -> None:
    models = [artifact(tmp_path, kind, of_estimate(kind.kind)[0]) for kind in (AutoencoderFacts, CalmFacts)]
    found = costs(models[1], models[0])
    assert list(found) == ["autoencoder", "calm"]
    for kind, cost in found.items():
        assert (cost.tokens, cost.flops) == of_estimate(kind)[:2]
        assert cost.model_dump(include={*COUNTED}) == COUNTED
    assert inference_flops_per_token(models[1], models[0], LENGTH) == of_estimate("calm")[2]
    assert inference_flops_per_token(models[0], None, LENGTH) == of_estimate("autoencoder")[2]


def test_a_model_over_tokens_stands_alone(tmp_path: Path) -> None:
    model = artifact(tmp_path, TransformerFacts, of_estimate("transformer")[0], energy_joules=None)
    (cost,) = costs(model).values()
    assert (cost.tokens, cost.flops, cost.energy_joules) == (*of_estimate("transformer")[:2], None)
    assert inference_flops_per_token(model, None, LENGTH) == of_estimate("transformer")[2]


def test_attention_over_a_longer_context_costs_more(tmp_path: Path) -> None:
    """4 x width x layers for each position more, of which a CALM model has one in four tokens, for four tokens."""
    models = [artifact(tmp_path, kind, None) for kind in (AutoencoderFacts, CalmFacts, TransformerFacts)]
    more = []
    for model, autoencoder in ((models[1], models[0]), (models[2], None)):
        short, long = (inference_flops_per_token(model, autoencoder, length) for length in (LENGTH, 2 * LENGTH))
        more.append(long - short)
    assert more == [4 * 32 * 3 * LENGTH / 4 / 4, 4 * 32 * 3 * LENGTH]


def test_of_a_model_that_was_trained_elsewhere_nothing_is_known(tmp_path: Path) -> None:
    autoencoder = artifact(tmp_path, AutoencoderFacts, None)
    assert list(costs(artifact(tmp_path, CalmFacts, of_estimate("calm")[0]), autoencoder)) == ["calm"]
    assert costs(artifact(tmp_path, TransformerFacts, None)) == {}


def test_tokens_that_are_not_those_of_the_settings_are_refused(tmp_path: Path) -> None:
    model = artifact(tmp_path, TransformerFacts, of_estimate("transformer")[0] + 1)
    with pytest.raises(ArtifactError, match="its 13,313 trained tokens are not those of 13 steps of 16 sequences"):
        costs(model)
