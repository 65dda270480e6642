"""Facts of scores."""

import math
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from calm_core.store.facts.base import ROUNDING, TIMING, Facts, Number, Rate, Record, Seconds


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
        if not math.isclose(self.brierlm.value, mean, rel_tol=ROUNDING, abs_tol=ROUNDING):
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
