"""What ends a training before its last step: numbers that are not finite. And losses that jump, which need not."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from calm_core.config import TrainingConfig

COUNTS = ("bad_steps", "skipped_steps", "loss_spikes", "rewinds")
WINDOW = 128
"""Losses that a loss is compared with."""
SPIKE_DEVIATIONS = 7
_NORMAL = 1.4826  # of a normal distribution, the standard deviation is so many median absolute deviations


class Verdict(Enum):
    """What a step was."""

    OK = auto()
    BAD = auto()
    SPIKE = auto()


class Guards:
    """Counts the steps of a training that went wrong, and says when there were too many.

    A step is bad where its loss, its gradient or its validation is not finite; where the gradient is not, the engine
    has skipped it. A loss is a spike where it lies above the median of the last ones by more than 7 of their standard
    deviations, estimated by 1.4826 times their median absolute deviation (the Hampel identifier: Davies and Gather,
    "The Identification of Multiple Outliers", 1993; 7 is what OLMo 2 counts as a spike, arXiv 2501.00656). Nothing is a
    spike in warm-up, before there are enough losses, or where most of the last ones are equal.

    Going back to a checkpoint and leaving the batches since out is what PaLM's training did by hand (arXiv 2204.02311,
    section 5.1). It goes to the last one that was followed by a good step: one made right before the trouble may hold
    its cause.

    Every rank has its own guards and gives them the same numbers, so that all of them decide alike.

    Args:
        config: The limits, the number of steps, and how long the warm-up is.

    Attributes:
        bad_steps, skipped_steps, loss_spikes, rewinds: How many there have been.
        bad_in_row, spikes_in_row: How many of the last steps were bad, or spikes.
        reason: What was not finite the last time, for people.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self.bad_steps = self.skipped_steps = self.loss_spikes = self.rewinds = 0
        self.bad_in_row = self.spikes_in_row = 0
        self.reason = ""
        self._is_invalid = self._is_last = False  # the last validation, the last step
        self._saved: int | None = None  # a checkpoint that nothing has followed yet
        self._followed: int | None = None  # the newest one that a good step has
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check_step(self, step: int, metrics: Mapping[str, float], loss: float | None, gradient_norm: float) -> Verdict:
        """Take in a step.

        Args:
            step: Its number, from 1 on.
            metrics: What it tells, by name.
            loss: Of its global batch; None where nothing in the batch counts.
            gradient_norm: Not finite where the engine has skipped the step.
        """
        self._is_last = step == self._config.steps
        self.skipped_steps += not math.isfinite(gradient_norm)
        if self._is_bad({**metrics, "gradient norm": gradient_norm}):
            self.bad_steps += 1
            self.bad_in_row += 1
            return Verdict.BAD
        self.bad_in_row = 0
        spike = loss is not None and step > self._config.warmup_steps and self._is_spike(loss)
        if loss is not None:
            self._losses.append(loss)
        self.loss_spikes += spike
        self.spikes_in_row = self.spikes_in_row + 1 if spike else 0
        if not spike and self._saved is not None:
            self._followed, self._saved = self._saved, None
        return Verdict.SPIKE if spike else Verdict.OK

    def check_validation(self, metrics: Mapping[str, float]) -> Verdict:
        """Take in what was measured on held-out text after the last step.

        One number that is not finite is too many: it comes from the weights, and no batch to come mends them.
        """
        self._is_invalid = self._is_bad(metrics)
        if self._is_invalid and not self.bad_in_row:  # a bad step counts once
            self.bad_steps += 1
            self.bad_in_row = 1
        return Verdict.BAD if self._is_invalid else Verdict.OK

    def saved(self, step: int) -> None:
        """Take in that a checkpoint of this step is made, which an unbroken training would make as well."""
        if not (self.bad_in_row or self.spikes_in_row):
            self._saved = step

    @property
    def at_limit(self) -> bool:
        """Whether training cannot go on from here: too many bad steps in a row, or no good one after them."""
        row = self.bad_in_row
        return self._is_invalid or row >= self._config.bad_steps_limit or (row > 0 and self._is_last)

    @property
    def wants_rewind(self) -> bool:
        """Whether to go back to a checkpoint: at the limit, or where as many losses in a row are spikes."""
        lasting = self.spikes_in_row >= self._config.bad_steps_limit
        return self.rewinds < self._config.rewinds and (self.at_limit or lasting)

    @property
    def rewind_step(self) -> int | None:
        """The step of the checkpoint to go back to; None before there is one."""
        return self._saved if self._followed is None else self._followed

    @property
    def counts(self) -> dict[str, int]:
        """What there has been, by name."""
        return {name: getattr(self, name) for name in COUNTS}

    def summary(self) -> str:
        """What there has been, for people; empty where nothing was."""
        counts = {
            f"of {self._config.steps:,} steps bad": self.bad_steps,
            "skipped": self.skipped_steps,
            f"loss spike{'s' * (self.loss_spikes != 1)}": self.loss_spikes,
            f"rewind{'s' * (self.rewinds != 1)}": self.rewinds,
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)

    def state_dict(self) -> dict[str, Any]:
        """The fields of a `GuardState`: all that a resumed training needs to decide as an unbroken one.

        A checkpoint is made where no step is bad, so it does not say how many are.
        """
        places = {"saved": self._saved, "followed": self._followed}
        return {**self.counts, "spikes_in_row": self.spikes_in_row, **places, "losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name in COUNTS:
            setattr(self, name, state[name])
        self.bad_in_row, self.spikes_in_row = 0, state["spikes_in_row"]
        self._is_invalid = self._is_last = False
        self._saved, self._followed = state["saved"], state["followed"]
        self._losses = deque(state["losses"], maxlen=WINDOW)

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint's state, but for the counts: what was left out stays counted."""
        self.load_state_dict({**state, **self.counts, "rewinds": self.rewinds + 1})

    def _is_bad(self, numbers: Mapping[str, float]) -> bool:
        """Whether one is not finite; they are noted as the reason."""
        wrong = [f"{name.replace('_', ' ')} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
        self.reason = ", ".join(wrong) or self.reason
        return bool(wrong)

    def _is_spike(self, loss: float) -> bool:
        if len(self._losses) < WINDOW:
            return False
        median = statistics.median(self._losses)
        deviation = _NORMAL * statistics.median(abs(other - median) for other in self._losses)
        return deviation > 0 and loss > median + SPIKE_DEVIATIONS * deviation
