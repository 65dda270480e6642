"""Reading public folders. All is checked before anything is written, so a refusal leaves nothing behind."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from calm_core.config import TrainingConfig
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, CalmError
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.shown import brief, listed, visible
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter, Manifest
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts
from calm_core.weights.curves import CURVES_NAME
from calm_core.weights.huggingface.config import (
    CONFIG_NAME,
    PublicAutoencoder,
    PublicCalm,
    PublicConfig,
    read_config,
    refuse_other_heads,
    told_keys,
)
from calm_core.weights.huggingface.files import (
    Weights,
    has_file,
    has_weights,
    read_file,
    read_weights,
    why_not_here,
)
from calm_core.weights.load import WEIGHTS_NAME

ORIGINAL = "original-"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
AUTOENCODER_PREFIX = "ae_model."

TIED = {"decoder.lm_head_weight": "encoder.embed_tokens.weight"}
_ALIASES = {"generative_head.": "mlp_generator.", **TIED}  # beginnings of second names that the public code uses

_LEAST_USED = 0.9  # of the tokens that a model knows
_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?huggingface\.co/)(?:models/)?([\w.-]+/([\w.-]+))")
Tell = Callable[[str], object]


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer, and its files as they came."""

    tokenizer: Tokenizer
    files: dict[str, bytes]


@dataclass(frozen=True)
class _Checked:
    """A model of a public folder that fits ours, ready to be written."""

    written_config: dict[str, Any]
    weights: Weights
    vocab_size: int

    def files(self, vocabulary: _Vocabulary) -> Iterator[tuple[str, bytes]]:
        """The files of its artifact."""
        contiguous = {name: value.contiguous() for name, value in self.weights.items()}
        yield WEIGHTS_NAME, safetensors.torch.save(contiguous)
        yield TOKENIZER_NAME, vocabulary.tokenizer.to_bytes()
        yield CURVES_NAME, b""
        yield CONFIG_NAME, json.dumps(self.written_config, indent=2, sort_keys=True).encode()
        for name, data in vocabulary.files.items():
            yield ORIGINAL + name, data

    def is_in(self, manifest: Manifest, vocabulary: _Vocabulary) -> bool:
        """Whether an artifact holds these very files; its settings do not tell, since they name no weights."""
        own = {name: hashlib.sha256(data).hexdigest() for name, data in self.files(vocabulary)}
        return own == {entry.path: entry.sha256 for entry in manifest.files}

    def write(self, writer: "ArtifactWriter[Any]", vocabulary: _Vocabulary) -> dict[str, Any]:
        """Write the files of its artifact, and return what every model's facts hold."""
        tokenizer = vocabulary.tokenizer
        for name, data in self.files(vocabulary):
            writer.write(name, data)
        return {
            "parameters": sum(value.numel() for value in self.weights.values()),
            "vocab_size": self.vocab_size,
            "pad_id": tokenizer.pad_id,
            "eos_id": tokenizer.eos_id,
            "bos_id": tokenizer.bos_id,
            # The public code packs like this, with BOS in front; where BOS is EOS, the folder is one of our exports.
            "packing": "documents" if tokenizer.bos_id is None else "contiguous",
        }


def import_checkpoint(
    folder: str,
    output_uri: str,
    *,
    autoencoder_folder: str = "",
    tokenizer_folder: str = "",
    overwrite: bool = False,
    tell: Tell | None = None,
) -> dict[str, Artifact[ModelFacts]]:
    """Read a public checkpoint.

    Args:
        folder: A public autoencoder's or CALM model's folder, on this machine.
        output_uri: An autoencoder is written here; a CALM model below it, as `autoencoder` and `calm`.
        autoencoder_folder: The folder of a CALM model's autoencoder; unset, one inside or beside `folder` that has the
            name in its config (`ae_path`).
        tokenizer_folder: Where tokenizer.json lies; unset, `folder`, else the autoencoder's.
        overwrite: Whether other models that lie there are replaced (see `ArtifactWriter`).
        tell: Called with a line for each folder that names the keys of its config that are not used.

    Returns:
        The artifacts by their kinds.

    Raises:
        CalmError: The folder is none of these, is incomplete, or does not fit these models; then nothing is written.
    """
    if not folder:
        raise CalmError("the folder of the checkpoint is empty; name one")
    for place in filter(None, (folder, autoencoder_folder, tokenizer_folder)):
        if "://" in place and not place.startswith("file://"):
            told = f"{place}: is no folder on this machine; download it first"
            hub = _HUB.match(place)
            raise CalmError(f"{told}: hf download {hub[1]} --local-dir {hub[2]}" if hub else told)
    path = Path(folder)
    config, written = read_config(path)
    if isinstance(config, PublicAutoencoder):
        if autoencoder_folder:
            raise CalmError(f"{path}: is an autoencoder itself; leave out autoencoder_folder")
        _require_other_places([path], [output_uri])
        output = _Output(output_uri, AutoencoderFacts, config.ours(), overwrite)
        output.check()
        vocabulary = _read_vocabulary(path, config, [tokenizer_folder, folder])
        checked = _check_autoencoder(path, config, written, read_weights(path))
        output.check(checked, vocabulary)
        _tell_keys(tell, path, config)
        with _all_or_nothing(output_uri):
            return {"autoencoder": _write_autoencoder(checked, vocabulary, output)}
    inner_path = _autoencoder_path(path, config, autoencoder_folder)
    outputs = storage.join(output_uri, "autoencoder"), storage.join(output_uri, "calm")
    _require_other_places([path, inner_path], list(outputs))
    inner_config, inner_written = read_config(inner_path)
    if not isinstance(inner_config, PublicAutoencoder):
        raise ArtifactError(f"{inner_path}: is no autoencoder; name that of {path} with autoencoder_folder")
    first_output = _Output(outputs[0], AutoencoderFacts, inner_config.ours(), overwrite)
    calm_output = _Output(outputs[1], CalmFacts, config.ours(), overwrite)
    first_output.check()
    calm_output.check()
    vocabulary = _read_vocabulary(path, config, [tokenizer_folder, folder, str(inner_path)])
    _require_one_shape(path, config, inner_path, inner_config)
    weights = read_weights(path)
    inside = {n.removeprefix(AUTOENCODER_PREFIX): v for n, v in weights.items() if n.startswith(AUTOENCODER_PREFIX)}
    inner_weights = read_weights(inner_path) if has_weights(inner_path) else inside
    autoencoder = _check_autoencoder(inner_path, inner_config, inner_written, inner_weights)
    if inside:
        copy = inner_config.used(_without_aliases(path, inside))
        if different := _different(copy, autoencoder.weights):
            raise ArtifactError(
                f"{path}: holds another autoencoder than {inner_path}: {listed(different)}; name the right one"
            )
    calm = _check_calm(path, config, written, weights)
    first_output.check(autoencoder, vocabulary)
    calm_output.check(calm, vocabulary)
    _tell_keys(tell, path, config)
    _tell_keys(tell, inner_path, inner_config)
    with _all_or_nothing(output_uri, *outputs):
        first = _write_autoencoder(autoencoder, vocabulary, first_output)
        return {"autoencoder": first, "calm": _write_calm(calm, config, vocabulary, first, calm_output)}


def _check_autoencoder(path: Path, config: PublicAutoencoder, written: dict[str, Any], weights: Weights) -> _Checked:
    settings = config.ours()
    weights = _without_aliases(path, weights)
    config.require_sizes(path / CONFIG_NAME, weights)
    weights = config.used(weights)
    with torch.device("meta"):
        model = make_autoencoder(settings.model, config.vocab_size)
    _require_fit(path, model, weights)
    return _Checked(written, weights, config.vocab_size)


def _check_calm(path: Path, config: PublicCalm, written: dict[str, Any], weights: Weights) -> _Checked:
    settings = config.ours()
    weights = {
        name: value
        for name, value in weights.items()
        if not name.startswith(AUTOENCODER_PREFIX) and not name.endswith("rotary_emb.inv_freq")
    }
    if any("adaLN_modulation" in name for name in weights):  # a config need not say which head it is
        last = weights.get("generative_head.net.final_layer.linear.weight")
        # Diffusion predicts a variance beside each number.
        has_variance = last is not None and last.shape[0] == 2 * config.latent_size
        refuse_other_heads(path, "diffusion" if has_variance else "flow")
    weights = _without_aliases(path, weights)
    config.require_sizes(path / CONFIG_NAME, weights)
    with torch.device("meta"):
        model = Calm(settings.model, config.vocab_size, config.patch_size, config.latent_size)
    _require_fit(path, model, weights)
    return _Checked(written, weights, config.vocab_size)


def _require_one_shape(path: Path, config: PublicCalm, inner_path: Path, inner: PublicAutoencoder) -> None:
    for name in ("patch_size", "latent_size", "vocab_size"):
        if (mine := getattr(config, name)) != (other := getattr(inner, name)):
            raise ArtifactError(
                f"{path / CONFIG_NAME}: {name} is {mine:,}, that of its autoencoder {inner_path} is {other:,}"
            )


def _require_other_places(sources: list[Path], outputs: list[str]) -> None:
    """An artifact has files of the same names as a public folder."""
    for output in outputs:
        if storage.is_local(output):
            place = Path(storage.filesystem_of(output)[1]).resolve()
            if any(source.resolve() == place for source in sources):
                raise CalmError(f"{output}: is the folder that is read; name another output")


@dataclass(frozen=True)
class _Output:
    """Where a model is written."""

    uri: str
    kind: type[ModelFacts]
    settings: TrainingConfig
    overwrite: bool

    def writer(self, **parents: str) -> "ArtifactWriter[Any]":
        """Of the artifact; how the model was trained is not known, so that part of its config holds our defaults."""
        config = self.settings.model_dump(mode="json") | {"seed": 0}
        return ArtifactWriter(self.uri, self.kind, config, parents, overwrite=self.overwrite)

    def check(self, model: _Checked | None = None, vocabulary: _Vocabulary | None = None) -> None:
        """Refuse a place that is not ours to write to; once the model is read, also one that holds other weights."""
        self.writer().check(lambda made: not (model and vocabulary) or model.is_in(made, vocabulary))


@contextmanager
def _all_or_nothing(*uris: str) -> Iterator[None]:
    """Leave no new folder behind when writing fails."""
    new = [uri for uri in uris if not storage.exists(uri)]
    try:
        yield
    except BaseException:
        for uri in new:
            storage.remove_folder(uri)
        raise


def _write_autoencoder(checked: _Checked, vocabulary: _Vocabulary, output: _Output) -> Artifact[AutoencoderFacts]:
    with output.writer() as writer:
        writer.facts = AutoencoderFacts(**checked.write(writer, vocabulary))
    return Artifact(output.uri, AutoencoderFacts)


def _write_calm(
    checked: _Checked,
    config: PublicCalm,
    vocabulary: _Vocabulary,
    autoencoder: Artifact[AutoencoderFacts],
    output: _Output,
) -> Artifact[CalmFacts]:
    with output.writer(autoencoder=autoencoder.digest) as writer:
        writer.facts = CalmFacts(
            **checked.write(writer, vocabulary),
            chunk_size=config.patch_size,
            latent_size=config.latent_size,
            autoencoder_uri=storage.absolute(autoencoder.uri),
        )
    return Artifact(output.uri, CalmFacts)


def _read_vocabulary(path: Path, config: PublicConfig, folders: list[str]) -> _Vocabulary:
    """The first folder with a tokenizer.json; special tokens as the model's config says, where it does."""
    named = [Path(folder) for folder in folders if folder]
    folder = next((folder for folder in named if has_file(folder, "tokenizer.json")), named[0])
    files = {name: read_file(folder, name) for name in TOKENIZER_FILES if has_file(folder, name)}
    tokenizer = Tokenizer.from_folder(str(folder), config.pad_token_id, config.eos_id, end_fills_up=True)
    if config.bos_token_id != tokenizer.eos_id:
        tokenizer.bos_id = config.bos_token_id
    tokens = tokenizer.vocab_size
    # The embedding may have some more rows, to be a round number of them, and never fewer.
    if not _LEAST_USED * config.vocab_size <= tokens <= config.vocab_size:
        raise ArtifactError(
            f"{path}: the model knows {config.vocab_size:,} tokens, the tokenizer {tokens:,}; "
            "name the model's own with tokenizer_folder"
        )
    return _Vocabulary(tokenizer, files)


def _autoencoder_path(path: Path, config: PublicCalm, asked: str) -> Path:
    """Where the autoencoder lies. A config from outside names a folder, but does not say where we read."""
    name = config.ae_path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    beside = [path / name, path.resolve().parent / name] if name.isprintable() and name not in ("", ".", "..") else []
    for candidate in [Path(asked)] if asked else beside:
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    if asked:
        raise CalmError(f"autoencoder_folder {asked}: {why_not_here(Path(asked))}")
    if not config.ae_path:
        raise CalmError(f"{path}: does not say which autoencoder is its own (ae_path); name it with autoencoder_folder")
    raise CalmError(
        f"{path}: its autoencoder {brief(config.ae_path)} is no folder here; download it and name it with "
        "autoencoder_folder"
    )


def _without_aliases(path: Path, weights: Weights) -> Weights:
    """The weights, each once; what two names stand for must not differ.

    Raises:
        ArtifactError: It does.
    """
    own = {name: _own_name(name) for name in weights}
    single = {name: value for name, value in weights.items() if own[name] == name}
    for name, value in weights.items():
        known = single.setdefault(own[name], value)
        if known is not value and not (known.dtype == value.dtype and torch.equal(known, value)):
            raise ArtifactError(f"{path}: {name} differs from {own[name]}; in these models they are one")
    return single


def _own_name(name: str) -> str:
    return next((ours + name[len(alias) :] for alias, ours in _ALIASES.items() if name.startswith(alias)), name)


def _different(copy: Weights, own: Weights) -> list[str]:
    """Names of what differs from a copy, which may be saved in fewer bits."""
    same = {n for n in copy.keys() & own.keys() if torch.equal(copy[n], own[n].to(copy[n].dtype))}
    return sorted((copy.keys() | own.keys()) - same)


def _require_fit(path: Path, model: nn.Module, weights: Weights) -> None:
    """Refuse weights of other names or shapes than the model's, or with numbers that are none."""
    expected = {name: value.shape for name, value in model.state_dict().items()}
    other_shape = [name for name in sorted(expected.keys() & weights.keys()) if expected[name] != weights[name].shape]
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [f"{name} {list(weights[name].shape)}" for name in other_shape],
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)
        raise ArtifactError(f"{path}: weights do not fit the config: {told}")
    if broken := sorted(name for name, value in weights.items() if not value.isfinite().all()):
        raise ArtifactError(f"{path}: weights hold infinite numbers or none at all (NaN): {listed(broken)}")


def _tell_keys(tell: Tell | None, path: Path, config: PublicConfig) -> None:
    if tell and (told := told_keys(config)):
        tell(f"{visible(str(path / CONFIG_NAME))}: {told}")
