"""Writing public folders, as the public code reads them with transformers 4.43 and tokenizers 0.19."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers

from calm_core.config import AutoencoderConfig, CalmConfig
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import CalmError
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter, Manifest
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ExportFacts, ModelFacts
from calm_core.telemetry.progress import report
from calm_core.weights.huggingface.config import (
    AUTOENCODER_SETTINGS,
    CALM_SETTINGS,
    CONFIG_NAME,
    HEAD_SETTINGS,
    theirs,
)
from calm_core.weights.huggingface.files import SAFETENSORS_NAME, Weights
from calm_core.weights.huggingface.importing import AUTOENCODER_PREFIX, ORIGINAL, TIED, TOKENIZER_FILES, Tell
from calm_core.weights.lineage import autoencoder_of
from calm_core.weights.load import load_weights, settings_of

_AUTOENCODER_FOLDER = "autoencoder"
_TARGET_SAMPLES = 100  # fixed in the public code
_AUTOENCODER_KIND, _HEAD_KIND = "mlp", "energy"  # what the public format can express


def export_checkpoint(
    uri: str, output: str, *, autoencoder_uri: str = "", overwrite: bool = False, tell: Tell | None = None
) -> Path:
    """Write an `autoencoder` or `calm` artifact as a public folder: config.json, model.safetensors, the tokenizer.

    The folder is an artifact of its own, whose manifest says which files in it are ours.

    Args:
        uri: The artifact.
        output: The folder that is made; in that of a CALM model, `autoencoder` is the folder that its `ae_path` names.
        autoencoder_uri: The autoencoder of a CALM model; unset, where it was when the model was trained on it.
        overwrite: Whether another export that lies there is replaced (see `ArtifactWriter`).
        tell: Called with a line for each setting of training that the format cannot hold.

    Raises:
        CalmError: An artifact is unusable, or of a kind or shape that the public code does not have; or what lies at
            the output is not ours to replace.
    """
    calm = Artifact(uri, CalmFacts) if Manifest.read(uri).kind == CalmFacts.kind else None
    autoencoder = autoencoder_of(calm, autoencoder_uri) if calm else Artifact(uri, AutoencoderFacts)
    models: list[Artifact[Any]] = [autoencoder, calm] if calm else [autoencoder]
    parents = {model.manifest.kind: model.digest for model in models}
    writer = ArtifactWriter(output, ExportFacts, {}, parents, overwrite=overwrite)
    writer.check()
    config = _calm_config(calm) | {"ae_path": _place(storage.join(output, _AUTOENCODER_FOLDER))} if calm else {}
    inner_config = _autoencoder_config(autoencoder)
    report("export", note=f"reading {uri}, writing {output}")
    inner = _autoencoder_weights(autoencoder)
    files = _files(autoencoder, inner_config, inner)
    if calm:
        weights = load_weights(calm) | {AUTOENCODER_PREFIX + name: value for name, value in inner.items()}
        files = {f"{_AUTOENCODER_FOLDER}/{name}": data for name, data in files.items()}
        files |= _files(calm, config, weights)
    if tell:
        for model in models:
            for line in _untold(model):
                tell(line)
    with writer:
        for name, data in files.items():
            writer.write(name, data)
        writer.facts = ExportFacts()
    return Path(output)


def _place(uri: str) -> str:
    """A folder as the public code finds it from wherever it runs."""
    return str(Path(storage.filesystem_of(uri)[1]).resolve()) if storage.is_local(uri) else uri


def _files(artifact: Artifact[ModelFacts], config: dict[str, Any], weights: Weights) -> dict[str, bytes]:
    """A folder's files."""
    return {
        SAFETENSORS_NAME: safetensors.torch.save(weights, metadata={"format": "pt"}),
        **_tokenizer_files(artifact, config),
        CONFIG_NAME: _json(config),
    }


def _autoencoder_weights(artifact: Artifact[AutoencoderFacts]) -> Weights:
    """The weights with copies of tied ones: without them, the public loader leaves the logits' weights as they were."""
    weights = load_weights(artifact)
    return weights | {name: weights[source].clone() for name, source in TIED.items()}


def _autoencoder_config(artifact: Artifact[AutoencoderFacts]) -> dict[str, Any]:
    model = settings_of(artifact, AutoencoderConfig).model.model_dump(mode="json")
    if (kind := model["kind"]) != _AUTOENCODER_KIND:
        raise CalmError(
            f"{artifact.uri}: the public format knows {_AUTOENCODER_KIND} autoencoders only, this is {kind}"
        )
    layers = {name: model[name] for name in ("num_encoder_layers", "num_decoder_layers")}
    if odd := [f"{name} {number}" for name, number in layers.items() if number % 2]:
        raise CalmError(
            f"{artifact.uri}: has {' and '.join(odd)}; the public code runs half of them, rounded down, on either "
            "side, so it would leave one out: only even numbers can be exported"
        )
    known = {"architectures": ["Autoencoder"], **theirs(model, AUTOENCODER_SETTINGS)}
    # The folder that was imported may have had layers that nothing used.
    return (_kept_config(artifact) or _common_config(artifact.facts) | known) | layers


def _calm_config(artifact: Artifact[CalmFacts]) -> dict[str, Any]:
    model = settings_of(artifact, CalmConfig).model.model_dump(mode="json")
    head = model["head"]
    if head["kind"] != _HEAD_KIND:
        raise CalmError(f"{artifact.uri}: the public format knows the {_HEAD_KIND} head only, this is {head['kind']}")
    known = {
        "model_type": "energy",
        "architectures": ["EnergyTransformer"],
        "patch_size": artifact.facts.chunk_size,
        "latent_size": artifact.facts.latent_size,
        "num_key_value_heads": model["num_attention_heads"],
        **theirs(model, CALM_SETTINGS),
        **theirs(head, HEAD_SETTINGS),
    }
    return _kept_config(artifact) or _common_config(artifact.facts) | known


def _untold(artifact: Artifact[Any]) -> Iterator[str]:
    """What the public code would train on with other settings than this model had."""
    of_calm = isinstance(artifact.facts, CalmFacts)
    settings = settings_of(artifact, CalmConfig) if of_calm else settings_of(artifact, AutoencoderConfig)
    model = settings.model.model_dump()
    latent, token = model.get("latent_dropout"), model.get("token_dropout")
    if latent != token:
        yield f"{artifact.uri}: ae_dropout stands for both dropouts: {latent} is written, token_dropout {token} is not"
    samples = model.get("head", {}).get("target_samples", _TARGET_SAMPLES)
    if samples != _TARGET_SAMPLES:
        yield f"{artifact.uri}: the public code has {_TARGET_SAMPLES} target samples, this model {samples}"


def _common_config(facts: ModelFacts) -> dict[str, Any]:
    return {
        "vocab_size": facts.vocab_size,
        "hidden_act": "silu",
        "pad_token_id": facts.pad_id,
        "eos_token_id": facts.eos_id,
        # What a document follows, or begins with.
        "bos_token_id": facts.eos_id if facts.bos_id is None else facts.bos_id,
    }


def _kept_config(artifact: Artifact[ModelFacts]) -> dict[str, Any]:
    """The config that an imported artifact came with."""
    if not _holds(artifact, CONFIG_NAME):
        return {}
    config = artifact.read_json(CONFIG_NAME)
    if not isinstance(config, dict):
        raise artifact.damaged(CONFIG_NAME, "no JSON object")
    return config


def _tokenizer_files(artifact: Artifact[ModelFacts], config: dict[str, Any]) -> dict[str, bytes]:
    """The tokenizer's own files, where it came with some; else such that tokenizers 0.19 reads them."""
    kept = [name for name in TOKENIZER_FILES if _holds(artifact, ORIGINAL + name)]
    files = {name: artifact.read(ORIGINAL + name) for name in kept}
    data = artifact.read(TOKENIZER_NAME)
    names = _special_tokens(data, config)
    made = {
        "tokenizer.json": _with_plain_merges(data),
        "tokenizer_config.json": _json(
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
        ),
        "special_tokens_map.json": _json(names),
    }
    return made | files


def _special_tokens(data: bytes, config: dict[str, Any]) -> dict[str, str]:
    """The names of the special tokens by their roles; an id that only the model knows has none."""
    backend = tokenizers.Tokenizer.from_buffer(data)
    names = {}
    for role in ("bos_token", "eos_token", "pad_token"):
        number = config.get(f"{role}_id")
        name = None if number is None else backend.id_to_token(number[0] if isinstance(number, list) else number)
        if name is not None:
            names[role] = name
    return names


def _with_plain_merges(data: bytes) -> bytes:
    """A tokenizer.json with merges as tokenizers before 0.20 writes them: "a b" for ["a", "b"]."""
    settings = json.loads(data)
    merges = settings["model"].get("merges", [])
    if not all(isinstance(merge, list) for merge in merges) or any(" " in part for merge in merges for part in merge):
        return data
    settings["model"]["merges"] = [" ".join(merge) for merge in merges]
    return json.dumps(settings, indent=2, ensure_ascii=False).encode()


def _holds(artifact: Artifact[ModelFacts], path: str) -> bool:
    return any(entry.path == path for entry in artifact.manifest.files)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
