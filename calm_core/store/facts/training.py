"""Facts of a training job and its checkpoints."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from calm_core.store.facts.base import ORIGIN, Count, Facts, Measured, Number, Precision, Record, Seconds


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
        precision: That it was trained in, one after the other where that has changed; None of earlier code.
        ranks: That wrote it; any other number can go on from it.
        seconds, accelerator_seconds, energy_joules: What training has taken in all (see `Spent`).
    """

    schema_version: ClassVar[int] = 3

    step: Count
    position: Count
    optimizer_steps: Count
    validation: Number | None = None
    guards: GuardState = GuardState()
    precision: Precision | None = None
    ranks: Annotated[Count, ORIGIN] = 1
    seconds: Seconds = 0.0
    accelerator_seconds: Measured = None
    energy_joules: Measured = None

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Until version 2, nothing told what accelerators had done."""
        return (config, results) if version == 2 else super().upgrade(version, config, results)

    @model_validator(mode="after")
    def _steps_add_up(self) -> Self:
        if self.optimizer_steps > self.step:
            raise ValueError(f"{self.optimizer_steps} steps of the optimiser, more than {self.step} in all")
        return self
