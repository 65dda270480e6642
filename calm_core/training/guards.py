"""What ends a training before its last step: a request to stop, numbers that are not finite."""

import math
import signal
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from types import FrameType
from typing import Any

import numpy as np

from calm_core.config import TrainingConfig
from calm_core.errors import CalmError

COUNTS = ("bad_steps", "skipped_steps", "loss_spikes", "rewinds")
WINDOW = 128
"""Losses that a loss is compared with."""
SPIKE_DEVIATIONS = 7
_NORMAL = 1.4826  # of a normal distribution, the standard deviation is so many median absolute deviations


class StopRequest:
    """Whether this rank has been asked to stop, by SIGTERM."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a request while the block lasts."""

        def ask(signum: int, frame: FrameType | None) -> None:
            self.asked = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def require_step(stage: str, step: int, skipped_steps: int) -> None:
    """Refuse to go on where the engine has left a step out, as it does in bf16 when a gradient is not finite.

    Raises:
        CalmError: It has.
    """
    if skipped_steps:
        raise CalmError(f"{stage}: the gradient is not finite at step {step}; lower learning_rate")


def require_finite(stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Refuse to go on from a loss that is infinite or no number.

    Raises:
        CalmError: It is.
    """
    if not np.isfinite(list(metrics.values())).all():
        raise CalmError(f"{stage}: the loss is not finite at step {step} ({dict(metrics)}); lower learning_rate")


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

    Every rank has its own guards and gives them the same numbers, so that all of them decide alike.

    Args:
        config: The limits, and how long the warm-up is.

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
        self._invalid = False  # the last validation
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check_step(self, step: int, metrics: Mapping[str, float], loss: float | None, gradient_norm: float) -> Verdict:
        """Take in a step.

        Args:
            step: Its number, from 1 on.
            metrics: What it tells, by name.
            loss: Of its global batch; None where nothing in the batch counts.
            gradient_norm: Not finite where the engine has skipped the step.
        """
        skipped = not math.isfinite(gradient_norm)
        numbers = {**metrics, "gradient norm": gradient_norm} | ({} if loss is None else {"loss": loss})
        self.skipped_steps += skipped
        if self._is_bad(numbers):
            self.bad_steps += 1
            self.bad_in_row += 1
            return Verdict.BAD
        self.bad_in_row = 0
        if loss is None:
            return Verdict.OK
        spike = step > self._config.warmup_steps and self._is_spike(loss)
        self._losses.append(loss)
        self.loss_spikes += spike
        self.spikes_in_row = self.spikes_in_row + 1 if spike else 0
        return Verdict.SPIKE if spike else Verdict.OK

    def check_validation(self, metrics: Mapping[str, float]) -> Verdict:
        """Take in what was measured on held-out text after the last step.

        One number that is not finite is too many: it comes from the weights, and no batch to come mends them.
        """
        self._invalid = self._is_bad(metrics)
        if self._invalid and not self.bad_in_row:  # a bad step counts once
            self.bad_steps += 1
            self.bad_in_row = 1
        return Verdict.BAD if self._invalid else Verdict.OK

    @property
    def at_limit(self) -> bool:
        """Whether there were as many bad steps in a row as are allowed."""
        return self._invalid or self.bad_in_row >= self._config.bad_steps_limit

    @property
    def wants_rewind(self) -> bool:
        """Whether to go back to a checkpoint: at the limit, or where as many losses in a row are spikes."""
        lasting = self.spikes_in_row >= self._config.bad_steps_limit
        return self.rewinds < self._config.rewinds and (self.at_limit or lasting)

    @property
    def steady(self) -> bool:
        """Whether the last step was neither bad nor a spike, so that its weights are worth going back to."""
        return not (self.bad_in_row or self.spikes_in_row)

    @property
    def counts(self) -> dict[str, int]:
        """What there has been, by name."""
        return {name: getattr(self, name) for name in COUNTS}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to decide as an unbroken one: JSON numbers."""
        rows = {"bad_in_row": self.bad_in_row, "spikes_in_row": self.spikes_in_row}
        return {**self.counts, **rows, "losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name in (*COUNTS, "bad_in_row", "spikes_in_row"):
            setattr(self, name, state[name])
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._invalid = False

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint's state, but for the counts: what was left out stays counted."""
        counts = self.counts | {"rewinds": self.rewinds + 1}
        self.load_state_dict({**state, **counts})

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
