"""How the next chunk is chosen: the temperature, and the way to it."""

from dataclasses import dataclass
from numbers import Real

from calm_core.config.evaluation import MIN_TEMPERATURE, SAMPLERS, SamplerName
from calm_core.errors import CalmError
from calm_core.generation.arguments import described, whole_number

MAX_SAMPLES = 2**20
MAX_BUDGET = 2**63 - 1
SAMPLES = 200
"""S of the batch approximation, as in the paper."""
READING_SAMPLES = 48
"""... with a decoder that reads, whose chunks are equal so much more often that these do (docs/quality.md)."""
BUDGET = 100_000
"""Draws for each chunk of the exact sampler."""


@dataclass(frozen=True)
class Sampling:
    """How the next chunk is chosen.

    Attributes:
        temperature: In [MIN_TEMPERATURE, 1].
        samples: S of the sampler `batch`, at most MAX_SAMPLES; unset, SAMPLES or READING_SAMPLES.
        budget: Draws for each chunk of the sampler `exact`; 0, BUDGET.
        sampler: The way to a temperature below 1, one of SAMPLERS; unset, the one that budget or samples belong to, and
            if neither is set, the best one for the model.
    """

    temperature: float = 1.0
    samples: int | None = None
    budget: int = 0
    sampler: SamplerName | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.temperature, Real) and not isinstance(self.temperature, bool)
        if not number or not MIN_TEMPERATURE <= self.temperature <= 1:
            raise CalmError(
                f"temperature must be above 0 and at most 1, not below {MIN_TEMPERATURE} "
                f"(got {self.temperature if number else described(self.temperature)})"
            )
        whole_number("budget", self.budget, 0, MAX_BUDGET)
        if self.samples is not None:
            whole_number("samples", self.samples, 1, MAX_SAMPLES)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise CalmError(f"there is no sampler {described(self.sampler)}; there are {', '.join(SAMPLERS)}")
        for name, given, owner in (("samples", self.samples, "batch"), ("budget", self.budget, "exact")):
            if given and self.named != owner:
                raise CalmError(f"{name}: is of the sampler {owner}, and not of {self.named}; leave one of them out")

    @property
    def named(self) -> SamplerName | None:
        """The sampler that is asked for."""
        return self.sampler or ("exact" if self.budget else "batch" if self.samples else None)
