"""Public CALM checkpoints in Hugging Face's folder format: read as artifacts, and written back.

A folder holds config.json and weights: model.safetensors, pytorch_model.bin, or either of them in shards with an index.
Parameter names are those of the models here; a CALM folder holds its autoencoder again, below `ae_model.`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from calm_core.config import AutoencoderConfig, CalmConfig, parse_section
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, CalmError
from calm_core.models.autoencoders.mlp import Autoencoder
from calm_core.models.calm import Calm
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.weights.load import WEIGHTS_NAME

CONFIG_NAME = "config.json"
_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_AUTOENCODER_PREFIX = "ae_model."
_TIED = {"decoder.lm_head_weight": "encoder.embed_tokens.weight"}
_SHOWN_NAMES = 8

Weights = dict[str, Tensor]

# Their names of settings -> ours. What is not listed is kept with the artifact, and written back.
_AUTOENCODER_SETTINGS = {
    "patch_size": "chunk_size",
    "latent_size": "latent_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_encoder_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
    "ae_dropout": "latent_dropout",
    "kl_clamp": "kl_clip",
    "kl_weight": "kl_weight",
    "rms_norm_eps": "rms_norm_eps",
}
_CALM_SETTINGS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "noise_size": "noise_size",
    "num_mlp_layers": "num_head_layers",
    "num_samples": "model_samples",
    "beta": "energy_alpha",
}


def import_checkpoint(
    folder: str, output_uri: str, *, autoencoder_folder: str = "", tokenizer_folder: str = ""
) -> dict[str, Artifact]:
    """Read a public checkpoint.

    Args:
        folder: A public autoencoder's or CALM model's folder, on this machine.
        output_uri: An autoencoder is written here; a CALM model below it, as `autoencoder` and `calm`.
        autoencoder_folder: The folder of a CALM model's autoencoder; unset, the one that its config names (`ae_path`).
        tokenizer_folder: Where tokenizer.json lies; unset, `folder`, else the autoencoder's.

    Returns:
        The artifacts by their kinds.

    Raises:
        CalmError: The folder is none of these, is incomplete, or does not fit these models.
    """
    path = Path(folder)
    config = _read_config(path)
    if "ae_path" not in config:
        tokenizer = _tokenizer(config, [tokenizer_folder, folder])
        return {"autoencoder": _import_autoencoder(path, config, _read_weights(path), tokenizer, output_uri)}
    autoencoder_path = _autoencoder_path(path, config, autoencoder_folder)
    autoencoder_config = _read_config(autoencoder_path)
    tokenizer = _tokenizer(config, [tokenizer_folder, folder, str(autoencoder_path)])
    weights = _read_weights(path)
    inner = _below(weights, _AUTOENCODER_PREFIX)
    outer = _read_weights(autoencoder_path) if _has_weights(autoencoder_path) else inner
    if inner and (different := _different(_untied(path, inner), _untied(autoencoder_path, outer))):
        raise ArtifactError(
            f"{path}: holds another autoencoder than {autoencoder_path}: {_listed(different)}; name the right one"
        )
    autoencoder = _import_autoencoder(
        autoencoder_path, autoencoder_config, outer, tokenizer, f"{output_uri.rstrip('/')}/autoencoder"
    )
    calm = _import_calm(path, config, weights, tokenizer, autoencoder, f"{output_uri.rstrip('/')}/calm")
    return {"autoencoder": autoencoder, "calm": calm}


def export_checkpoint(uri: str, output: str, *, autoencoder_uri: str = "") -> Path:
    """Write an `autoencoder` or `calm` artifact as a public folder: config.json, model.safetensors, tokenizer.json.

    Args:
        uri: The artifact.
        output: The folder that is made.
        autoencoder_uri: The autoencoder of a CALM model, which the folder holds too.

    Raises:
        CalmError: An artifact is unusable, or CALM's head is none that the format knows.
    """
    artifact, folder = Artifact(uri, "autoencoder", "calm"), Path(output)
    weights = safetensors.torch.load(artifact.read(WEIGHTS_NAME))
    if artifact.manifest.kind == "calm":
        if not autoencoder_uri:
            raise CalmError(f"{uri}: a CALM folder holds its autoencoder: name it with --autoencoder")
        autoencoder = Artifact(autoencoder_uri, "autoencoder")
        if artifact.manifest.parents["autoencoder"] != autoencoder.digest:
            raise ArtifactError(f"{uri}: was trained on another autoencoder than {autoencoder_uri}")
        config = _calm_config(artifact)
        inner = _tied(autoencoder, safetensors.torch.load(autoencoder.read(WEIGHTS_NAME)))
        weights |= {_AUTOENCODER_PREFIX + name: value for name, value in inner.items()}
    else:
        config, weights = _autoencoder_config(artifact), _tied(artifact, weights)
    storage.write(str(folder / CONFIG_NAME), (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    storage.write(str(folder / _WEIGHTS_FILES[0]), safetensors.torch.save(weights, metadata={"format": "pt"}))
    storage.write(str(folder / "tokenizer.json"), artifact.read("tokenizer.json"))
    return folder


def _import_autoencoder(
    path: Path, config: Mapping[str, Any], weights: Weights, tokenizer: Tokenizer, output_uri: str
) -> Artifact:
    model_config = _settings(path, config, _AUTOENCODER_SETTINGS)
    settings = parse_section(AutoencoderConfig, {"model": model_config})
    tied = [name for name in _TIED if name in weights]
    weights = _untied(path, weights)
    vocab_size = _vocab_size(path, config, tokenizer)
    with torch.device("meta"):
        model = Autoencoder(settings.model, vocab_size)
    _require_names(path, model, weights)
    results = {"parameters": _number(weights), "vocab_size": vocab_size, "tied": tied}
    return _write(output_uri, "autoencoder", settings.model_dump(mode="json"), {}, config, weights, tokenizer, results)


def _import_calm(
    path: Path,
    config: Mapping[str, Any],
    weights: Weights,
    tokenizer: Tokenizer,
    autoencoder: Artifact,
    output_uri: str,
) -> Artifact:
    heads = config.get("num_attention_heads")
    fixed = {"num_key_value_heads": heads, "rope_scaling": None, "hidden_act": "silu", "attention_bias": False}
    for name, expected in fixed.items():
        if config.get(name, expected) != expected:
            raise ArtifactError(f"{path / CONFIG_NAME}: {name} is {config[name]}, these models have {expected}")
    shape = autoencoder.manifest.config["model"]
    if config.get("patch_size", shape["chunk_size"]) != shape["chunk_size"]:
        raise ArtifactError(f"{path / CONFIG_NAME}: patch_size differs from that of its autoencoder")
    settings = parse_section(CalmConfig, {"model": _settings(path, config, _CALM_SETTINGS)})
    own = {name: value for name, value in weights.items() if not name.startswith(_AUTOENCODER_PREFIX)}
    own = {name: value for name, value in own.items() if not name.endswith("rotary_emb.inv_freq")}
    vocab_size = _vocab_size(path, config, tokenizer)
    with torch.device("meta"):
        model = Calm(settings.model, vocab_size, shape["chunk_size"], shape["latent_size"])
    _require_names(path, model, own)
    results = {
        "parameters": _number(own),
        "vocab_size": vocab_size,
        "chunk_size": shape["chunk_size"],
        "latent_size": shape["latent_size"],
    }
    parents = {"autoencoder": autoencoder.digest}
    return _write(output_uri, "calm", settings.model_dump(mode="json"), parents, config, own, tokenizer, results)


def _write(
    uri: str,
    kind: str,
    settings: dict[str, Any],
    parents: dict[str, str],
    config: Mapping[str, Any],
    weights: Weights,
    tokenizer: Tokenizer,
    results: dict[str, Any],
) -> Artifact:
    with ArtifactWriter(uri, kind, settings | {"seed": 0}, parents) as writer:
        writer.write(
            WEIGHTS_NAME, safetensors.torch.save({name: value.contiguous() for name, value in weights.items()})
        )
        writer.write("tokenizer.json", tokenizer.to_bytes())
        writer.write("curves.jsonl", b"")
        writer.write(CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True).encode())
        writer.results |= results | {"pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id, "trained_tokens": 0}
    return Artifact(uri, kind)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CalmError(f"{path}: holds no {CONFIG_NAME}; name the folder of a public checkpoint") from None
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path / CONFIG_NAME}: is no JSON ({error})") from None
    if not isinstance(config, dict) or "patch_size" not in config or "latent_size" not in config:
        raise ArtifactError(f"{path / CONFIG_NAME}: is no config of a CALM model or autoencoder (no patch_size)")
    return config


def _settings(path: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    optional = {"ae_dropout", "kl_clamp", "kl_weight", "rms_norm_eps", "rope_theta", "num_samples", "beta"}
    if missing := [name for name in names if name not in config and name not in optional]:
        raise ArtifactError(f"{path / CONFIG_NAME}: has no {', '.join(missing)}")
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}


def _vocab_size(path: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    vocab_size = int(config["vocab_size"])
    if tokenizer.vocab_size > vocab_size:
        raise ArtifactError(
            f"{path}: the model knows {vocab_size:,} tokens, the tokenizer {tokenizer.vocab_size:,}; name the model's "
            "own with --tokenizer"
        )
    return vocab_size


def _tokenizer(config: Mapping[str, Any], folders: list[str]) -> Tokenizer:
    """The first folder with a tokenizer.json; special tokens as the model's config says, where it does."""
    named = [folder for folder in folders if folder]
    folder = next((folder for folder in named if (Path(folder) / "tokenizer.json").exists()), named[0])
    eos = config.get("eos_token_id")
    eos_id = eos[0] if isinstance(eos, list) else eos
    return Tokenizer.from_folder(folder, config.get("pad_token_id"), eos_id, end_fills_up=True)


def _autoencoder_path(path: Path, config: Mapping[str, Any], asked: str) -> Path:
    named = str(config["ae_path"])
    for candidate in [Path(asked)] if asked else [path / named, Path(named)]:
        if (candidate / CONFIG_NAME).exists():
            return candidate
    raise CalmError(
        f"{path}: its autoencoder {asked or named!r} is no folder here; download it and name it with --autoencoder"
    )


def _has_weights(path: Path) -> bool:
    return any((path / (name + suffix)).exists() for name in _WEIGHTS_FILES for suffix in ("", ".index.json"))


def _read_weights(path: Path) -> Weights:
    """All weights of a folder, in the dtypes that they are stored in."""
    for name in _WEIGHTS_FILES:
        if (path / name).exists():
            return _read_file(path / name)
        index = path / f"{name}.index.json"
        if index.exists():
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if missing := [shard for shard in shards if not (path / shard).exists()]:
                raise ArtifactError(f"{index}: files are missing: {_listed(missing)}; download them")
            return {key: value for shard in shards for key, value in _read_file(path / shard).items()}
    raise ArtifactError(f"{path}: holds no weights ({' or '.join(_WEIGHTS_FILES)}, whole or with an index)")


def _read_file(path: Path) -> Weights:
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))  # nothing but tensors is unpickled
    except Exception as error:  # each format has its own kinds of damage
        raise ArtifactError(f"{path}: cannot be read ({str(error).splitlines()[0]}); download it again") from None


def _untied(path: Path, weights: Weights) -> Weights:
    """The weights without second copies of tied ones, which must not differ."""
    for name, source in _TIED.items():
        if name in weights and source in weights and not torch.equal(weights[name], weights[source]):
            raise ArtifactError(f"{path}: {name} differs from {source}; in these models they are one")
    return {name: value for name, value in weights.items() if name not in _TIED}


def _tied(autoencoder: Artifact, weights: Weights) -> Weights:
    """The weights with the copies of tied ones that the folder had; ours get all, so that no reader misses one."""
    names = autoencoder.manifest.results.get("tied", list(_TIED))
    return weights | {name: weights[_TIED[name]].clone() for name in names}


def _below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _different(first: Weights, second: Weights) -> list[str]:
    names = first.keys() | second.keys()
    return sorted(n for n in names if n not in first or n not in second or not torch.equal(first[n], second[n]))


def _require_names(path: Path, model: nn.Module, weights: Weights) -> None:
    expected = {name: value.shape for name, value in model.state_dict().items()}
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & weights.keys() if expected[name] != weights[name].shape
        ),
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items() if names)
        raise ArtifactError(f"{path}: weights do not fit the config: {told}")


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _number(weights: Weights) -> int:
    return sum(value.numel() for value in weights.values())


def _kept_config(artifact: Artifact) -> dict[str, Any]:
    """The config that an imported artifact came with."""
    if any(entry.path == CONFIG_NAME for entry in artifact.manifest.files):
        return dict(artifact.read_json(CONFIG_NAME))
    return {}


def _common_config(artifact: Artifact) -> dict[str, Any]:
    results = artifact.manifest.results
    return {
        "vocab_size": results["vocab_size"],
        "pad_token_id": results["pad_id"],
        "eos_token_id": results["eos_id"],
        "bos_token_id": results["eos_id"],  # what a document of ours follows
    }


def _autoencoder_config(artifact: Artifact) -> dict[str, Any]:
    model = artifact.manifest.config["model"]
    known = {theirs: model[ours] for theirs, ours in _AUTOENCODER_SETTINGS.items()}
    return _kept_config(artifact) or {"model_type": "autoencoder", **_common_config(artifact), **known}


def _calm_config(artifact: Artifact) -> dict[str, Any]:
    model = artifact.manifest.config["model"]
    if model["head"] != "energy":
        raise CalmError(f"{artifact.uri}: the public format knows the energy head only, this is a {model['head']} head")
    known = {theirs: model[ours] for theirs, ours in _CALM_SETTINGS.items()}
    results = artifact.manifest.results
    shape = {"patch_size": results["chunk_size"], "latent_size": results["latent_size"]}
    heads = {"num_key_value_heads": model["num_attention_heads"], "ae_path": "autoencoder"}
    return _kept_config(artifact) or {"model_type": "energy", **_common_config(artifact), **known, **shape, **heads}
