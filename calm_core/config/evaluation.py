"""Settings of scores."""

import math
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from calm_core.config.base import Section
from calm_core.errors import ConfigError

SCORED_TOKENS = 4
"""Tokens after a position whose prediction BrierLM scores."""


MOST_PROMPT_BYTES = 2**17
"""As UTF-8; a token is a byte or more, and more tokens are not read."""


def _readable(prompt: str) -> str:
    size = len(prompt.encode("utf-8", "surrogatepass"))
    if size > MOST_PROMPT_BYTES:
        raise ValueError(f"has {size:,} bytes, a prompt may have {MOST_PROMPT_BYTES:,}; give its end")
    return prompt


MIN_TEMPERATURE = 0.001
"""1/T equal samples are what a chunk needs: at T = 0 there would be no end of them."""

SamplerName = Literal["path", "noise-scale", "truncated", "branch", "densest", "batch", "exact"]
"""Ways to a temperature below 1, each a class in `calm_core.generation.samplers`."""
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)


class EvaluationConfig(Section):
    """The protocol of BrierLM, and the texts that are shown."""

    samples: int = Field(8, ge=2, le=4096, description="S, model samples per position")
    position_interval: int | None = Field(
        None,
        ge=1,
        le=2**24,
        description="tokens between two scored positions, a multiple of K; unset: the smallest one of 4 and K",
    )
    max_sequences: int = Field(256, ge=1, le=2**24, description="held-out sequences that are scored")
    batch_size: int = Field(8, ge=1, le=2**16, description="sequences scored at a time")
    bootstrap_resamples: int = Field(
        1000, ge=100, le=100_000, description="resamples of documents for the confidence intervals"
    )
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="level of the confidence intervals; at most 1 - 2 / bootstrap_resamples"
    )
    prompts: tuple[Annotated[str, AfterValidator(_readable)], ...] | None = Field(
        None,
        max_length=1000,
        description="texts that the model continues; unset: how some held-out documents begin; []: none",
    )
    prompt_tokens: int = Field(64, ge=1, le=2**20, description="tokens written for each prompt")
    temperature: float = Field(0.5, ge=MIN_TEMPERATURE, le=1, description="temperature of the texts that are shown")
    temperatures: tuple[Annotated[float, Field(ge=MIN_TEMPERATURE, le=1)], ...] = Field(
        (0.3, 0.5, 1.0),
        max_length=16,
        description="temperatures at which the variety of texts is measured, beside `temperature`; []: that one alone",
    )
    texts_per_prompt: int = Field(
        4, ge=1, le=1000, description="texts for each prompt whose variety is measured, at each temperature"
    )
    sampler: SamplerName | None = Field(
        None, description="way of CALM models to a temperature below 1 (docs/quality.md); unset: the best for the head"
    )
    temperature_samples: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="samples per chunk of the sampler batch, unset: 200; alone it stands for batch",
    )

    @model_validator(mode="after")
    def _samples_are_of_batch(self) -> Self:
        if self.temperature_samples and self.sampler not in (None, "batch"):
            raise ValueError(f"temperature_samples is of the sampler batch, and not of {self.sampler}; leave one out")
        return self

    @model_validator(mode="after")
    def _tails_are_resampled(self) -> Self:
        highest = 1 - 2 / self.bootstrap_resamples
        if self.confidence > highest:
            raise ValueError(
                f"confidence ({self.confidence}) leaves less than one of bootstrap_resamples "
                f"({self.bootstrap_resamples}) beyond each end of an interval; lower it to {highest:g}, or raise "
                f"bootstrap_resamples to {math.ceil(2 / (1 - self.confidence))}"
            )
        return self

    def interval(self, chunk_size: int, sequence_length: int) -> int:
        """Tokens between two scored positions of a model with chunks of K tokens.

        Raises:
            ConfigError: It is no multiple of K, or leaves no position in a sequence.
        """
        interval = self.position_interval or math.lcm(SCORED_TOKENS, chunk_size)
        if interval % chunk_size:
            raise ConfigError(f"evaluation.position_interval ({interval}) must be a multiple of K ({chunk_size})")
        scored = chunk_size * -(-SCORED_TOKENS // chunk_size)
        if interval + scored > sequence_length:
            raise ConfigError(
                f"evaluation.position_interval ({interval}) leaves no position to score in sequences of "
                f"{sequence_length} tokens (data.sequence_length), since {scored} tokens have to follow one"
            )
        return interval
