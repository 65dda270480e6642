"""Settings of a retraining."""

from typing import Literal

from pydantic import Field

from calm_core.config.base import Section


class RetrainingConfig(Section):
    """How a retraining begins, once there is new text."""

    start: Literal["scratch", "champion"] = Field(
        "scratch",
        description="champion: autoencoder and language model both go on from the champion's weights, with a new "
        "optimiser and schedule; scratch: from random weights, so that a version follows from text and settings alone",
    )
