"""What ends a training before its last step."""

from collections.abc import Mapping

import numpy as np

from calm_core.errors import CalmError


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
