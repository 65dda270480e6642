"""What a manifest says of each kind of artifact, as types.

A kind is one class. Its fields are the numbers of its stage, which repeat exactly and take part in the digest; those
marked ORIGIN (where the inputs lay) or TIMING (seconds, rates) are of one run, and do not.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Part = Literal["results", "origins", "timings"]
ORIGIN: Part = "origins"
TIMING: Part = "timings"

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, TIMING, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, TIMING, Field(ge=0, allow_inf_nan=False)]
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class Record(BaseModel):
    """Values that are validated when they are written, and again when they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Facts(Record):
    """Base of the kinds of artifacts; a subclass names its kind.

    Example:
        >>> class ScanFacts(Facts, kind="scan"):
        ...     documents: int
    """

    kind: ClassVar[str]
    schema_version: ClassVar[int] = 1
    of_kind: ClassVar[dict[str, type["Facts"]]] = {}

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind = kind
            Facts.of_kind[kind] = cls

    @classmethod
    def read(cls, parts: Mapping[Part, Mapping[str, Any]]) -> Self:
        """The facts of a manifest's parts.

        Raises:
            ValidationError: A value is missing, unknown, or out of its range.
        """
        values = {
            name if cls._part_of(name) == part else f"{part}.{name}": value
            for part, named in parts.items()
            for name, value in named.items()
        }
        return cls.model_validate(values)

    def part(self, part: Part) -> dict[str, Any]:
        """The values that belong to one part of the manifest, as JSON values; unset ones are left out."""
        names = {name for name in type(self).model_fields if self._part_of(name) == part}
        return self.model_dump(mode="json", include=names, exclude_none=True)

    @classmethod
    def _part_of(cls, name: str) -> Part:
        field = cls.model_fields.get(name)
        marks = field.metadata if field else []
        return ORIGIN if ORIGIN in marks else TIMING if TIMING in marks else "results"

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Config and results of an earlier schema version in the form of this one.

        Raises:
            ValueError: That version is not known.
        """
        raise ValueError


class SourceFile(Record):
    """One file of the sources.

    Attributes:
        digest: What tells its content from other content (see `storage.digest`).
    """

    uri: str
    size: Count
    digest: str


class Shard(Record):
    """One Parquet file, and the sequences in it."""

    path: str
    rows: Count


class SplitCounts(Record):
    """What a split holds.

    Attributes:
        document_lengths: How many documents have [2^i, 2^(i+1)) tokens.
    """

    documents: Count
    sequences: Count
    tokens: Count
    padding: Count
    text_bytes: Count
    document_lengths: list[Count]
    shards: list[Shard]


class ScanFacts(Facts, kind="scan"):
    """Keys of a partition's documents."""

    partition: Count
    documents: Count
    text_bytes: Count
    normalized: Count
    rejected: dict[str, Count]
    reject_examples: Annotated[list[str], ORIGIN] = []


class DuplicatesFacts(Facts, kind="duplicates"):
    """Which documents of each partition stay."""

    duplicates: Count
    near_duplicates: Count


class Vocabulary(Record):
    """What tokens mean beside their tokenizer."""

    vocab_size: Annotated[int, Field(ge=1)]
    pad_id: Count
    eos_id: Count


class EncodedVocabulary(Vocabulary):
    """A vocabulary, and the engine that encodes with its tokenizer fastest."""

    engine: Literal["tiktoken", "tokenizers"]


class TokenizerFacts(Facts, EncodedVocabulary, kind="tokenizer"):
    """A tokenizer."""


class ShardsFacts(Facts, kind="shards"):
    """A partition's sequences."""

    partition: Count
    train: SplitCounts
    validation: SplitCounts

    def split(self, name: Split) -> SplitCounts:
        """The counts of one split."""
        return self.train if name == "train" else self.validation


class DocumentCounts(Record):
    """What became of the documents of the sources."""

    documents_in: Count
    documents_out: Count
    duplicates: Count
    near_duplicates: Count
    rejected: dict[str, Count]
    normalized: Count
    text_bytes: Count


class DatasetFacts(Facts, EncodedVocabulary, DocumentCounts, kind="dataset"):
    """A tokenised dataset."""

    sequence_length: Annotated[int, Field(ge=1)]
    document_alignment: Annotated[int, Field(ge=1)]
    rows_per_group: Annotated[int, Field(ge=1)]
    partitions: Count
    splits: dict[Split, SplitCounts]
    sources: Annotated[list[SourceFile], ORIGIN] = []
    reject_examples: Annotated[list[str], ORIGIN] = []

    @property
    def tokens(self) -> int:
        """Tokens of all splits, padding left out."""
        return sum(split.tokens for split in self.splits.values())


class MixtureFacts(Facts, kind="mixture"):
    """Several datasets, and the share of each in every batch."""

    weights: list[Annotated[float, Field(gt=0, le=1)]]
    digests: list[str]
    datasets: Annotated[list[str], ORIGIN] = []


class ModelFacts(Facts, Vocabulary):
    """A trained model of any kind.

    Attributes:
        trained_tokens: None of a model that was trained elsewhere.
        validation: Metrics on held-out text after the last step.
    """

    schema_version: ClassVar[int] = 2

    parameters: Count
    trained_tokens: Count | None = None
    validation: dict[str, Number] = {}
    seconds: Seconds = 0.0
    tokens_per_second: Rate = 0.0
    loader_wait_seconds: Seconds = 0.0

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Version 1 had metrics beside the numbers, two strings for display, and no kinds of heads."""
        if version != 1:
            raise ValueError
        metrics = [name for name in results if name.startswith("validation_")]
        kept = {name: value for name, value in results.items() if name not in ("headline", "curve", *metrics)}
        kept["validation"] = {name.removeprefix("validation_"): results[name] for name in metrics}
        return cls.upgrade_config(config), kept

    @classmethod
    def upgrade_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The settings of schema version 1 in the form of this one."""
        return config


class AutoencoderFacts(ModelFacts, kind="autoencoder"):
    """A trained autoencoder.

    Attributes:
        tied: Unset; earlier versions noted here which second copies of weights a public checkpoint had.
    """

    tied: list[str] | None = None


class CalmFacts(ModelFacts, kind="calm"):
    """A trained CALM language model."""

    chunk_size: Annotated[int, Field(ge=1)]
    latent_size: Annotated[int, Field(ge=1)]
    autoencoder_uri: Annotated[str, ORIGIN] = ""

    @classmethod
    def upgrade_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The head was a name, and its settings stood beside those of the backbone."""
        model = dict(config["model"])
        head = {"kind": model.pop("head"), "num_layers": model.pop("num_head_layers")}
        head["model_samples"] = model.pop("model_samples")
        own = {
            "energy": {"noise_size": "noise_size", "target_samples": "target_samples", "energy_alpha": "alpha"},
            "diffusion": {"diffusion_steps": "diffusion_steps", "sampling_steps": "sampling_steps"},
            "flow": {"sampling_steps": "sampling_steps"},
        }
        head |= {new: model[old] for old, new in own[head["kind"]].items()}
        others = {old for names in own.values() for old in names}
        return config | {"model": {k: v for k, v in model.items() if k not in others} | {"head": head}}


class TransformerFacts(ModelFacts, kind="transformer"):
    """A trained token-level Transformer."""


class SpecFacts(Facts, kind="training-spec"):
    """What the ranks of a training train; the spec itself is the artifact's config."""


class OutcomeFacts(Facts, kind="training-outcome"):
    """How a training job ended.

    Attributes:
        message: The number that matters, or why the job did not finish; one line.
        exit_code: That of the rank.
    """

    message: str
    exit_code: Count = 0


class Score(Record):
    """A number with its confidence interval."""

    value: Number
    low: Number
    high: Number


class BrierScores(Record):
    """Brier-1 to Brier-4 as shares, unclamped, by n; and BrierLM in percent."""

    brierlm: Score
    brier: dict[str, Score]


class TextSample(Record):
    """A prompt, and what a model continued it with."""

    prompt: str
    text: str


class References(Record):
    """What scores are compared with: the same model before training, and tokens by their frequency."""

    untrained: BrierScores
    unigram: BrierScores


class EvaluationFacts(Facts, BrierScores, kind="evaluation"):
    """Scores of a language model.

    Attributes:
        model: What was scored, for people.
        autoencoder_accuracy: Of a CALM model: share of tokens that come back from sampled latents.
        protocol: All that two scores must share to be compared.
    """

    model: str
    autoencoder_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    protocol: dict[str, str | int]
    references: References
    samples: list[TextSample]
    score_seconds: Seconds = 0.0
    generation_tokens_per_second: Rate = 0.0


class RegistrationFacts(Facts, kind="registration"):
    """A version of a registered model."""

    model_name: str
    version: str
    alias: str
    model_uri: str
