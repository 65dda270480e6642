"""What ends a training before its last step."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import numpy as np

from calm_core.errors import CalmError


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


def require_step(stage: str, step: int, gradient_norm: float) -> None:
    """Refuse to go on where the engine has left a step out, since its gradient was not finite.

    Raises:
        CalmError: It has.
    """
    if not np.isfinite(gradient_norm):
        raise CalmError(f"{stage}: the gradient is not finite at step {step}; lower learning_rate")


def require_finite(stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Refuse to go on from a loss that is infinite or no number.

    Raises:
        CalmError: It is.
    """
    if not np.isfinite(list(metrics.values())).all():
        raise CalmError(f"{stage}: the loss is not finite at step {step} ({dict(metrics)}); lower learning_rate")
