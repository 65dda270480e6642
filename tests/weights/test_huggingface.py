"""Public checkpoints: folders made here from the published key names, read, used, and written back."""

import json
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from calm_core.config import AutoencoderConfig, DataConfig, EvaluationConfig, RegistryConfig, TokenizerConfig
from calm_core.data.stage import prepare_data
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, CalmError
from calm_core.evaluation.stage import evaluate
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ExportFacts
from calm_core.training.stage import train
from calm_core.weights.huggingface import export_checkpoint, import_checkpoint
from calm_core.weights.load import load_autoencoder, load_tokenizer, load_weights
from tests.conftest import sentences
from tests.mlflow_tables import new_store
from tests.weights.public_folders import (
    AUTOENCODER_CONFIG,
    CALM_CONFIG,
    HEAD_LAYERS,
    NOISE,
    D,
    K,
    L,
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


def imported(folders: Path, **settings: Any) -> dict[str, Artifact]:
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
    assert json.loads((back / "config.json").read_text()) == CALM_CONFIG | {"ae_path": f"{back}/autoencoder"}
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
    assert (facts.bos_id, facts.packing) == (0, "contiguous")  # as the public code packs
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

    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(folders))
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

    refuse("nowhere: there is no such folder; .* holds autoencoder/, calm/ and tokenizer/", "nowhere")
    refuse("name one of its folders: autoencoder, calm", ".")
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


def test_a_head_under_two_names_is_read_once(folders: Path) -> None:
    """The public code saves the head as `mlp_generator.*` and as `generative_head.*`; either can stand alone."""
    outer = random_weights(calm_shapes(), 2)
    renamed = {name.replace("mlp_generator.", "generative_head."): value for name, value in outer.items()}
    expected = stored(imported(folders)["calm"])
    for weights in (outer | renamed, renamed):
        write_folder(folders / "calm", CALM_CONFIG, weights, "bin")
        (folders / "calm" / "model.safetensors").unlink(missing_ok=True)
        assert equal(stored(imported(folders)["calm"]), expected)
    renamed["generative_head.noise_embd.bias"] = renamed["generative_head.noise_embd.bias"] + 1
    write_folder(folders / "calm", CALM_CONFIG, outer | renamed, "bin")
    with pytest.raises(CalmError, match=r"generative_head\.noise_embd\.bias differs from mlp_generator\.noise"):
        imported(folders)


def test_an_output_embedding_that_stands_alone_is_taken(folders: Path) -> None:
    weights = random_weights(autoencoder_shapes(), 1)
    weights["decoder.lm_head_weight"] = weights.pop("encoder.embed_tokens.weight")
    write_folder(folders / "autoencoder", AUTOENCODER_CONFIG, weights)
    artifact = imported(folders)["autoencoder"]  # and the copy in the CALM folder, under the other name, is the same
    assert torch.equal(stored(artifact)["encoder.embed_tokens.weight"], weights["decoder.lm_head_weight"])


def with_layers(folders: Path, layers: int) -> str:
    """An autoencoder with so many layers in either half; without a copy in a CALM folder."""
    shapes = autoencoder_shapes(layers)
    config = AUTOENCODER_CONFIG | {"num_encoder_layers": layers, "num_decoder_layers": layers}
    return str(write_folder(folders / f"layers{layers}", config, random_weights(shapes, 1)))


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_that_the_public_code_leaves_unused_are_left_out(folders: Path, layers: int) -> None:
    folder, tokenizer = with_layers(folders, layers), str(folders / "tokenizer")
    artifact = import_checkpoint(folder, str(folders / "out"), tokenizer_folder=tokenizer)["autoencoder"]
    assert artifact.manifest.config["model"]["num_encoder_layers"] == layers - 1
    assert not any(f"_layers.{layers - 1}." in name for name in stored(artifact))
    model = load_autoencoder(artifact)
    weights = random_weights(autoencoder_shapes(layers), 1)
    tokens = torch.arange(K).unsqueeze(0)

    def blocks(h: torch.Tensor, numbers: range) -> torch.Tensor:
        for i in numbers:
            name = f"encoder.encoder_layers.{i}"
            x = torch.nn.functional.rms_norm(h, (D,), weights[f"{name}.layernorm.weight"], 1e-6)
            gate, up, down = (weights[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
            h = h + (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
        return h

    half = layers // 2  # the public code's, rounded down
    h = blocks(weights["encoder.embed_tokens.weight"][tokens], range(half)).flatten(-2)
    h = h @ weights["encoder.squeeze_layer.weight"].T + weights["encoder.squeeze_layer.bias"]
    h = torch.nn.functional.rms_norm(blocks(h, range(half, 2 * half)), (D,), weights["encoder.norm.weight"], 1e-6)
    h = h @ weights["encoder.hidden_to_latent.weight"].T + weights["encoder.hidden_to_latent.bias"]
    torch.testing.assert_close(model.posterior(tokens).mean, h[..., :L])

    back = export_checkpoint(artifact.uri, str(folders / "back"))
    assert json.loads((back / "config.json").read_text())["num_decoder_layers"] == layers - 1


def test_an_odd_number_of_layers_is_not_exported(dataset_uri: str, tmp_path: Path) -> None:
    shape = {"chunk_size": 4, "latent_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_decoder_layers": 3}
    settings = {"steps": 1, "warmup_steps": 0, "global_batch_size": 4, "micro_batch_size": 4, "model": shape}
    places = {"checkpoint_root": str(tmp_path / "checkpoints")}
    config = AutoencoderConfig.model_validate(settings)
    artifact = train(config, dataset_uri, str(tmp_path / "autoencoder"), seed=0, **places)
    with pytest.raises(CalmError, match=r"has num_decoder_layers 3; .* it would leave one out: only even numbers"):
        export_checkpoint(artifact.uri, str(tmp_path / "public"))
    assert not (tmp_path / "public").exists()


def test_each_key_of_a_config_is_used_or_told(folders: Path) -> None:
    left_out = {name: value for name, value in CALM_CONFIG.items() if name not in ("rope_theta", "beta")}
    public = left_out | {"attention_dropout": 0.1, "torch_dtype": "float32", "sliding_window": 64}
    inner = AUTOENCODER_CONFIG | {"ae_dropout": 0.05}
    told: list[str] = []
    for name, config in (("calm", public), ("autoencoder", inner)):
        (folders / name / "config.json").write_text(json.dumps(config))
    artifacts = import_checkpoint(
        str(folders / "calm"), str(folders / "out"), tokenizer_folder=str(folders / "tokenizer"), tell=told.append
    )
    model = artifacts["calm"].manifest.config["model"]
    assert (model["rope_theta"], model["head"]["alpha"]) == (10_000.0, 1.0)
    model = artifacts["autoencoder"].manifest.config["model"]
    assert (model["latent_dropout"], model["token_dropout"]) == (0.05, 0.05)
    assert "ignored, without effect on a trained model: architectures, attention_dropout, torch_dtype;" in told[0]
    assert "ignored, unknown: sliding_window" in told[0]
    assert "not given, so as the public code has it: beta 1.0, rope_theta 10000.0" in told[0]
    assert told[1].endswith("without effect on a trained model: architectures")


def test_a_null_is_the_public_default(folders: Path) -> None:
    (folders / "calm" / "config.json").write_text(json.dumps(CALM_CONFIG | {"rope_theta": None}))
    assert imported(folders)["calm"].manifest.config["model"]["rope_theta"] == 10_000.0


REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "calm": [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', these models have 'silu' or 'swish'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is .*, these models have none"),
        ({"attention_bias": True}, "attention_bias is True, these models have False"),
        ({"head_dim": 4}, "head_dim is 4, these models have 8"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"pad_token_id": 1.5}, r"pad_token_id is 1\.5"),
        ({"eos_token_id": 10**12}, "eos_token_id is 1000000000000, the vocabulary has 320 tokens"),
        ({"eos_token_id": [1, 320]}, "eos_token_id is 320, the vocabulary has 320 tokens"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]"),
        ({"latent_size": 8}, f"latent_size is 8, that of its autoencoder .* is {L}"),
        ({"patch_size": 2}, f"patch_size is 2, that of its autoencoder .* is {K}"),
        ({"num_hidden_layers": 10**9}, "model.num_hidden_layers: expected at most 1,024"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, the weights have 2"),
        ({"intermediate_size": 2**20}, "intermediate_size is 1,048,576, .* is of shape"),
        ({"intermediate_size": 10**9}, "model.intermediate_size: expected at most 1,048,576"),
        ({"hidden_size": "16"}, "hidden_size is '16', expected is a whole number"),
        ({"num_samples": True}, "num_samples is True"),
        ({"model_type": "diffusion"}, "has the public diffusion head, whose layers are those of no head here"),
        ({"architectures": ["FlowTransformer"]}, "has the public flow head, whose layers are those of no head here"),
        ({"ae_path": "/"}, "its autoencoder '/' is no folder here"),
    ],
    "autoencoder": [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', these models have 'silu' or 'swish'"),
        ({"mlp_bias": True}, "mlp_bias is True, these models have False"),
        ({"num_encoder_layers": 10_000_000}, "model.num_encoder_layers: expected at most 1,024"),
        ({"num_encoder_layers": 1000}, "num_encoder_layers is 1,000, the weights have 2"),
        ({"hidden_size": 2**20}, "hidden_size is 1,048,576, encoder.embed_tokens.weight of"),
        ({"hidden_size": 10**9}, "model.hidden_size: expected at most 1,048,576"),
        ({"kl_weight": -1}, "kl_weight is -1"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "line"), [(k, *case) for k, cases in REFUSED.items() for case in cases])
def test_a_refusal_is_one_line_and_leaves_nothing_behind(
    folders: Path, kind: str, change: dict[str, Any], line: str
) -> None:
    config = {"calm": CALM_CONFIG, "autoencoder": AUTOENCODER_CONFIG}[kind] | change
    (folders / kind / "config.json").write_text(json.dumps(config))
    with pytest.raises(CalmError, match=line) as caught:
        imported(folders)
    assert "\n" not in str(caught.value)
    assert not (folders / "out").exists()


@pytest.mark.parametrize(("head", "rows"), [("diffusion", 2 * L), ("flow", L)])
def test_another_head_is_known_by_its_weights(folders: Path, head: str, rows: int) -> None:
    weights = {name: value for name, value in random_weights(calm_shapes(), 2).items() if "mlp_generator" not in name}
    weights["generative_head.net.res_blocks.0.adaLN_modulation.1.weight"] = torch.zeros(3 * D, D)
    weights["generative_head.net.final_layer.linear.weight"] = torch.zeros(rows, D)
    write_folder(folders / "calm", CALM_CONFIG, weights)
    with pytest.raises(CalmError, match=f"has the public {head} head"):
        imported(folders)


@pytest.mark.parametrize("name", ["../autoencoder/model.safetensors", "/etc/hostname", "sub\\x", "link.safetensors"])
def test_an_index_names_files_of_its_own_folder_only(folders: Path, name: str) -> None:
    outer = write_folder(folders / "calm", CALM_CONFIG, random_weights(calm_shapes(), 2), "sharded safetensors")
    (outer / "model.safetensors").unlink()
    (outer / "link.safetensors").symlink_to(folders / "autoencoder" / "model.safetensors")
    (outer / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embed_proj.0.bias": name}}))
    with pytest.raises(CalmError, match=r"no plain path inside the folder|is a link that leads out of the folder"):
        imported(folders)


def test_an_autoencoder_is_not_read_from_wherever_a_config_says(folders: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    (folders / "autoencoder").rename(elsewhere)
    (folders / "calm" / "config.json").write_text(json.dumps(CALM_CONFIG | {"ae_path": str(elsewhere)}))
    with pytest.raises(CalmError, match="is no folder here; download it and name it with autoencoder_folder"):
        imported(folders)
    imported(folders, autoencoder_folder=str(elsewhere))


def test_a_copy_of_the_autoencoder_may_have_fewer_bits(folders: Path) -> None:
    inner = {f"ae_model.{name}": value.bfloat16() for name, value in random_weights(autoencoder_shapes(), 1).items()}
    write_folder(folders / "calm", CALM_CONFIG, random_weights(calm_shapes(), 2) | inner)
    assert stored(imported(folders)["autoencoder"])["encoder.norm.weight"].dtype == torch.float32


def test_a_small_pickle_does_not_become_a_large_model(folders: Path) -> None:
    """A tensor may be a view that repeats one number; and a packed file may be of any size."""
    weights = {name: torch.zeros(1).expand(shape) for name, shape in autoencoder_shapes().items()}
    weights["encoder.embed_tokens.weight"] = torch.zeros(1).expand(10**6, 10**6)
    (folders / "autoencoder" / "model.safetensors").unlink()
    path = folders / "autoencoder" / "pytorch_model.bin"
    torch.save(weights, path)
    with pytest.raises(CalmError, match="its tensors are larger than the file"):
        imported(folders)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(CalmError, match="has packed files in it"):
        imported(folders)


def test_weights_that_are_no_numbers_are_refused(folders: Path) -> None:
    weights = random_weights(calm_shapes(), 2)
    weights["embed_proj.0.bias"][3] = float("nan")
    write_folder(folders / "calm", CALM_CONFIG, weights)
    with pytest.raises(CalmError, match=r"infinite numbers or none at all \(NaN\): embed_proj\.0\.bias"):
        imported(folders)


def test_what_is_read_or_an_artifact_is_not_written_over(folders: Path) -> None:
    before = (folders / "autoencoder" / "config.json").read_bytes()
    with pytest.raises(CalmError, match="is the folder that is read"):
        import_checkpoint(str(folders / "calm"), str(folders), tokenizer_folder=str(folders / "tokenizer"))
    assert (folders / "autoencoder" / "config.json").read_bytes() == before
    artifacts = imported(folders)
    with pytest.raises(CalmError, match=r"holds other files \(autoencoder, calm\); name another output"):
        export_checkpoint(artifacts["calm"].uri, str(folders / "out"))  # its `autoencoder` would be written over
    artifacts["autoencoder"].check("config.json")


def test_an_import_that_cannot_be_written_leaves_nothing_behind(folders: Path) -> None:
    (folders / "out").mkdir()
    (folders / "out" / "calm").write_text("a file in the way")
    with pytest.raises(CalmError, match=r"out/calm: is no folder; name another output"):
        imported(folders)
    assert [path.name for path in (folders / "out").iterdir()] == ["calm"]


def test_an_import_that_fails_while_it_writes_leaves_nothing_behind(folders: Path) -> None:
    largest = (folders / "calm" / "model.safetensors").stat().st_size // 2  # bytes of a file: the first model fits
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(CalmError, match=r"out/calm/weights\.safetensors"):
            imported(folders)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (folders / "out").exists()


def test_a_tokenizer_of_ours_is_written_for_older_readers(model_uris: tuple[str, str], tmp_path: Path) -> None:
    folder = export_checkpoint(model_uris[1], str(tmp_path / "public"), autoencoder_uri=model_uris[0])
    data = (folder / "tokenizer.json").read_bytes()
    merges = json.loads(data)["model"]["merges"]
    assert merges and all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)
    own = load_tokenizer(Artifact(model_uris[1], CalmFacts))
    assert Tokenizer.from_bytes(data).to_bytes() == own.to_bytes()
    names = json.loads((folder / "tokenizer_config.json").read_text())
    assert (names["pad_token"], names["eos_token"]) == ("<|pad|>", "<|endoftext|>")


def test_transformers_reads_an_export(model_uris: tuple[str, str], tmp_path: Path) -> None:
    """The public code pins transformers 4.43 with tokenizers 0.19."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is no dependency; install 4.43.0 to run this"
    )
    folder = export_checkpoint(model_uris[1], str(tmp_path / "public"), autoencoder_uri=model_uris[0])
    own = load_tokenizer(Artifact(model_uris[1], CalmFacts))
    for place in (folder, folder / "autoencoder"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        for text in ("the river flows", "It's\n\n 12 naïve 日本", " <|endoftext|"):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (own.pad_id, own.eos_id)
        config = transformers.PretrainedConfig.from_pretrained(place)
        assert config.vocab_size == len(tokenizer)  # so that the public code adds no token
    with safetensors.safe_open(folder / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}  # else transformers refuses the file
        assert "ae_model.decoder.lm_head_weight" in weights.keys()  # noqa: SIM118  # no dict


@pytest.mark.parametrize("place", ["https://user:geheim@host/x", "https://host/x", "s3://bucket/x"])
def test_a_folder_elsewhere_is_one_line_without_its_password(place: str, tmp_path: Path) -> None:
    with pytest.raises(
        CalmError, match=r"is no folder on this machine|a password or key in a URL is not taken"
    ) as told:
        import_checkpoint(place, str(tmp_path / "out"))
    assert "geheim" not in str(told.value) and not (tmp_path / "out").exists()


def test_ae_path_is_found_from_anywhere_and_after_a_move(
    model_uris: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder, calm = model_uris
    monkeypatch.chdir(tmp_path)
    export_checkpoint(calm, "public/", autoencoder_uri=autoencoder)
    monkeypatch.chdir("/")
    config = json.loads((tmp_path / "public" / "config.json").read_text())
    assert Path(config["ae_path"]) == tmp_path / "public" / "autoencoder"
    assert (Path(config["ae_path"]) / "config.json").is_file()
    (tmp_path / "public").rename(tmp_path / "moved")
    back = import_checkpoint(str(tmp_path / "moved"), str(tmp_path / "back"))
    assert equal(load_weights(back["calm"]), load_weights(Artifact(calm, CalmFacts)))


def test_an_export_is_replaced_by_itself_and_by_another_one_when_asked(
    model_uris: tuple[str, str], tmp_path: Path
) -> None:
    autoencoder, calm = model_uris
    folder = export_checkpoint(calm, str(tmp_path / "public"), autoencoder_uri=autoencoder)

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = files()
    export_checkpoint(calm, str(folder), autoencoder_uri=autoencoder)
    assert files() == before
    with pytest.raises(ArtifactError, match="holds another export, of other settings or inputs"):
        export_checkpoint(autoencoder, str(folder))
    assert files() == before
    (folder / "README.md").write_text("mine")
    with pytest.raises(ArtifactError, match=r"also holds README\.md"):
        export_checkpoint(autoencoder, str(folder), overwrite=True)
    (folder / "README.md").unlink()
    export_checkpoint(autoencoder, str(folder), overwrite=True)
    assert not (folder / "autoencoder" / "config.json").exists()
    Artifact(str(folder), ExportFacts).check_files()


def test_an_import_is_replaced_by_itself_and_by_other_weights_when_asked(folders: Path) -> None:
    """Two public models of one shape differ in their weights alone."""
    first = {kind: artifact.digest for kind, artifact in imported(folders).items()}
    assert {kind: artifact.digest for kind, artifact in imported(folders).items()} == first
    write_folder(folders / "calm", CALM_CONFIG, random_weights(calm_shapes(), 3))
    with pytest.raises(ArtifactError, match=r"out/calm: holds another calm, of other settings or inputs"):
        imported(folders)
    assert Artifact(str(folders / "out" / "calm"), CalmFacts).digest == first["calm"]
    other = imported(folders, overwrite=True)
    assert (other["autoencoder"].digest == first["autoencoder"], other["calm"].digest == first["calm"]) == (True, False)
