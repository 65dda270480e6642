"""Settings of CALM's losses through the frozen decoder."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from calm_core.config.kinds import Kind, Kinds


class DecoderLossConfig(Kind):
    """What every loss of decoded samples has; it comes on top of the head's own loss, whose weight stays 1."""

    weight: float = Field(0.1, gt=0, le=1e6, description="beside the head's loss; at the first step with `until`")
    until: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the steps after which the weight is 0; it falls linearly from the first step: 0.2 is a "
        "warm-up, 1 anneals. Unset: the weight stays",
    )
    positions: float = Field(
        1.0, gt=0, le=1, description="share of each sequence's positions that it is computed on, drawn in each step"
    )
    samples: int | None = Field(
        None, ge=1, le=4096, description="N, samples of the head at a position; unset: the head's model_samples"
    )

    def weight_at(self, step: int, steps: int) -> float:
        """The weight in a step (from 0) of so many; once it is 0, it stays 0."""
        return self.weight if self.until is None else self.weight * max(0.0, 1 - step / (self.until * steps))


class DecoderCrossEntropyConfig(DecoderLossConfig):
    """Upper bound of the next chunk's negative log-likelihood; it tightens with the number of samples."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class DecoderBrierConfig(DecoderLossConfig):
    """Brier score of the decoder's distributions over tokens, averaged over samples."""

    kind: Literal["brier"] = "brier"
    samples: int | None = Field(
        None, ge=2, le=4096, description="N, samples of the head at a position; unset: the head's model_samples"
    )
    joint: bool = Field(
        False, description="of the first n tokens of a chunk together, as Brier-n for n = 1 to K; else of each alone"
    )


DECODER_LOSSES = Kinds(
    "calm.decoder_loss",
    DecoderLossConfig,
    {
        "cross_entropy": "calm_core.models.decoder_losses.cross_entropy:DecoderCrossEntropy",
        "brier": "calm_core.models.decoder_losses.brier:DecoderBrier",
    },
)


def _parse(value: Any) -> DecoderLossConfig | None:
    return None if value is None else DECODER_LOSSES.parse(value)


AnyDecoderLossConfig = Annotated[SerializeAsAny[DecoderLossConfig | None], BeforeValidator(_parse)]
