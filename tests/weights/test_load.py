"""Models from artifacts that come from outside: settings, facts and weights agree, or one line says what does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from calm_core.config import AUTOENCODERS, CalmConfig
from calm_core.errors import ArtifactError, CalmError
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts
from calm_core.weights.huggingface.exporting import export_checkpoint
from calm_core.weights.lineage import autoencoder_of
from calm_core.weights.load import load_autoencoder, load_calm, load_tokenizer

VOCABULARY = {"vocab_size": 300, "pad_id": 0, "eos_id": 1}
AUTOENCODER: dict[str, Any] = {"model": {"chunk_size": 4, "latent_size": 6, "hidden_size": 8, "intermediate_size": 12}}
CALM: dict[str, Any] = {
    "model": {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"head": {"num_layers": 1, "noise_size": 4}}
}

Change = Callable[[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]], object]


def unchanged(*parts: Any) -> None:
    pass


def write(
    folder: Path, kind: type[ModelFacts], config: dict[str, Any], model: torch.nn.Module, change: Change, **own: Any
) -> str:
    """A model's artifact; `change` edits its settings, facts and weights before all of them are written."""
    parents = own.pop("parents", {})
    facts = VOCABULARY | {"parameters": sum(p.numel() for p in model.parameters())} | own
    config, weights = json.loads(json.dumps(config)), {k: v.clone() for k, v in model.state_dict().items()}
    change(config, facts, weights)
    with ArtifactWriter(str(folder), kind, config | {"seed": 0}, parents) as writer:
        writer.write("weights.safetensors", safetensors.torch.save(weights))
        writer.write("tokenizer.json", b"{}")
        writer.facts = kind.model_validate(facts)
    return str(folder)


def autoencoder(folder: Path, change: Change = unchanged, kind: str = "mlp") -> Artifact[AutoencoderFacts]:
    config = {"model": AUTOENCODER["model"] | {"kind": kind}}
    return Artifact(write(folder, AutoencoderFacts, config, new_autoencoder(kind), change), AutoencoderFacts)


def new_autoencoder(kind: str) -> Autoencoder:
    torch.manual_seed(0)
    return make_autoencoder(AUTOENCODERS.parse(AUTOENCODER["model"] | {"kind": kind}), 300)


def calm(folder: Path, change: Change = unchanged) -> Artifact[CalmFacts]:
    trained_on = autoencoder(folder / "autoencoder")
    model = Calm(CalmConfig.model_validate(CALM).model, 300, 4, 6)
    own = {"chunk_size": 4, "latent_size": 6, "autoencoder_uri": trained_on.uri}
    parents = {"autoencoder": trained_on.digest}
    return Artifact(write(folder / "calm", CalmFacts, CALM, model, change, **own, parents=parents), CalmFacts)


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
def test_weights_come_back(tmp_path: Path, kind: str) -> None:
    expected = new_autoencoder(kind).state_dict()
    found = load_autoencoder(autoencoder(tmp_path, kind=kind)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_decoder_that_reads_is_not_exported(tmp_path: Path) -> None:
    """The public code would decode without reading."""
    artifact = autoencoder(tmp_path / "autoencoder", kind="reading")
    with pytest.raises(CalmError, match="the public format knows mlp autoencoders only, this is reading"):
        export_checkpoint(artifact.uri, str(tmp_path / "public"))
    assert not (tmp_path / "public").exists()


def sized(**sizes: Any) -> Change:
    return lambda config, facts, weights: config["model"].update(sizes)


def told(**values: Any) -> Change:
    return lambda config, facts, weights: facts.update(values)


EMBEDDING = "encoder.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sized(hidden_size=10**9), "embed_tokens.weight is not as the settings say|those of no model|not understood"),
        (sized(hidden_size=10**18), "those of no model|not understood"),
        (sized(num_encoder_layers=10**7), "tensors for 10000000 layers|not understood"),
        (sized(num_decoder_layers=3), r"decoder\.decoder_layers\.2\.\S+ is not as the settings say"),
        (sized(intermediate_size=13), r"mlp\.\S+ is not as the settings say"),
        (sized(kind="unheard"), "settings are not understood"),
        (sized(rms_norm_eps="x" * 9999), "settings are not understood"),
        (lambda config, facts, weights: config.pop("model"), "is not as the settings say"),
        (lambda config, facts, weights: config.update(model=[1]), "settings are not understood"),
        (told(vocab_size=301), r"embed_tokens\.weight is not as the settings say"),
        (told(parameters=7), "parameters, not 7"),
        (lambda config, facts, weights: weights.pop(EMBEDDING), r"embed_tokens\.weight is not as the settings say"),
        (lambda config, facts, weights: weights.update(more=torch.ones(1)), "more is not as the settings say"),
        (lambda config, facts, weights: weights[EMBEDDING].fill_(float("nan")), "something else than finite numbers"),
        (lambda config, facts, weights: weights[EMBEDDING][7].fill_(-torch.inf), "something else than finite numbers"),
        (
            lambda config, facts, weights: weights.update({EMBEDDING: weights[EMBEDDING].long()}),
            "something else than finite numbers",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_memory_is_taken(change: Change, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=reason) as caught:
        load_autoencoder(autoencoder(tmp_path, change))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("values", [{"chunk_size": 8}, {"latent_size": 5}, {"vocab_size": 299}])
def test_a_calm_model_has_the_chunks_of_its_autoencoder(values: dict[str, int], tmp_path: Path) -> None:
    artifact = calm(tmp_path, told(**values))
    with pytest.raises(ArtifactError, match="has other chunks, latents or tokens than its autoencoder"):
        load_calm(artifact, autoencoder_of(artifact))


def test_the_weights_of_a_calm_model_fit_its_head(tmp_path: Path) -> None:
    good = calm(tmp_path / "good")
    assert load_calm(good, autoencoder_of(good)).config.head.num_layers == 1
    bad = calm(tmp_path / "bad", lambda config, facts, weights: config["model"]["head"].update(noise_size=5))
    with pytest.raises(ArtifactError, match=r"mlp_generator\.noise_embd\.weight is not as the settings say"):
        load_calm(bad, autoencoder_of(bad))


def test_files_that_are_something_else_are_one_line(tmp_path: Path) -> None:
    """The manifest vouches for them: somebody has made it so."""
    with ArtifactWriter(str(tmp_path), AutoencoderFacts, AUTOENCODER, {}) as writer:
        writer.write("weights.safetensors", b"\xff" * 7 + b"\x7f" + b"{}")
        writer.write("tokenizer.json", b"[]")
        writer.facts = AutoencoderFacts(parameters=7, **VOCABULARY)
    artifact = Artifact(str(tmp_path), AutoencoderFacts)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: file is damaged \(no safetensors: "):
        load_autoencoder(artifact)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: file is damaged \(no tokenizer: "):
        load_tokenizer(artifact)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(dataset_uri: str, tmp_path: Path) -> None:
    tokens = Artifact.of_any_kind(dataset_uri)
    with ArtifactWriter(str(tmp_path), AutoencoderFacts, AUTOENCODER, {}) as writer:
        writer.copy(tokens, {"tokenizer.json": "tokenizer.json"})
        writer.facts = AutoencoderFacts(parameters=7, **VOCABULARY | {"vocab_size": 299})
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: file is damaged \(300 tokens, not 299\)"):
        load_tokenizer(Artifact(str(tmp_path), AutoencoderFacts))
