"""Public checkpoints: folders made here from the published key names, read, used, and written back."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

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

V, K, L, D, WIDE, LAYERS, HEAD_LAYERS, NOISE = 320, 4, 6, 16, 24, 2, 1, 8

Weights = dict[str, torch.Tensor]


def block(prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.layernorm.weight": (D,),
        f"{prefix}.mlp.gate_proj.weight": (WIDE, D),
        f"{prefix}.mlp.up_proj.weight": (WIDE, D),
        f"{prefix}.mlp.down_proj.weight": (D, WIDE),
    }


def autoencoder_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"encoder.embed_tokens.weight": (V, D)}
    for i in range(2):
        shapes |= block(f"encoder.encoder_layers.{i}") | block(f"decoder.decoder_layers.{i}")
    return shapes | {
        "encoder.squeeze_layer.weight": (D, K * D),
        "encoder.squeeze_layer.bias": (D,),
        "encoder.hidden_to_latent.weight": (2 * L, D),
        "encoder.hidden_to_latent.bias": (2 * L,),
        "encoder.norm.weight": (D,),
        "decoder.latent_to_hidden.weight": (D, L),
        "decoder.latent_to_hidden.bias": (D,),
        "decoder.expand_layer.weight": (K * D, D),
        "decoder.expand_layer.bias": (K * D,),
        "decoder.norm.weight": (D,),
    }


def calm_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"transformer.embed_tokens.weight": (V, D), "transformer.norm.weight": (D,)}
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (D, D) for p in "qkvo"}
        shapes |= {f"{layer}.mlp.gate_proj.weight": (WIDE, D), f"{layer}.mlp.up_proj.weight": (WIDE, D)}
        shapes |= {f"{layer}.mlp.down_proj.weight": (D, WIDE)}
        shapes |= {f"{layer}.input_layernorm.weight": (D,), f"{layer}.post_attention_layernorm.weight": (D,)}
    linear = {
        "embed_proj.0": (2 * D, K * D),
        "embed_proj.2": (D, 2 * D),
        "mlp_generator.noise_embd": (D, NOISE),
        "mlp_generator.hidden_embd": (D, D),
        "mlp_generator.final_layer.linears.0": (D, D),
        "mlp_generator.final_layer.linears.2": (L, D),
    }
    norms = ["embed_proj.3", "mlp_generator.norm_hidden", "mlp_generator.norm_noise", "mlp_generator.final_layer.in_ln"]
    for i in range(HEAD_LAYERS):
        own = f"mlp_generator.mlp_blocks.{i}"
        norms.append(f"{own}.in_ln")
        linear |= {f"{own}.linears.0": (D, 2 * D), f"{own}.linears.2": (D, D), f"{own}.linears.4": (2 * D, D)}
        linear |= {f"{own}.down_proj": (D, D)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {f"{name}.{part}": (D,) for name in norms for part in ("weight", "bias")}


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: (0.3 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


AUTOENCODER_CONFIG = {
    "architectures": ["Autoencoder"], "patch_size": K, "latent_size": L, "hidden_size": D, "intermediate_size": WIDE,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "vocab_size": V, "ae_dropout": 0.15, "kl_clamp": 0.5,
    "kl_weight": 1e-3, "rms_norm_eps": 1e-6,
}  # fmt: skip
CALM_CONFIG = {
    "architectures": ["EnergyTransformer"], "ae_path": "../autoencoder", "patch_size": K, "latent_size": L,
    "noise_size": NOISE, "num_mlp_layers": HEAD_LAYERS, "num_samples": 8, "beta": 1.0, "hidden_size": D,
    "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2,
    "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "vocab_size": V, "pad_token_id": None, "bos_token_id": 0,
    "eos_token_id": [1, 2],
}  # fmt: skip


def write_folder(path: Path, config: dict[str, Any], weights: Weights, layout: str = "safetensors") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    halves = [dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])]
    match layout:
        case "safetensors":
            safetensors.torch.save_file(weights, path / "model.safetensors")
        case "bin":
            torch.save(weights, path / "pytorch_model.bin")
        case "sharded safetensors":
            names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
            for name, half in zip(names, halves, strict=True):
                safetensors.torch.save_file(half, path / name)
            index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        case "sharded bin":
            names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
            for name, half in zip(names, halves, strict=True):
                torch.save(half, path / name)
            index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
            (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def write_tokenizer(path: Path) -> Path:
    """A byte-level BPE as Llama-3's: special tokens of other names than ours, a first token put before each text."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=V,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([sentences(i, 12) for i in range(20)], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    path.mkdir(parents=True, exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>", "lstrip": False}}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    return path


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
