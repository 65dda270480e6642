"""Settings of scores."""

import math
from typing import Annotated

from pydantic import Field

from calm_core.config.base import Section
from calm_core.errors import ConfigError

SCORED_TOKENS = 4
"""Tokens after a position whose prediction BrierLM scores."""


MIN_TEMPERATURE = 0.001
"""1/T equal samples are what a chunk needs: at T = 0 there would be no end of them."""


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
        1000, ge=100, le=100_000, description="resamples of sequences for the confidence intervals"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="level of the confidence intervals")
    prompts: tuple[Annotated[str, Field(max_length=100_000)], ...] = Field(
        ("The climate of", "The economy depends on", "In the early 19th century,"), max_length=1000
    )
    prompt_tokens: int = Field(64, ge=1, le=2**20, description="tokens written for each prompt")
    temperature: float = Field(0.5, ge=MIN_TEMPERATURE, le=1, description="temperature of the texts that are shown")
    temperature_samples: int = Field(200, ge=1, le=2**20, description="samples per chunk of the temperature sampler")

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
