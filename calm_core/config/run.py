"""Every setting of a run, and how they are resolved: defaults < profile < `section.key=value`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from calm_core.config import text as settings_text
from calm_core.config.autoencoder import AUTOENCODERS, AutoencoderConfig
from calm_core.config.base import Name, Section, parse_section, setting_names
from calm_core.config.cluster import ClusterConfig
from calm_core.config.data import DataConfig, TokenizerConfig
from calm_core.config.decoder_losses import DECODER_LOSSES
from calm_core.config.evaluation import EvaluationConfig
from calm_core.config.heads import HEADS
from calm_core.config.language_model import CalmConfig, TransformerConfig
from calm_core.config.registry import RegistryConfig
from calm_core.config.retraining import RetrainingConfig
from calm_core.errors import ConfigError
from calm_core.shown import shortened


class Config(Section):
    """Every setting of a pipeline run."""

    seed: int = Field(0, ge=0, lt=2**31)
    experiment: Name = Field("calm", min_length=1, description="MLflow experiment")
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    calm: CalmConfig = CalmConfig()
    train_baseline: bool = Field(False, description="train and score the token-level Transformer baseline too")
    transformer: TransformerConfig = TransformerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig = RegistryConfig()
    retraining: RetrainingConfig = RetrainingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _chunks_do_not_straddle_documents(self) -> Self:
        chunk_size = self.autoencoder.model.chunk_size
        if self.data.packing == "documents" and self.data.document_alignment % chunk_size:
            raise ValueError(
                f"data.document_alignment ({self.data.document_alignment}) must be a multiple of "
                f"autoencoder.model.chunk_size ({chunk_size}), else a chunk straddles two documents"
            )
        if self.data.sequence_length % chunk_size:
            raise ValueError(
                f"data.sequence_length ({self.data.sequence_length}) must be a multiple of "
                f"autoencoder.model.chunk_size ({chunk_size})"
            )
        if self.data.sequence_length < 2 * chunk_size:
            raise ValueError(
                f"data.sequence_length ({self.data.sequence_length}) must hold two chunks of "
                f"autoencoder.model.chunk_size ({chunk_size})"
            )
        self.evaluation.interval(chunk_size, self.data.sequence_length)  # refused now, not once all is trained
        return self

    @model_validator(mode="after")
    def _tokenizer_has_texts(self) -> Self:
        if self.data.validation_fraction == 1 and not (self.tokenizer.source or self.data.extends):
            raise ValueError(
                "data.validation_fraction (1) leaves no text to learn a tokenizer from; name the model's own with "
                "tokenizer.source"
            )
        return self

    @model_validator(mode="after")
    def _tokenizer_has_room(self) -> Self:
        least = 256 + 3  # one more than any tokenizer needs
        is_trained = not (self.tokenizer.source or self.data.extends)
        if is_trained and self.data.start_of_text and self.tokenizer.vocab_size < least:
            raise ValueError(
                f"tokenizer.vocab_size ({self.tokenizer.vocab_size}) must be {least} or more: with data.start_of_text "
                "there are 256 bytes and 3 special tokens"
            )
        return self

    @model_validator(mode="after")
    def _start_of_text_is_used(self) -> Self:
        if self.tokenizer.bos_token is not None and not self.data.start_of_text:
            raise ValueError(
                f"tokenizer.bos_token ({self.tokenizer.bos_token}) begins documents with data.start_of_text=true only; "
                "set that, or leave it out"
            )
        return self


def resolve_config(
    profile: Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Config:
    """A profile's values with overrides applied: those that choose a kind first, since it brings its own defaults.

    Args:
        profile: Sections with settings.
        overrides: `section.key=value`, the value read as YAML.
        given: Values that are no text to read, by `section.key`; they come last.

    Raises:
        ConfigError: An override is no `key=value`, or a key or value is refused.
    """
    changes: list[tuple[str, Any]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            colon = re.fullmatch(r"\s*([\w.]+)\s*:\s*([^\s/:].*)", override)
            example = f"{colon[1]}={colon[2]}" if colon else "calm.learning_rate=1e-3"
            raise ConfigError(f"override {shortened(override)}: expected section.key=value, e.g. {shortened(example)}")
        if (second := re.search(r"[,;]\s*([\w.]+)=", text)) and second[1] in setting_names(Config):
            raise ConfigError(f"override {shortened(override)}: is more than one setting; give {second[1]} on its own")
        changes.append((key.strip(), _parse_value(text, override)))
    changes += (given or {}).items()
    values: dict[str, Any] = dict(profile)
    for key, value in sorted(changes, key=lambda change: not _is_kind(*change)):
        values = _overridden(values, key, value)
    return parse_section(Config, values)


_DEEPEST_KEY = 10
_KINDS = {
    name: kinds for kinds in (HEADS, AUTOENCODERS, DECODER_LOSSES) for name in (kinds.setting, f"{kinds.setting}.kind")
}


def _is_kind(key: str, value: Any) -> bool:
    return key in _KINDS and isinstance(value, str)


def _overridden(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Settings with one replaced. Another kind brings its own defaults: it does not know those of the one before."""
    if _is_kind(key, value):
        kinds = _KINDS[key]
        key, value = kinds.setting, kinds.switched(_value_at(values, kinds.setting.split(".")), value)
    path = key.split(".")
    if len(path) > _DEEPEST_KEY:
        raise ConfigError(f"unknown setting {shortened(key)}; `calm config` lists all settings")
    return _with_value(values, path, value)


def _value_at(values: Any, path: list[str]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _parse_value(text: str, override: str) -> Any:
    try:
        return settings_text.read(text)
    except ValueError as error:
        raise ConfigError(f"override {shortened(override)}: the value is not valid YAML ({error})") from None


def _with_value(values: Any, path: list[str], value: Any) -> dict[str, Any]:
    """A copy of nested mappings with one leaf replaced."""
    branch = dict(values) if isinstance(values, Mapping) else {}
    branch[path[0]] = value if len(path) == 1 else _with_value(branch.get(path[0]), path[1:], value)
    return branch
