"""config.json of public folders: the keys that are used, those that are checked, and those that change nothing here.

What is left out has the default of the public code, and so has what is null.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calm_core.config import AutoencoderConfig, CalmConfig, parse_section
from calm_core.config.base import Fraction
from calm_core.errors import ArtifactError, CalmError, ConfigError
from calm_core.shown import brief, listed
from calm_core.store.artifact import MANIFEST_NAME
from calm_core.weights.huggingface.files import Weights, has_file, has_weights, read_object, why_not_here

CONFIG_NAME = "config.json"

Size = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]

# Their names of settings -> ours.
AUTOENCODER_SETTINGS = {
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
CALM_SETTINGS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
}
HEAD_SETTINGS = {
    "noise_size": "noise_size",
    "num_mlp_layers": "num_layers",
    "num_samples": "model_samples",
    "beta": "alpha",
}

_WITHOUT_EFFECT = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "attn_implementation",
    "auto_map", "dtype", "initializer_range", "max_position_embeddings", "model_type", "pretraining_tp",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Known keys that do not change what a trained model computes (what there is of them concerns training or loading)."""

_MOST_KEYS = 40  # that a line names

_OTHER_HEADS = {"diffusion": "DiffusionTransformer", "flow": "FlowTransformer"}


class PublicConfig(BaseModel):
    """What a config.json of either kind says.

    Attributes:
        layers: Where the weights of each number of layers lie.
        sizes: A weight that shows each size, the axis of its shape, and the size that it is multiplied with there.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    layers: ClassVar[dict[str, str]]
    sizes: ClassVar[dict[str, tuple[str, int, str]]]

    patch_size: Size
    latent_size: Size
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    hidden_act: Literal["silu", "swish"] = "silu"  # two names of one function
    mlp_bias: Literal[False] = False
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | Annotated[list[TokenId], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _tokens_are_in_the_vocabulary(self) -> Self:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and token >= self.vocab_size:
                    raise ValueError(f"{name} is {brief(token)}, the vocabulary has {self.vocab_size:,} tokens")
        return self

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text; the first one of several."""
        return self.eos_token_id[0] if isinstance(self.eos_token_id, list) else self.eos_token_id

    def require_sizes(self, path: Path, weights: Weights) -> None:
        """Compare the sizes with the weights' shapes, before a model of these sizes is made.

        Raises:
            ArtifactError: A size is another one.
        """
        for name, prefix in self.layers.items():
            found = len({key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix)})
            if found != getattr(self, name):
                raise ArtifactError(f"{path}: {name} is {getattr(self, name):,}, the weights have {found:,}")
        for name, (key, axis, factor) in self.sizes.items():
            if key not in weights:
                raise ArtifactError(f"{path.parent}: weights do not fit the config: missing: {key}")
            shape, unit = weights[key].shape, getattr(self, factor) if factor else 1
            if len(shape) <= axis or shape[axis] != getattr(self, name) * unit:
                times = f" x {factor} {unit:,}" if factor else ""
                raise ArtifactError(
                    f"{path}: {name} is {getattr(self, name):,}{times}, {key} of the weights is of shape {list(shape)}"
                )


class PublicAutoencoder(PublicConfig):
    """config.json of an autoencoder."""

    layers = {"num_encoder_layers": "encoder.encoder_layers.", "num_decoder_layers": "decoder.decoder_layers."}
    sizes = {
        "vocab_size": ("encoder.embed_tokens.weight", 0, ""),
        "hidden_size": ("encoder.embed_tokens.weight", 1, ""),
        "intermediate_size": ("encoder.encoder_layers.0.mlp.gate_proj.weight", 0, ""),
        "latent_size": ("decoder.latent_to_hidden.weight", 1, ""),
        "patch_size": ("encoder.squeeze_layer.weight", 1, "hidden_size"),
    }

    num_encoder_layers: Size
    num_decoder_layers: Size
    ae_dropout: Fraction = 0.15
    kl_clamp: Annotated[float, Field(ge=0)] = 0.5
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3

    def ours(self) -> AutoencoderConfig:
        """The settings of the same model here, without the layers that the public code leaves unused."""
        # It runs n // 2 layers before the chunk is squeezed (or expanded) and n // 2 after, so an odd last one never.
        used = {name: getattr(self, name) // 2 * 2 for name in self.layers}
        model = {ours: getattr(self, theirs) for theirs, ours in AUTOENCODER_SETTINGS.items()} | used
        return parse_section(AutoencoderConfig, {"model": model | {"token_dropout": self.ae_dropout}})

    def used(self, weights: Weights) -> Weights:
        """The weights without those of layers that the public code leaves unused."""
        odd = [f"{self.layers[name]}{getattr(self, name) - 1}." for name in self.layers if getattr(self, name) % 2]
        return {name: value for name, value in weights.items() if not name.startswith(tuple(odd))}


class PublicCalm(PublicConfig):
    """config.json of a CALM model."""

    layers = {"num_hidden_layers": "transformer.layers.", "num_mlp_layers": "mlp_generator.mlp_blocks."}
    sizes = {
        "vocab_size": ("transformer.embed_tokens.weight", 0, ""),
        "hidden_size": ("transformer.embed_tokens.weight", 1, ""),
        "intermediate_size": ("transformer.layers.0.mlp.gate_proj.weight", 0, ""),
        "noise_size": ("mlp_generator.noise_embd.weight", 1, ""),
        "latent_size": ("mlp_generator.final_layer.linears.2.weight", 0, ""),
        "patch_size": ("embed_proj.0.weight", 1, "hidden_size"),
    }

    ae_path: str = ""
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    noise_size: Size
    num_mlp_layers: Size
    num_samples: Annotated[int, Field(ge=2)] = 8
    beta: Annotated[float, Field(gt=0, lt=2)] = 1.0
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_scaling: None = None
    attention_bias: Literal[False] = False

    @model_validator(mode="after")
    def _attention_is_plain(self) -> Self:
        heads = self.num_attention_heads
        for name, value, expected in (
            ("num_key_value_heads", self.num_key_value_heads, heads),
            ("head_dim", self.head_dim, self.hidden_size // heads),
        ):
            if value not in (None, expected):
                raise ValueError(f"{name} is {brief(value)}, these models have {expected}")
        return self

    def ours(self) -> CalmConfig:
        """The settings of the same model here."""
        head = {ours: getattr(self, theirs) for theirs, ours in HEAD_SETTINGS.items()} | {"kind": "energy"}
        model = {ours: getattr(self, theirs) for theirs, ours in CALM_SETTINGS.items()} | {"head": head}
        return parse_section(CalmConfig, {"model": model})


def read_config(folder: Path) -> tuple[PublicAutoencoder | PublicCalm, dict[str, Any]]:
    """What a folder's config.json says, and all of it as it is written.

    Raises:
        CalmError: There is none.
        ArtifactError: It is damaged, not of these models, or asks for what these models do not have.
        StorageError: It is a link that leaves the folder.
    """
    path = folder / CONFIG_NAME
    is_artifact = has_file(folder, MANIFEST_NAME) and not has_weights(folder)
    if is_artifact or not has_file(folder, CONFIG_NAME):
        raise CalmError(f"{folder}: {why_not_here(folder)}")
    written = read_object(folder, CONFIG_NAME)
    if "patch_size" not in written or "latent_size" not in written:
        raise ArtifactError(f"{path}: is no config of a CALM model or autoencoder (no patch_size)")
    refuse_other_heads(folder, written.get("model_type"), written.get("architectures"))
    is_calm = "ae_path" in written or "num_encoder_layers" not in written
    given = {name: value for name, value in written.items() if value is not None}
    try:
        config = PublicCalm.model_validate(given) if is_calm else PublicAutoencoder.model_validate(given)
        config.ours()
    except ValidationError as error:
        raise ArtifactError(f"{path}: {_told(error)}") from None
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return config, written


def refuse_other_heads(folder: Path, *signs: object) -> None:
    """Refuse the models of the public code that are of another architecture than any here.

    Args:
        folder: For the message.
        signs: What the config says of the kind of model.

    Raises:
        ArtifactError: They name another head than the energy head.
    """
    named = [name for sign in signs for name in (sign if isinstance(sign, list) else [sign])]
    for head, architecture in _OTHER_HEADS.items():
        if head in named or architecture in named:
            raise ArtifactError(
                f"{folder}: has the public {head} head, whose layers are those of no head here; "
                "only models with the energy head can be imported"
            )


def told_keys(config: PublicConfig) -> str:
    """A line that names the keys of a config that are not used, and those that it leaves to the public defaults."""
    extra = config.model_extra or {}
    left_out = [
        f"{name} {field.default}"
        for name, field in type(config).model_fields.items()
        if name not in config.model_fields_set and isinstance(field.default, float)
    ]
    parts = {
        "ignored, without effect on a trained model": sorted(extra.keys() & _WITHOUT_EFFECT),
        "ignored, unknown": sorted(extra.keys() - _WITHOUT_EFFECT),
        "not given, so as the public code has it": left_out,
    }
    return "; ".join(f"{what}: {listed(names, _MOST_KEYS)}" for what, names in parts.items() if names)


def theirs(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Our settings by their names."""
    return {theirs: settings[ours] for theirs, ours in names.items()}


def _told(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    if missing := [str(one["loc"][0]) for one in errors if one["type"] == "missing"]:
        return f"has no {', '.join(missing)}"
    first = errors[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    found, bounds = f"{first['loc'][0]} is {brief(first['input'])}", first.get("ctx", {})
    match first["type"]:
        case "literal_error":
            return f"{found}, these models have {bounds['expected']}"
        case "none_required":
            return f"{found}, these models have none"
        case "int_type" | "int_from_float":
            return f"{found}, expected is a whole number"
        case "float_type" | "finite_number":
            return f"{found}, expected is a number"
        case "string_type":
            return f"{found}, expected is text"
        case "greater_than_equal":
            return f"{found}, expected is {bounds['ge']} or more"
        case "greater_than":
            return f"{found}, expected is more than {bounds['gt']}"
        case "less_than":
            return f"{found}, expected is less than {bounds['lt']}"
    return f"{found}: {first['msg'].lower()}"
