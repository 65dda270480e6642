"""Settings of how a CALM model learns from a teacher."""

from typing import Literal

from pydantic import Field

from calm_core.config.base import Section


class DistillationConfig(Section):
    """A student's lessons: noise paired with what the teacher makes of it (used with `calm.teacher`)."""

    loss: Literal["regression", "cross_entropy"] = Field(
        "regression",
        description="regression: mean squared error of the latent; cross_entropy: of the tokens, through the frozen "
        "decoder",
    )
    samples: int = Field(4, ge=1, le=4096, description="pairs of noise and target for each position")
    own_loss_weight: float = Field(0.0, ge=0, le=1e6, description="of the head's own loss on the text, added to it")
    start_from_teacher: bool = Field(
        True, description="the student begins with the teacher's weights, where names and shapes are equal"
    )
