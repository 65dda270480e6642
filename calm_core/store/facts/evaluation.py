"""Facts of scores."""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from calm_core.store.facts.base import ROUNDING, TIMING, Count, Facts, Number, Rate, Record, Seconds, Share


class Score(Record):
    """A number with its confidence interval, which is unknown where there was one document to resample."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"low": ["high"], "high": ["low"]}})
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
    brier: Annotated[
        dict[Annotated[str, Field(pattern="^[1-4]$")], Score],
        Field(min_length=4, json_schema_extra={"additionalProperties": False}),
    ]

    @model_validator(mode="after")
    def _mean_is_of_the_terms(self) -> Self:
        terms = [max(term.value, 0.0) for term in self.brier.values()]
        mean = 100 * math.prod(terms) ** (1 / len(terms))
        if not math.isclose(self.brierlm.value, mean, rel_tol=ROUNDING, abs_tol=ROUNDING):
            raise ValueError(f"brierlm ({self.brierlm.value}) is not the geometric mean of its terms ({mean})")
        return self

    def shown(self) -> dict[str, Score]:
        """The scores by the names and on the scale that people see, which is the same for all: times 100."""
        terms = {f"Brier-{n}": self.brier[n].times(100) for n in sorted(self.brier)}
        return {"BrierLM": self.brierlm} | terms


class TextSample(Record):
    """A prompt, and what a model continued it with."""

    prompt: str
    text: str


class ScoreDifference(Score):
    """How much higher one model's score is than another's on the same documents; negative, it is lower.

    Attributes:
        p_value: How often equally good models lie as far apart or farther, by chance.
        corrected_p_value: The same for the most extreme of several comparisons; None of a single one.
    """

    p_value: Share
    corrected_p_value: Share | None = None

    @property
    def deciding_p_value(self) -> float:
        """The one that a verdict rests on: the corrected one, if there is one."""
        return self.p_value if self.corrected_p_value is None else self.corrected_p_value


class Difference(Record):
    """How much higher a first model's scores are than a second one's, on the same documents.

    Attributes:
        brierlm: On BrierLM's scale; the verdict rests on this one.
        brier: Of Brier-1 to Brier-4 as shares, by n: where the difference lies.
        documents, positions: How many were compared.
        resamples: How often documents were drawn, and places exchanged.
        confidence: Of the intervals.
    """

    brierlm: ScoreDifference
    brier: dict[str, ScoreDifference]
    documents: Count
    positions: Count
    resamples: Count
    confidence: Share

    @property
    def p_value(self) -> float:
        """Of BrierLM."""
        return self.brierlm.p_value

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """What the first model is, if the level is that of the intervals."""
        if self.brierlm.value == 0 or self.brierlm.deciding_p_value > 1 - self.confidence:
            return "undecided"
        return "better" if self.brierlm.value > 0 else "worse"


class References(Record):
    """What scores are compared with: the same model before training, and tokens by their frequency."""

    untrained: BrierScores
    unigram: BrierScores


class Accuracy(Record):
    """Share of real tokens that come back, and of chunks of which every real token does."""

    tokens: Share
    chunks: Share


class NoiseAccuracy(Accuracy):
    """Accuracy from the mean latent with normal noise added to each dimension.

    Attributes:
        scale: Standard deviation of the noise.
    """

    scale: Annotated[Number, Field(ge=0)]


class FrequencyAccuracy(Record):
    """Accuracy, from sampled latents, on tokens that occur about equally often in training text.

    Attributes:
        least, most: How often such a token occurs in the counted training text.
        tokens: Held-out tokens that are such.
        accuracy: Share of those that come back.
    """

    least: Count
    most: Count
    tokens: Count
    accuracy: Share


class AutoencoderQuality(Record):
    """How well an autoencoder's latents carry text.

    Attributes:
        mean, sampled: From the mean latent, and from a latent drawn around it.
        under_noise: With growing noise on the mean latent, of the first sequences, up to where it breaks.
        latent_size: l.
        active_dimensions: Those whose mean varies with the text by more than 0.01 (Burda et al. 2016).
        latent_std: The encoder's standard deviations over chunks and dimensions: quantiles by their level, e.g. "0.5".
        by_frequency: By how often a token occurs in training text, rare ones first.
    """

    mean: Accuracy
    sampled: Accuracy
    under_noise: list[NoiseAccuracy]
    latent_size: Count
    active_dimensions: Count
    latent_std: dict[str, Number]
    by_frequency: list[FrequencyAccuracy]


class PlaceScores(Record):
    """Scores of the positions of one range.

    Attributes:
        begin, end: First token of the range, and the first one after it.
        positions: How many counted.
    """

    begin: Count
    end: Count
    positions: Count
    scores: BrierScores


class SampleDistances(Record):
    """Mean Euclidean distances between latents at a position.

    Attributes:
        to_target: From a model's sample to one of the true next chunk.
        between_samples: Between two samples of the model.
        between_targets: Between two of the true next chunk.
    """

    to_target: Number
    between_samples: Number
    between_targets: Number


class KnownText(Record):
    """Share of 4-grams that occur in training text: of sampled ones, and of the true ones at the same positions."""

    sampled: Share
    true: Share


class CalibrationBin(Record):
    """Positions whose most frequent sample has about the same share of all samples.

    Attributes:
        begin, end: Of that share.
        positions: How many there are.
        confidence: Mean share.
        accuracy: Share of positions where that sample is true.
    """

    begin: Share
    end: Share
    positions: Count
    confidence: Share
    accuracy: Share


class Calibration(Record):
    """Whether a model is right as often as its repeated samples agree (Guo et al. 2017, for samples).

    Attributes:
        expected_error: Mean distance of confidence and accuracy, weighted by positions.
    """

    bins: list[CalibrationBin]
    expected_error: Share


class Perplexity(Score):
    """Perplexity per token of the true tokens after each scored position: exp of their mean nats.

    Attributes:
        tokens: How many after each position: a chunk's, four at most.
        samples: S that it is an upper bound from, on average; None where it is exact.
    """

    tokens: Count
    samples: Count | None = None

    @property
    def label(self) -> str:
        """What it is, for people."""
        exact = "exact" if self.samples is None else f"upper bound from {self.samples} samples"
        return f"perplexity of the next {self.tokens} token{'s' if self.tokens > 1 else ''} ({exact})"


class LanguageModelQuality(Record):
    """Where and how a language model is right.

    Attributes:
        by_document_position: By tokens since the document began.
        by_context_length: By tokens since the sequence began.
        known_4grams: None where a dataset holds no training text.
        distances: Of a model over chunks.
        calibration: Of its first sampled tokens.
        perplexity: What evaluations of earlier versions do not tell.
    """

    by_document_position: list[PlaceScores]
    by_context_length: list[PlaceScores]
    calibration: Calibration
    known_4grams: KnownText | None = None
    distances: SampleDistances | None = None
    perplexity: Perplexity | None = None


class WrittenTexts(Record):
    """What a model writes at one temperature, and how varied that is.

    Attributes:
        sampler: The way to a temperature below 1; None of a Transformer, which divides its logits, and where earlier
            versions do not tell it.
        distinct: Share of different n-grams of tokens among all, over all texts, by n.
        repetition: Share of 4-grams of tokens that stood in the same text before.
        self_bleu: Mean BLEU of each text against all others, 0 to 100 (Zhu et al. 2018); None of fewer than two texts.
    """

    temperature: Annotated[Number, Field(gt=0, le=1)]
    sampler: str | None = None
    distinct: dict[str, Share]
    repetition: Share
    self_bleu: Annotated[Number, Field(ge=0, le=100)] | None = None
    texts: list[TextSample]


class SpeedFacts(Record):
    """How fast a model writes.

    Attributes:
        tokens_per_second: With all prompts in one batch.
        first_chunk_seconds: Until the first chunk of one prompt.
        memory_bytes: Largest memory of the device, or of the process where that is the CPU, while it wrote.
        device: What it ran on, for people.
    """

    tokens_per_second: Number
    first_chunk_seconds: Number
    memory_bytes: Count | None = None
    device: str = ""


class TrainingCost(Record):
    """What training one model has taken.

    Attributes:
        flops: Forward and backward, as `calm estimate` counts them.
        tokens: That it was trained on.
        seconds: Wall time.
        accelerator_seconds: Wall time of each rank, added up.
        energy_joules: Of the devices; None where nothing measures it.
    """

    flops: Number | None = None
    tokens: Count | None = None
    seconds: Number = 0.0
    accelerator_seconds: Number | None = None
    energy_joules: Number | None = None


class EvaluationFacts(Facts, BrierScores, kind="evaluation"):
    """Scores of a language model.

    Attributes:
        model: What was scored, for people.
        autoencoder_accuracy: Of a CALM model: share of tokens that come back from sampled latents.
        protocol: All that two scores must share to be compared.
        written: Texts at several temperatures.
        inference_flops_per_token: With the whole context.
        costs: Of training, by model.
        evaluated: When, in ISO 8601; artifacts of schema version 2 do not say it.
    """

    schema_version: ClassVar[int] = 4

    model: str
    autoencoder_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    protocol: dict[str, str | int]
    references: References
    samples: list[TextSample]
    autoencoder: AutoencoderQuality | None = None
    language_model: LanguageModelQuality | None = None
    written: list[WrittenTexts] = []
    inference_flops_per_token: Number | None = None
    speed: Annotated[SpeedFacts | None, TIMING] = None
    costs: Annotated[dict[str, TrainingCost], TIMING] = {}
    evaluated: Annotated[str, TIMING, Field(max_length=64)] = ""
    score_seconds: Seconds = 0.0
    generation_tokens_per_second: Rate = 0.0

    def metrics(self) -> dict[str, float]:
        """The headline numbers, by their names in MLflow."""
        score = self.brierlm
        metrics = {"brierlm": score.value}
        if score.low is not None and score.high is not None:
            metrics |= {"brierlm_low": score.low, "brierlm_high": score.high}
        if self.autoencoder_accuracy is not None:
            metrics["autoencoder_accuracy"] = self.autoencoder_accuracy
        if self.language_model and (perplexity := self.language_model.perplexity):
            metrics["perplexity" if perplexity.samples is None else "perplexity_bound"] = perplexity.value
        metrics |= {f"brier_{n}": term.value for n, term in self.brier.items()}
        for name in References.model_fields:
            metrics[f"brierlm_{name}"] = getattr(self.references, name).brierlm.value
        return metrics

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Version 2 did not say when; version 3 had BrierLM alone, and the accuracy from sampled latents."""
        return (config, results) if version in (2, 3) else super().upgrade(version, config, results)
