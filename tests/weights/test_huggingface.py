"""Public checkpoints: folders made here from the published key names, read, used, and written back."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from calm_core.config import DataConfig, EvaluationConfig, RegistryConfig, TokenizerConfig
from calm_core.data.stage import prepare_data
from calm_core.errors import CalmError
from calm_core.evaluation.stage import evaluate
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts
from calm_core.weights.huggingface import export_checkpoint, import_checkpoint
from tests.conftest import sentences
from tests.weights.public_folders import (
    AUTOENCODER_CONFIG,
    CALM_CONFIG,
    HEAD_LAYERS,
    NOISE,
    D,
    V,
    autoencoder_shapes,
    calm_shapes,
    random_weights,
    write_folder,
    write_tokenizer,
)

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`autoencoder`, `calm` and `tokenizer`, as one downloads them."""
    inner = random_weights(autoencoder_shapes(), 1)
    write_folder(tmp_path / "autoencoder", AUTOENCODER_CONFIG, inner)
    outer = random_weights(calm_shapes(), 2) | {f"ae_model.{name}": value for name, value in inner.items()}
    write_folder(tmp_path / "calm", CALM_CONFIG, outer)
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def imported(folders: Path, **settings: str) -> dict[str, Artifact]:
    settings = {"tokenizer_folder": str(folders / "tokenizer")} | settings
    return import_checkpoint(str(folders / "calm"), str(folders / "out"), **settings)


def stored(artifact: Artifact) -> Weights:
    return safetensors.torch.load(artifact.read("weights.safetensors"))


def equal(first: Weights, second: Weights) -> bool:
    same = first.keys() == second.keys()
    return same and all(first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["no copy of the embedding", "a copy of the embedding"])
@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_a_round_trip_is_exact(folders: Path, layout: str, tied: bool, dtype: torch.dtype) -> None:
    inner = random_weights(autoencoder_shapes(), 1, dtype)
    if tied:
        inner["decoder.lm_head_weight"] = inner["encoder.embed_tokens.weight"].clone()
    outer = random_weights(calm_shapes(), 2, dtype) | {f"ae_model.{name}": value for name, value in inner.items()}
    for name, config, weights in (("autoencoder2", AUTOENCODER_CONFIG, inner), ("calm2", CALM_CONFIG, outer)):
        write_folder(folders / name, config, weights, layout)
    tokenizer = str(folders / "tokenizer")
    artifacts = import_checkpoint(
        str(folders / "calm2"),
        str(folders / "out"),
        autoencoder_folder=str(folders / "autoencoder2"),
        tokenizer_folder=tokenizer,
    )
    # The copy is always there, since the public loader needs it; and ae_path names what the folder holds.
    inner["decoder.lm_head_weight"] = inner["encoder.embed_tokens.weight"]
    outer["ae_model.decoder.lm_head_weight"] = inner["encoder.embed_tokens.weight"]
    back = export_checkpoint(artifacts["calm"].uri, str(folders / "back"), autoencoder_uri=artifacts["autoencoder"].uri)
    assert equal(safetensors.torch.load_file(back / "model.safetensors"), outer)
    assert json.loads((back / "config.json").read_text()) == CALM_CONFIG | {"ae_path": "autoencoder"}
    back_inner = export_checkpoint(artifacts["autoencoder"].uri, str(folders / "back-ae"))
    for folder in (back_inner, back / "autoencoder"):
        assert equal(safetensors.torch.load_file(folder / "model.safetensors"), inner)
        assert json.loads((folder / "config.json").read_text()) == AUTOENCODER_CONFIG
    for folder in (back, back_inner, back / "autoencoder"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (folders / "tokenizer" / name).read_bytes()


def test_the_settings_of_the_folder_reach_the_model(folders: Path) -> None:
    artifacts = imported(folders)
    model = artifacts["calm"].manifest.config["model"]
    assert (model["rms_norm_eps"], model["head"]["noise_size"], model["head"]["num_layers"]) == (
        1e-5,
        NOISE,
        HEAD_LAYERS,
    )
    facts = artifacts["calm"].facts
    assert (facts.eos_id, facts.pad_id) == (1, 1)  # no padding token: the end of a text fills up


def test_an_imported_model_is_prepared_for_scored_registered_and_writes(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = imported(folders)
    source = folders / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(60)))
    data = DataConfig(sources=(str(source),), sequence_length=32, validation_fraction=0.3)
    tokenizer = TokenizerConfig(source=str(folders / "tokenizer"), pad_token="<|eot_id|>")
    dataset = prepare_data(data, tokenizer, str(folders / "dataset"))
    assert dataset.facts.eos_id == 1
    config = EvaluationConfig(samples=2, max_sequences=2, prompts=("the river",), prompt_tokens=4)
    uris = artifacts["autoencoder"].uri, artifacts["calm"].uri
    score = evaluate(config, dataset.uri, uris[1], str(folders / "score"), seed=0, autoencoder_uri=uris[0])
    assert int(score.facts.protocol["vocab_size"]) <= V

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folders}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "imported")
    monkeypatch.chdir(folders)
    registration = register_model(RegistryConfig(), uris[1], score.uri, str(folders / "registration"))
    assert registration.facts.version == "1"
    texts = load_generator(uris[1]).generate(["the river"], max_new_tokens=5)
    assert isinstance(texts[0], str)


def test_a_model_of_ours_can_be_read_back(model_uris: tuple[str, str], tmp_path: Path) -> None:
    autoencoder, calm = model_uris
    folder = export_checkpoint(calm, str(tmp_path / "calm"), autoencoder_uri=autoencoder)
    inner = export_checkpoint(autoencoder, str(tmp_path / "autoencoder"))
    assert "ae_model.decoder.lm_head_weight" in safetensors.torch.load_file(folder / "model.safetensors")
    back = import_checkpoint(str(folder), str(tmp_path / "back"), autoencoder_folder=str(inner))
    assert equal(stored(back["calm"]), stored(Artifact(calm, CalmFacts)))
    assert equal(stored(back["autoencoder"]), stored(Artifact(autoencoder, AutoencoderFacts)))
    texts = [
        load_generator(uri).generate(["the river flows"], max_new_tokens=6, seed=4) for uri in (back["calm"].uri, calm)
    ]
    assert texts[0] == texts[1]


def test_keys_that_do_not_fit_are_listed(folders: Path) -> None:
    weights = random_weights(calm_shapes(), 2)
    del weights["embed_proj.0.bias"]
    weights |= {"transformer.extra.weight": torch.zeros(1), "transformer.norm.weight": torch.zeros(3)}
    write_folder(folders / "calm", CALM_CONFIG, weights)
    with pytest.raises(CalmError) as caught:
        imported(folders)
    text = str(caught.value)
    assert "missing: embed_proj.0.bias" in text
    assert "unexpected: transformer.extra.weight" in text
    assert "of another shape: transformer.norm.weight" in text
    assert "\n" not in text


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run by unpickling",)


def test_bad_folders_are_one_clear_line_each(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(pattern: str, folder: str = "calm", **settings: str) -> None:
        with pytest.raises(CalmError, match=pattern) as caught:
            settings = {"tokenizer_folder": str(folders / "tokenizer")} | settings
            import_checkpoint(str(folders / folder), str(folders / "out"), **settings)
        assert "\n" not in str(caught.value)

    refuse("holds no config.json", "nowhere")
    refuse("holds no tokenizer.json", tokenizer_folder=str(folders / "calm"))
    write_folder(folders / "calm", CALM_CONFIG | {"ae_path": "someone/on-a-hub"}, {})
    refuse("'someone/on-a-hub' is no folder here; download it and name it with autoencoder_folder")
    write_folder(folders / "calm", CALM_CONFIG | {"num_key_value_heads": 1}, random_weights(calm_shapes(), 2))
    refuse("num_key_value_heads is 1, these models have 2")
    write_folder(folders / "calm", CALM_CONFIG | {"vocab_size": 100}, random_weights(calm_shapes(), 2))
    refuse(r"the model knows 100 tokens, the tokenizer 3\d\d")
    other = {f"ae_model.{name}": value for name, value in random_weights(autoencoder_shapes(), 9).items()}
    write_folder(folders / "calm", CALM_CONFIG, random_weights(calm_shapes(), 2) | other)
    refuse("holds another autoencoder than")
    untied = random_weights(autoencoder_shapes(), 1) | {"decoder.lm_head_weight": torch.zeros(V, D)}
    write_folder(folders / "autoencoder", AUTOENCODER_CONFIG, untied)
    refuse("decoder.lm_head_weight differs from encoder.embed_tokens.weight", "autoencoder")
    (folders / "autoencoder" / "model.safetensors").unlink()
    refuse("holds no weights", "autoencoder")
    torch.save({"a": Dangerous()}, folders / "autoencoder" / "pytorch_model.bin")
    refuse("pytorch_model.bin: cannot be read", "autoencoder")
    assert "run by unpickling" not in capsys.readouterr().out


def test_a_missing_shard_is_named(folders: Path) -> None:
    path = write_folder(
        folders / "autoencoder3", AUTOENCODER_CONFIG, random_weights(autoencoder_shapes(), 1), "sharded safetensors"
    )
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CalmError, match=r"files are missing: model-00002-of-00002\.safetensors"):
        import_checkpoint(str(path), str(folders / "out"), tokenizer_folder=str(folders / "tokenizer"))
