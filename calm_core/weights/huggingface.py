"""Public CALM checkpoints in Hugging Face's folder format: read as artifacts, and written back.

A folder holds config.json and weights: model.safetensors, pytorch_model.bin, or either of them in shards with an index.
Parameter names are those of the models here; a CALM folder holds its autoencoder again, below `ae_model.`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from calm_core.config import AutoencoderConfig, CalmConfig, TrainingConfig, parse_section
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, CalmError, first_line
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter, Manifest
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts
from calm_core.weights.load import CURVES_NAME, TOKENIZER_NAME, WEIGHTS_NAME, autoencoder_of, load_weights

CONFIG_NAME = "config.json"
_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_AUTOENCODER_PREFIX = "ae_model."
_TIED = {"decoder.lm_head_weight": "encoder.embed_tokens.weight"}
_SHOWN_NAMES = 8
_AUTOENCODER_KIND, _HEAD_KIND = "mlp", "energy"  # what the public format can express

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
}
_HEAD_SETTINGS = {
    "noise_size": "noise_size",
    "num_mlp_layers": "num_layers",
    "num_samples": "model_samples",
    "beta": "alpha",
}
_OPTIONAL = {"ae_dropout", "kl_clamp", "kl_weight", "rms_norm_eps", "rope_theta", "num_samples", "beta"}


@dataclass(frozen=True)
class _PublicFolder:
    """What was found in a public folder, and the tokenizer that goes with it."""

    path: Path
    config: Mapping[str, Any]
    weights: Weights
    tokenizer: Tokenizer

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG_NAME

    def settings(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Settings by our names, of those by theirs."""
        if missing := [name for name in names if name not in self.config and name not in _OPTIONAL]:
            raise ArtifactError(f"{self.config_path}: has no {', '.join(missing)}")
        return {ours: self.config[theirs] for theirs, ours in names.items() if self.config.get(theirs) is not None}

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; the tokenizer may have fewer tokens."""
        vocab_size = int(self.config["vocab_size"])
        if self.tokenizer.vocab_size > vocab_size:
            raise ArtifactError(
                f"{self.path}: the model knows {vocab_size:,} tokens, the tokenizer {self.tokenizer.vocab_size:,}; "
                "name the model's own with tokenizer_folder"
            )
        return vocab_size

    def facts(self, weights: Weights) -> dict[str, Any]:
        """What every model's artifact says of itself, as far as a public folder tells it."""
        return {
            "parameters": sum(value.numel() for value in weights.values()),
            "vocab_size": self.vocab_size,
            "pad_id": self.tokenizer.pad_id,
            "eos_id": self.tokenizer.eos_id,
            "bos_id": self.tokenizer.bos_id,
            # The public code packs like this, with BOS in front; where BOS is EOS, the folder is one of our exports.
            "packing": "documents" if self.tokenizer.bos_id is None else "contiguous",
        }

    def write(self, writer: "ArtifactWriter[Any]", weights: Weights) -> None:
        """Write an artifact's files: the weights, and what is kept to be written back as it was."""
        contiguous = {name: value.contiguous() for name, value in weights.items()}
        writer.write(WEIGHTS_NAME, safetensors.torch.save(contiguous))
        writer.write(TOKENIZER_NAME, self.tokenizer.to_bytes())
        writer.write(CURVES_NAME, b"")
        writer.write(CONFIG_NAME, json.dumps(dict(self.config), indent=2, sort_keys=True).encode())


def import_checkpoint(
    folder: str, output_uri: str, *, autoencoder_folder: str = "", tokenizer_folder: str = ""
) -> dict[str, Artifact[ModelFacts]]:
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
        public = _PublicFolder(path, config, _read_weights(path), tokenizer)
        return {"autoencoder": _import_autoencoder(public, output_uri)}
    autoencoder_path = _autoencoder_path(path, config, autoencoder_folder)
    tokenizer = _tokenizer(config, [tokenizer_folder, folder, str(autoencoder_path)])
    public = _PublicFolder(path, config, _read_weights(path), tokenizer)
    inner = _below(public.weights, _AUTOENCODER_PREFIX)
    outer = _read_weights(autoencoder_path) if _has_weights(autoencoder_path) else inner
    if inner and (different := _different(_untied(path, inner), _untied(autoencoder_path, outer))):
        raise ArtifactError(
            f"{path}: holds another autoencoder than {autoencoder_path}: {_listed(different)}; name the right one"
        )
    autoencoder = _import_autoencoder(
        _PublicFolder(autoencoder_path, _read_config(autoencoder_path), outer, tokenizer),
        storage.join(output_uri, "autoencoder"),
    )
    calm = _import_calm(public, autoencoder, storage.join(output_uri, "calm"))
    return {"autoencoder": autoencoder, "calm": calm}


def export_checkpoint(uri: str, output: str, *, autoencoder_uri: str = "") -> Path:
    """Write an `autoencoder` or `calm` artifact as a public folder: config.json, model.safetensors, tokenizer.json.

    Args:
        uri: The artifact.
        output: The folder that is made.
        autoencoder_uri: The autoencoder of a CALM model, which the folder holds too; unset, where it was trained on it.

    Raises:
        CalmError: An artifact is unusable, or of a kind that the format does not know.
    """
    if Manifest.read(uri).kind == CalmFacts.kind:
        calm = Artifact(uri, CalmFacts)
        config, weights = _calm_config(calm), load_weights(calm)
        inner = _with_copies(autoencoder_of(calm, autoencoder_uri))
        weights |= {_AUTOENCODER_PREFIX + name: value for name, value in inner.items()}
        tokenizer = calm.read(TOKENIZER_NAME)
    else:
        autoencoder = Artifact(uri, AutoencoderFacts)
        config, weights = _autoencoder_config(autoencoder), _with_copies(autoencoder)
        tokenizer = autoencoder.read(TOKENIZER_NAME)
    folder = Path(output)
    storage.write(str(folder / CONFIG_NAME), (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    storage.write(str(folder / _WEIGHTS_FILES[0]), safetensors.torch.save(weights, metadata={"format": "pt"}))
    storage.write(str(folder / TOKENIZER_NAME), tokenizer)
    return folder


def _import_autoencoder(public: _PublicFolder, output_uri: str) -> Artifact[AutoencoderFacts]:
    settings = parse_section(AutoencoderConfig, {"model": public.settings(_AUTOENCODER_SETTINGS)})
    tied = [name for name in _TIED if name in public.weights]
    weights = _untied(public.path, public.weights)
    with torch.device("meta"):
        model = make_autoencoder(settings.model, public.vocab_size)
    _require_names(public.path, model, weights)
    with ArtifactWriter(output_uri, AutoencoderFacts, _imported(settings), {}) as writer:
        public.write(writer, weights)
        writer.facts = AutoencoderFacts(**public.facts(weights), tied=tied)
    return Artifact(output_uri, AutoencoderFacts)


def _import_calm(
    public: _PublicFolder, autoencoder: Artifact[AutoencoderFacts], output_uri: str
) -> Artifact[CalmFacts]:
    _refuse_other_architectures(public)
    shape = parse_section(AutoencoderConfig, {"model": autoencoder.manifest.config["model"]}).model
    if public.config.get("patch_size", shape.chunk_size) != shape.chunk_size:
        raise ArtifactError(f"{public.config_path}: patch_size differs from that of its autoencoder")
    model_settings = public.settings(_CALM_SETTINGS) | {"head": public.settings(_HEAD_SETTINGS)}
    settings = parse_section(CalmConfig, {"model": model_settings})
    weights = {
        name: value
        for name, value in public.weights.items()
        if not name.startswith(_AUTOENCODER_PREFIX) and not name.endswith("rotary_emb.inv_freq")
    }
    with torch.device("meta"):
        model = Calm(settings.model, public.vocab_size, shape.chunk_size, shape.latent_size)
    _require_names(public.path, model, weights)
    parents = {"autoencoder": autoencoder.digest}
    with ArtifactWriter(output_uri, CalmFacts, _imported(settings), parents) as writer:
        public.write(writer, weights)
        writer.facts = CalmFacts(
            **public.facts(weights),
            chunk_size=shape.chunk_size,
            latent_size=shape.latent_size,
            autoencoder_uri=storage.absolute(autoencoder.uri),
        )
    return Artifact(output_uri, CalmFacts)


def _refuse_other_architectures(public: _PublicFolder) -> None:
    heads = public.config.get("num_attention_heads")
    fixed = {"num_key_value_heads": heads, "rope_scaling": None, "hidden_act": "silu", "attention_bias": False}
    for name, expected in fixed.items():
        if public.config.get(name, expected) != expected:
            raise ArtifactError(f"{public.config_path}: {name} is {public.config[name]}, these models have {expected}")


def _imported(settings: TrainingConfig) -> dict[str, Any]:
    """The config of an imported artifact; how it was trained is not known, so that part holds our defaults."""
    return settings.model_dump(mode="json") | {"seed": 0}


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


def _tokenizer(config: Mapping[str, Any], folders: list[str]) -> Tokenizer:
    """The first folder with a tokenizer.json; special tokens as the model's config says, where it does."""
    named = [folder for folder in folders if folder]
    folder = next((folder for folder in named if (Path(folder) / "tokenizer.json").exists()), named[0])
    eos = config.get("eos_token_id")
    eos_id = eos[0] if isinstance(eos, list) else eos
    tokenizer = Tokenizer.from_folder(folder, config.get("pad_token_id"), eos_id, end_fills_up=True)
    if (bos_id := config.get("bos_token_id")) != tokenizer.eos_id:
        tokenizer.bos_id = bos_id
    return tokenizer


def _autoencoder_path(path: Path, config: Mapping[str, Any], asked: str) -> Path:
    named = str(config["ae_path"])
    for candidate in [Path(asked)] if asked else [path / named, Path(named)]:
        if (candidate / CONFIG_NAME).exists():
            return candidate
    raise CalmError(
        f"{path}: its autoencoder {asked or named!r} is no folder here; download it and name it with autoencoder_folder"
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
        raise ArtifactError(f"{path}: cannot be read ({first_line(error)}); download it again") from None


def _untied(path: Path, weights: Weights) -> Weights:
    """The weights without second copies of tied ones, which must not differ."""
    for name, source in _TIED.items():
        if name in weights and source in weights and not torch.equal(weights[name], weights[source]):
            raise ArtifactError(f"{path}: {name} differs from {source}; in these models they are one")
    return {name: value for name, value in weights.items() if name not in _TIED}


def _with_copies(autoencoder: Artifact[AutoencoderFacts]) -> Weights:
    """The weights with the copies of tied ones that the folder had; ours get all, so that no reader misses one."""
    weights, tied = load_weights(autoencoder), autoencoder.facts.tied
    return weights | {name: weights[_TIED[name]].clone() for name in (_TIED if tied is None else tied)}


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


def _kept_config(artifact: Artifact[ModelFacts]) -> dict[str, Any]:
    """The config that an imported artifact came with."""
    if any(entry.path == CONFIG_NAME for entry in artifact.manifest.files):
        return dict(artifact.read_json(CONFIG_NAME))
    return {}


def _common_config(facts: ModelFacts) -> dict[str, Any]:
    return {
        "vocab_size": facts.vocab_size,
        "pad_token_id": facts.pad_id,
        "eos_token_id": facts.eos_id,
        "bos_token_id": facts.eos_id
        if facts.bos_id is None
        else facts.bos_id,  # what a document follows, or begins with
    }


def _theirs(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: settings[ours] for theirs, ours in names.items()}


def _autoencoder_config(artifact: Artifact[AutoencoderFacts]) -> dict[str, Any]:
    model = artifact.manifest.config["model"]
    if (kind := model.get("kind", _AUTOENCODER_KIND)) != _AUTOENCODER_KIND:
        raise CalmError(
            f"{artifact.uri}: the public format knows {_AUTOENCODER_KIND} autoencoders only, this is {kind}"
        )
    known = _theirs(model, _AUTOENCODER_SETTINGS)
    return _kept_config(artifact) or {"model_type": "autoencoder", **_common_config(artifact.facts), **known}


def _calm_config(artifact: Artifact[CalmFacts]) -> dict[str, Any]:
    model = artifact.manifest.config["model"]
    head = model["head"]
    if head["kind"] != _HEAD_KIND:
        raise CalmError(f"{artifact.uri}: the public format knows the {_HEAD_KIND} head only, this is {head['kind']}")
    known = _theirs(model, _CALM_SETTINGS) | _theirs(head, _HEAD_SETTINGS)
    shape = {"patch_size": artifact.facts.chunk_size, "latent_size": artifact.facts.latent_size}
    heads = {"num_key_value_heads": model["num_attention_heads"], "ae_path": "autoencoder"}
    return _kept_config(artifact) or {
        "model_type": "energy",
        **_common_config(artifact.facts),
        **known,
        **shape,
        **heads,
    }
