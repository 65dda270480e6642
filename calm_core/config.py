"""One typed configuration. Defaults < profile (YAML) < `--set section.key=value`.

Each stage receives only its own section, so that changing one setting reruns only what depends on it.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calm_core.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Sources of text and the shape of the shards."""

    sources: tuple[str, ...] = Field(
        (),
        description="paths, globs or fsspec URLs of .jsonl, .jsonl.gz, .jsonl.zst, .parquet and .txt files, and of "
        "folders that Hugging Face's datasets has saved",
    )
    text_field: str = Field("text", min_length=1, description="the field or column that holds the text")
    partitions: int = Field(2, ge=1, description="parts of the sources that are prepared side by side")
    extends: str = Field("", description="a dataset that is taken over whole; only sources that it lacks are read")
    replace_changed: bool = Field(
        False, description="with extends: prepare all sources anew when one changed under its name"
    )
    damaged_files: Literal["fail", "reject"] = Field(
        "fail", description="reject: keep what comes before the damage in a truncated or corrupt file, count one reject"
    )
    unicode_normalization: Literal["none", "NFC", "NFKC"] = Field("none", description="form that every text is put in")
    validation_fraction: float = Field(
        0.05, gt=0, lt=1, description="share of documents held out, by a hash of the text"
    )
    near_duplicate_threshold: float = Field(
        0.0,
        ge=0,
        le=0.95,
        description="drop documents about this similar to an earlier one (Jaccard, MinHash), 0.5 to 0.95; 0: off",
    )
    sequence_length: int = Field(512, ge=2, description="tokens in a sequence")
    document_alignment: int = Field(8, ge=1, description="documents begin on a multiple of this many tokens")
    rows_per_group: int = Field(256, ge=1, description="sequences in a Parquet row group")
    rows_per_shard: int = Field(16384, ge=1, description="sequences in a Parquet file, a multiple of rows_per_group")
    min_document_bytes: int = Field(1, ge=1, description="a shorter document is rejected")
    max_document_bytes: int = Field(10_000_000, ge=1, description="a longer document is rejected")
    txt_document_bytes: int = Field(
        16384, ge=1, description="a longer .txt file is cut into documents of about this size"
    )
    max_reject_fraction: Fraction = Field(0.1, description="share of rejected documents above which preparing fails")

    @model_validator(mode="after")
    def _units_are_whole(self) -> Self:
        for whole, unit in (("sequence_length", "document_alignment"), ("rows_per_shard", "rows_per_group")):
            if getattr(self, whole) % getattr(self, unit):
                raise ValueError(
                    f"{whole} ({getattr(self, whole)}) must be a multiple of {unit} ({getattr(self, unit)})"
                )
        if 0 < self.near_duplicate_threshold < 0.5:
            raise ValueError(
                f"near_duplicate_threshold ({self.near_duplicate_threshold}) must be 0 (off) or 0.5 and more; "
                "below it, most of what is found is no near-duplicate"
            )
        if self.min_document_bytes > self.max_document_bytes:
            raise ValueError(
                f"min_document_bytes ({self.min_document_bytes}) must not exceed max_document_bytes "
                f"({self.max_document_bytes})"
            )
        return self


class TokenizerConfig(Section):
    """Byte-level BPE, trained on the training documents; or one that exists."""

    vocab_size: int = Field(2048, ge=258, le=2**32, description="tokens, the 256 bytes and 2 special tokens included")
    max_training_bytes: int = Field(
        100_000_000, ge=1, description="bytes of training text that the merges are learned from"
    )
    source: str = Field(
        "",
        description="a tokenizer.json, a Hugging Face folder, or a Llama-3 tokenizer.model, taken instead of training "
        "one; vocab_size is then its own",
    )
    pad_token: str | None = Field(None, description="of that tokenizer; unset: as its files say")
    eos_token: str | None = Field(None, description="of that tokenizer, ends a document; unset: as its files say")


class TrainingConfig(Section):
    """How one model is trained; shared by every model. Batch sizes count sequences."""

    steps: int = Field(ge=1, description="optimiser steps")
    global_batch_size: int = Field(16, ge=1, description="sequences in one optimiser step, over all ranks")
    micro_batch_size: int = Field(16, ge=1, description="sequences that one rank computes at a time")
    processes: int | None = Field(None, ge=1, description="ranks on this node; unset: one a GPU, or one on CPU")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU, fp32 on CPU")
    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(100, ge=0, description="linear warm-up")
    decay_fraction: float = Field(
        0.0, ge=0, le=1, description="last share of the steps with linear decay to zero; 0: constant"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field((0.9, 0.95))
    weight_decay: float = Field(0.1, ge=0)
    gradient_clipping: float = Field(1.0, gt=0, description="largest gradient norm")
    log_interval: int = Field(10, ge=1, description="steps between two points of the training curves")
    validation_interval: int = Field(
        100, ge=1, description="steps between two validations; the last step is always validated"
    )
    validation_sequences: int = Field(32, ge=1, description="held-out sequences in a validation during training")
    checkpoint_interval: int = Field(500, ge=1, description="steps between two checkpoints")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.global_batch_size % (self.micro_batch_size * (self.processes or 1)):
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of micro_batch_size x processes "
                f"({self.micro_batch_size} x {self.processes or 1})"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        return self


class AutoencoderModelConfig(Section):
    """The autoencoder's shape and loss (CALM paper, arXiv 2510.27688, section on the autoencoder)."""

    chunk_size: int = Field(4, ge=1, description="K, tokens in a chunk")
    latent_size: int = Field(128, ge=1, description="l, numbers in a chunk's vector")
    hidden_size: int = Field(512, ge=1)
    intermediate_size: int = Field(1280, ge=1)
    num_encoder_layers: int = Field(
        2, ge=1, description="residual blocks; the first half (rounded up) before squeezing"
    )
    num_decoder_layers: int = Field(
        2, ge=1, description="residual blocks; the first half (rounded down) before expansion"
    )
    kl_weight: float = Field(1e-3, ge=0)
    kl_clip: float = Field(
        0.5, ge=0, description="smallest KL per latent dimension, in nats; stops dimensions from collapsing"
    )
    latent_dropout: Fraction = Field(0.15, description="dropout on the latent while training")
    token_dropout: Fraction = Field(0.15, description="input tokens masked while training")
    rms_norm_eps: float = Field(1e-6, gt=0)


class BackboneConfig(Section):
    """The shape of a Llama-style Transformer; CALM and the token-level baseline share it."""

    hidden_size: int = Field(1024, ge=2)
    intermediate_size: int = Field(2752, ge=1)
    num_hidden_layers: int = Field(16, ge=1)
    num_attention_heads: int = Field(16, ge=1)
    rope_theta: float = Field(500_000.0, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be "
                f"num_attention_heads ({self.num_attention_heads}) times an even number"
            )
        return self


class CalmModelConfig(BackboneConfig):
    """The language model's shape and loss; chunk and latent size come from the autoencoder."""

    head: Literal["energy", "diffusion", "flow"] = Field("energy", description="generative head over the latent")
    num_head_layers: int = Field(4, ge=1, description="blocks of the head; the paper uses a quarter of the layers")
    noise_size: int = Field(64, ge=1, description="uniform noise that the energy head turns into a sample")
    model_samples: int = Field(
        8, ge=2, description="N, samples of the head per position in the energy loss; noise draws in the other losses"
    )
    target_samples: int = Field(100, ge=1, description="M, samples of the autoencoder's posterior in the energy loss")
    energy_alpha: float = Field(1.0, gt=0, lt=2, description="exponent of the energy score, strictly proper in (0, 2)")
    diffusion_steps: int = Field(1000, ge=2, description="noise levels that the diffusion head is trained on")
    sampling_steps: int = Field(
        100, ge=1, description="network evaluations of one sample of the diffusion or flow head; flow does with 8"
    )

    @model_validator(mode="after")
    def _levels_for_each_step(self) -> Self:
        if self.head == "diffusion" and self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps ({self.sampling_steps}) must not exceed diffusion_steps ({self.diffusion_steps})"
            )
        return self


class TransformerModelConfig(BackboneConfig):
    """The token-level baseline's shape; its output projection is not tied to the embedding."""

    hidden_size: int = Field(768, ge=2)
    intermediate_size: int = Field(2048, ge=1)
    num_hidden_layers: int = Field(12, ge=1)


class AutoencoderConfig(TrainingConfig):
    """Model and training of the autoencoder."""

    steps: int = Field(30_000, ge=1, description="optimiser steps")
    model: AutoencoderModelConfig = AutoencoderModelConfig()


class LanguageModelTrainingConfig(TrainingConfig):
    """How a model with a Transformer backbone is trained."""

    steps: int = Field(250_000, ge=1, description="optimiser steps")
    activation_checkpointing: bool = Field(
        False, description="compute each layer's activations again in the backward pass, to save memory"
    )
    compile: bool = Field(False, description="torch.compile each layer; needs Triton on a GPU, a C++ compiler on CPU")


class CalmConfig(LanguageModelTrainingConfig):
    """Model and training of the CALM language model."""

    model: CalmModelConfig = CalmModelConfig()


class TransformerConfig(LanguageModelTrainingConfig):
    """Model and training of the token-level Transformer baseline."""

    model: TransformerModelConfig = TransformerModelConfig()


class EvaluationConfig(Section):
    """The protocol of BrierLM, and the texts that are shown."""

    samples: int = Field(8, ge=2, description="S, model samples per position")
    position_interval: int | None = Field(
        None,
        ge=1,
        description="tokens between two scored positions, a multiple of K; unset: the smallest one of 4 and K",
    )
    max_sequences: int = Field(256, ge=1, description="held-out sequences that are scored")
    batch_size: int = Field(8, ge=1, description="sequences scored at a time")
    bootstrap_resamples: int = Field(1000, ge=100, description="resamples of sequences for the confidence intervals")
    confidence: float = Field(0.95, gt=0, lt=1, description="level of the confidence intervals")
    prompts: tuple[str, ...] = Field(("The climate of", "The economy depends on", "In the early 19th century,"))
    prompt_tokens: int = Field(64, ge=1, description="tokens written for each prompt")
    temperature: float = Field(0.5, gt=0, le=1, description="temperature of the texts that are shown")
    temperature_samples: int = Field(200, ge=1, description="samples per chunk of the temperature sampler")


class RegistryConfig(Section):
    """Where the model is registered in MLflow."""

    model_name: str = Field("calm", pattern=r"^[^/:.\"%']+$")
    alias: str = Field("champion", pattern=r"^[A-Za-z][\w-]*$")


class Config(Section):
    """Every setting of a pipeline run."""

    seed: int = Field(0, ge=0, lt=2**31)
    experiment: str = Field("calm", min_length=1, description="MLflow experiment")
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    calm: CalmConfig = CalmConfig()
    train_baseline: bool = Field(False, description="train and score the token-level Transformer baseline too")
    transformer: TransformerConfig = TransformerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _chunks_do_not_straddle_documents(self) -> Self:
        chunk_size = self.autoencoder.model.chunk_size
        if self.data.document_alignment % chunk_size:
            raise ValueError(
                f"data.document_alignment ({self.data.document_alignment}) must be a multiple of "
                f"autoencoder.model.chunk_size ({chunk_size}), else a chunk straddles two documents"
            )
        if self.data.sequence_length < 2 * chunk_size:
            raise ValueError(
                f"data.sequence_length ({self.data.sequence_length}) must hold two chunks of "
                f"autoencoder.model.chunk_size ({chunk_size})"
            )
        return self


SectionT = TypeVar("SectionT", bound=Section)


def parse_section(section_type: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Validate plain values (from YAML, JSON or a pipeline parameter).

    Raises:
        ConfigError: One line that names the first bad key.
    """
    try:
        return section_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_error_line(section_type, error)) from None


def resolve_config(profile: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A profile's values with `section.key=value` overrides applied; values are read as YAML.

    Raises:
        ConfigError: An override is no `key=value`, or a key or value is refused.
    """
    values: dict[str, Any] = dict(profile)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: expected section.key=value, e.g. --set calm.learning_rate=1e-3")
        values = _with_value(values, key.strip().split("."), _parse_value(text, override))
    return parse_section(Config, values)


def _parse_value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None


def _with_value(values: Any, path: list[str], value: Any) -> dict[str, Any]:
    """A copy of nested mappings with one leaf replaced."""
    branch = dict(values) if isinstance(values, Mapping) else {}
    branch[path[0]] = value if len(path) == 1 else _with_value(branch.get(path[0]), path[1:], value)
    return branch


def _first_error_line(section_type: type[Section], error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, list(setting_names(section_type)), n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "`calm config` lists all settings"
        return f"unknown setting {key}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message} (got {first['input']!r})"


def setting_names(section_type: type[Section]) -> Iterator[str]:
    """Dotted names of all settings of a section, its sub-sections' included."""
    for name, field in section_type.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section) and not get_args(nested):
            yield from (f"{name}.{inner}" for inner in setting_names(nested))
        else:
            yield name
