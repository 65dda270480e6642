"""What a manifest says of each kind of artifact, as types.

A kind is one class. Its fields are the numbers of its stage, which repeat exactly and take part in the digest; those
marked ORIGIN (where the inputs lay) or TIMING (seconds, rates) are of one run, and do not.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from calm_core.store.storage import is_plain_path

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = ".calm-unfinished"
"""Lies beside the files of an artifact until its manifest does; holds its kind."""

Part = Literal["results", "origins", "timings"]
ORIGIN: Part = "origins"
TIMING: Part = "timings"


def _plain(path: str) -> str:
    if not is_plain_path(path):
        raise ValueError("is no plain path inside the folder")
    return path


Count = Annotated[int, Field(ge=0, le=2**53)]  # exact as a JSON number everywhere
FilePath = Annotated[str, AfterValidator(_plain)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, TIMING, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, TIMING, Field(ge=0, allow_inf_nan=False)]
Measured = Annotated[float | None, TIMING, Field(ge=0, allow_inf_nan=False)]  # None where it was not
Split = Literal["train", "validation"]
Packing = Literal["documents", "contiguous"]
SPLITS: tuple[Split, ...] = ("train", "validation")
LENGTH_BINS = 33  # 2^32 tokens are more than a document may have
_ROUNDING = 1e-6


class Record(BaseModel):
    """Values that are validated when they are written, and again when they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Facts(Record):
    """Base of the kinds of artifacts; a subclass names its kind.

    Example:
        >>> class ScanFacts(Facts, kind="scan"):
        ...     documents: int

    Attributes:
        checksum_since: The schema version from which on a manifest carries its own checksum.
    """

    kind: ClassVar[str]
    schema_version: ClassVar[int] = 2
    checksum_since: ClassVar[int] = 2
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
        return cls.model_validate(values, strict=True)

    @property
    def paths(self) -> list[str]:
        """Files of the artifact that the facts name; the manifest lists all of them."""
        return []

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

        Version 1 lacked nothing but the manifest's checksum.

        Raises:
            ValueError: That version is not known.
        """
        if version != 1:
            raise ValueError
        return config, results


def _require_sum(name: str, total: int, parts_name: str, parts: Iterable[int]) -> None:
    """Raise a ValueError where a total is not the sum of its parts."""
    if total != (found := sum(parts)):
        raise ValueError(f"{name} ({total}) are not the {parts_name} together ({found})")


def _require_at_most(name: str, part: int, whole_name: str, whole: int) -> None:
    """Raise a ValueError where a part is more than the whole."""
    if part > whole:
        raise ValueError(f"{name} ({part}) are more than {whole_name} ({whole})")


def _require_once(names: Iterable[str]) -> None:
    """Raise a ValueError where a name is there twice."""
    (name, count), *_ = [*Counter(names).most_common(1), ("", 1)]
    if count > 1:
        raise ValueError(f"{name} is named {count} times")


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

    path: FilePath
    rows: Annotated[Count, Field(ge=1)]


class SplitCounts(Record):
    """What a split holds.

    Attributes:
        document_lengths: How many documents have [2^i, 2^(i+1)) tokens.
        left_out: Tokens at the ends of partitions that fill no sequence.
    """

    documents: Count
    sequences: Count
    tokens: Count
    padding: Count
    text_bytes: Count
    document_lengths: Annotated[list[Count], Field(min_length=LENGTH_BINS, max_length=LENGTH_BINS)]
    left_out: Count = 0
    shards: list[Shard]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _require_sum("sequences", self.sequences, "rows of the shards", (shard.rows for shard in self.shards))
        _require_sum("documents", self.documents, "documents of each length", self.document_lengths)
        _require_once(shard.path for shard in self.shards)
        return self


class ScanFacts(Facts, kind="scan"):
    """Keys of a partition's documents."""

    partition: Count
    documents: Count
    text_bytes: Count
    normalized: Count
    rejected: dict[str, Count]
    reject_examples: Annotated[list[str], ORIGIN] = []

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _require_at_most("normalized", self.normalized, "documents", self.documents)
        return self


class DuplicatesFacts(Facts, kind="duplicates"):
    """Which documents of each partition stay."""

    duplicates: Count
    near_duplicates: Count


class Vocabulary(Record):
    """What tokens mean beside their tokenizer.

    Attributes:
        bos_id: The token that begins each document; None: none does.
    """

    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    pad_id: Count
    eos_id: Count
    bos_id: Count | None = None

    @model_validator(mode="after")
    def _special_tokens_are_tokens(self) -> Self:
        for name in ("pad_id", "eos_id", "bos_id"):
            _require_at_most(name, getattr(self, name) or 0, "the highest token", self.vocab_size - 1)
        return self


class EncodedVocabulary(Vocabulary):
    """A vocabulary, and the engine that encodes with its tokenizer fastest."""

    engine: Literal["tiktoken", "tokenizers"]


class TokenizerFacts(Facts, EncodedVocabulary, kind="tokenizer"):
    """A tokenizer."""


class TextLoss(Record):
    """What a tokenizer could not keep of the documents in the shards.

    Attributes:
        changed_documents: Those that do not come back as they were when their tokens are decoded.
        unknown_tokens: Tokens that stand for text which the vocabulary does not have.
    """

    changed_documents: Count = 0
    unknown_tokens: Count = 0


def _require_losses_of(loss: TextLoss, splits: Collection[SplitCounts]) -> None:
    """Raise a ValueError where more was lost than there is."""
    _require_at_most("changed_documents", loss.changed_documents, "documents", sum(s.documents for s in splits))
    _require_at_most("unknown_tokens", loss.unknown_tokens, "tokens", sum(s.tokens + s.left_out for s in splits))


class ShardsFacts(Facts, TextLoss, kind="shards"):
    """A partition's sequences."""

    partition: Count
    train: SplitCounts
    validation: SplitCounts

    @model_validator(mode="after")
    def _losses_are_of_these(self) -> Self:
        _require_losses_of(self, (self.train, self.validation))
        return self

    @property
    def paths(self) -> list[str]:
        return [shard.path for name in SPLITS for shard in self.split(name).shards]

    def split(self, name: Split) -> SplitCounts:
        """The counts of one split."""
        return self.train if name == "train" else self.validation


class DocumentCounts(TextLoss):
    """What became of the documents of the sources."""

    documents_in: Count
    documents_out: Count
    duplicates: Count
    near_duplicates: Count
    rejected: dict[str, Count]
    normalized: Count
    text_bytes: Count

    @model_validator(mode="after")
    def _nothing_is_lost(self) -> Self:
        became = (self.documents_out, self.duplicates, self.near_duplicates, *self.rejected.values())
        _require_sum("documents_in", self.documents_in, "documents that went out, repeated or were rejected", became)
        _require_at_most("normalized", self.normalized, "documents_in", self.documents_in)
        return self


class DatasetFacts(Facts, EncodedVocabulary, DocumentCounts, kind="dataset"):
    """A tokenised dataset.

    Attributes:
        packing: How documents became sequences (see `Packer`).
    """

    packing: Packing = "documents"
    sequence_length: Annotated[int, Field(ge=1, le=2**24)]
    document_alignment: Annotated[int, Field(ge=1, le=2**24)]
    rows_per_group: Annotated[int, Field(ge=1, le=2**24)]
    partitions: Count
    splits: dict[Split, SplitCounts]
    sources: Annotated[list[SourceFile], ORIGIN] = []
    reject_examples: Annotated[list[str], ORIGIN] = []

    @model_validator(mode="after")
    def _splits_are_all(self) -> Self:
        if self.splits.keys() != set(SPLITS):
            raise ValueError(f"the splits are {', '.join(self.splits)}, not {', '.join(SPLITS)}")
        splits = self.splits.values()
        _require_sum("documents_out", self.documents_out, "documents of the splits", (s.documents for s in splits))
        _require_at_most("bytes of the splits", sum(s.text_bytes for s in splits), "text_bytes", self.text_bytes)
        for name, split in self.splits.items():
            held = split.sequences * self.sequence_length
            _require_sum(f"places in the {name} sequences", held, "tokens and padding", (split.tokens, split.padding))
        _require_losses_of(self, splits)
        _require_once(self.paths)
        return self

    @property
    def paths(self) -> list[str]:
        return [shard.path for split in self.splits.values() for shard in split.shards]

    @property
    def tokens(self) -> int:
        """Tokens of all splits, padding left out."""
        return sum(split.tokens for split in self.splits.values())


class MixtureFacts(Facts, kind="mixture"):
    """Several datasets, and the share of each in every batch."""

    weights: list[Annotated[float, Field(gt=0, le=1)]]
    digests: list[Sha256]
    datasets: Annotated[list[str], ORIGIN] = []

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if not self.weights or not len(self.weights) == len(self.digests) == len(self.datasets):
            counts = f"{len(self.weights)} weights, {len(self.digests)} digests, {len(self.datasets)} datasets"
            raise ValueError(f"{counts}: there has to be one of each for each dataset")
        if abs((total := sum(self.weights)) - 1) > _ROUNDING:
            raise ValueError(f"the weights add up to {total}, not 1")
        return self


class ModelFacts(Facts, Vocabulary):
    """A trained model of any kind.

    Attributes:
        packing: Of the text that it was trained on, so of the text that it writes.
        parameters: Numbers that were trained; 0 where earlier code has trained them with ZeRO stage 3.
        trained_tokens: None of a model that was trained elsewhere.
        validation: Metrics on held-out text after the last step.
        bad_steps, skipped_steps, loss_spikes, rewinds: What went wrong in training (see `Guards`); None of a model
            that earlier code has trained, or that was trained elsewhere.
        tokens_per_second, loader_wait_seconds, checkpoint_wait_seconds, validation_seconds: Of the process that ended
            training (see `SpeedMeter`).
        memory_bytes: Of the rank that had most, at its worst moment.
        model_flops_utilisation: Share of peak_tflops (1e12 FLOP/s of one rank) that its steps used, counted as
            `calm estimate` does; unset where the peak is not known.
        trace_uri: Of the steps that were profiled.
    """

    schema_version: ClassVar[int] = 4
    checksum_since: ClassVar[int] = 3

    packing: Packing = "documents"
    parameters: Count
    trained_tokens: Count | None = None
    validation: dict[str, Number] = {}
    bad_steps: Count | None = None
    skipped_steps: Count | None = None
    loss_spikes: Count | None = None
    rewinds: Count | None = None
    seconds: Seconds = 0.0
    tokens_per_second: Rate = 0.0
    loader_wait_seconds: Seconds = 0.0
    checkpoint_wait_seconds: Seconds = 0.0
    validation_seconds: Seconds = 0.0
    memory_bytes: Measured = None
    peak_tflops: Measured = None
    model_flops_utilisation: Measured = None
    trace_uri: Annotated[str | None, ORIGIN] = None

    @property
    def went_wrong(self) -> dict[str, int]:
        """What went wrong in training, by name, and how often."""
        counts = {name: getattr(self, name) for name in ("bad_steps", "skipped_steps", "loss_spikes", "rewinds")}
        return {name: count for name, count in counts.items() if count}

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Version 1 had metrics beside the numbers, two strings for display, no kinds of heads; 2 no checksum; 3 did
        not say what went wrong."""
        if version in (2, 3):
            return config, results
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

    chunk_size: Annotated[int, Field(ge=1, le=2**20)]
    latent_size: Annotated[int, Field(ge=1, le=2**20)]
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


class ExportFacts(Facts, kind="export"):
    """A model in the public format; that of a CALM model holds its autoencoder's folder."""


class SpecFacts(Facts, kind="training-spec"):
    """What the ranks of a training train; the spec itself is the artifact's config."""


class OutcomeFacts(Facts, kind="training-outcome"):
    """How a training job ended.

    Attributes:
        message: The number that matters, or why the job did not finish; one line.
        exit_code: That of the rank.
        can_pass: Whether running the same again can help.
    """

    message: str
    exit_code: Annotated[int, Field(ge=0, le=255)] = 0
    can_pass: bool = False


class GuardState(Record):
    """What the guards of a training know (see `Guards`).

    Attributes:
        bad_steps, skipped_steps, loss_spikes, rewinds: How many there have been.
        spikes_in_row: How many of the last losses were spikes.
        saved, followed: Steps of the newest checkpoints to go back to: one that nothing has followed yet, and one that
            a good step has.
        losses: The last ones.
    """

    bad_steps: Count = 0
    skipped_steps: Count = 0
    loss_spikes: Count = 0
    rewinds: Count = 0
    spikes_in_row: Count = 0
    saved: Count | None = None
    followed: Count | None = None
    losses: Annotated[list[Number], Field(max_length=2**12)] = []


class CheckpointFacts(Facts, kind="checkpoint"):
    """Where a training stands, beside the tensors of its state.

    Attributes:
        step: Optimiser steps done.
        position: Sequences that the loader has given, over all ranks.
        optimizer_steps: Steps that the optimiser has taken; others were left out.
        validation: The latest value on held-out text of what is minimised; none before there is one.
        guards: What went wrong so far.
        ranks: That wrote it; any other number can go on from it.
        seconds: Of training in all.
    """

    step: Count
    position: Count
    optimizer_steps: Count
    validation: Number | None = None
    guards: GuardState = GuardState()
    ranks: Annotated[Count, ORIGIN] = 1
    seconds: Seconds = 0.0

    @model_validator(mode="after")
    def _steps_add_up(self) -> Self:
        if self.optimizer_steps > self.step:
            raise ValueError(f"{self.optimizer_steps} steps of the optimiser, more than {self.step} in all")
        return self


class Score(Record):
    """A number with its confidence interval, which is unknown where there was one sequence to resample."""

    value: Number
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _interval_has_an_order(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("the interval has one end")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval begins at {self.low}, above its end at {self.high}")
        return self

    def times(self, factor: float) -> "Score":
        """The score on another scale; the factor is not negative."""
        if self.low is None or self.high is None:
            return Score(value=factor * self.value)
        return Score(value=factor * self.value, low=factor * self.low, high=factor * self.high)

    def interval(self, digits: int = 2) -> str:
        """The interval as text."""
        if self.low is None or self.high is None:
            return "[unknown]"
        return f"[{self.low:z.{digits}f}, {self.high:z.{digits}f}]"


class BrierScores(Record):
    """Brier-1 to Brier-4 as shares, unclamped, by n; and BrierLM in percent."""

    brierlm: Score
    brier: dict[str, Score]

    @model_validator(mode="after")
    def _mean_is_of_the_terms(self) -> Self:
        if not self.brier or any(not name.isdecimal() for name in self.brier):
            raise ValueError("brier: names a term by something else than its n")
        terms = [max(term.value, 0.0) for term in self.brier.values()]
        mean = 100 * math.prod(terms) ** (1 / len(terms))
        if not math.isclose(self.brierlm.value, mean, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            raise ValueError(f"brierlm ({self.brierlm.value}) is not the geometric mean of its terms ({mean})")
        return self

    def shown(self) -> dict[str, Score]:
        """The scores by the names and on the scale that people see, which is the same for all: times 100."""
        terms = {f"Brier-{n}": self.brier[n].times(100) for n in sorted(self.brier, key=lambda n: (len(n), n))}
        return {"BrierLM": self.brierlm} | terms


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
        evaluated: When, in ISO 8601; artifacts of schema version 2 do not say it.
    """

    schema_version: ClassVar[int] = 3

    model: str
    autoencoder_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    protocol: dict[str, str | int]
    references: References
    samples: list[TextSample]
    evaluated: Annotated[str, TIMING, Field(max_length=64)] = ""
    score_seconds: Seconds = 0.0
    generation_tokens_per_second: Rate = 0.0

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Until version 2, nothing said when."""
        return (config, results) if version == 2 else super().upgrade(version, config, results)


class RegistrationFacts(Facts, kind="registration"):
    """A version of a registered model.

    Attributes:
        promoted: Whether the alias pointed to this version once it was registered.
        reason: Why it did or did not, for people; artifacts of schema version 2 have none.
    """

    schema_version: ClassVar[int] = 3

    model_name: str
    version: Annotated[str, Field(pattern=r"^[0-9]+$")]
    alias: str
    model_uri: str
    promoted: bool = True
    reason: str = ""

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Until version 2, the alias moved to each version."""
        return (config, results) if version == 2 else super().upgrade(version, config, results)

    @model_validator(mode="after")
    def _uri_is_of_the_version(self) -> Self:
        if self.model_uri != (expected := f"models:/{self.model_name}/{self.version}"):
            raise ValueError(f"model_uri is {self.model_uri}, not {expected}")
        return self
