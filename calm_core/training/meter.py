"""How fast a training goes."""

import time


class SpeedMeter:
    """Rates since this process began to train; what was done before it resumed does not count.

    Args:
        first_step: Steps done before.
        steps: Steps in all.
        tokens_per_step: Tokens of a global batch.
    """

    def __init__(self, first_step: int, steps: int, tokens_per_step: int) -> None:
        self._first_step, self._steps, self._tokens_per_step = first_step, steps, tokens_per_step
        self._started = time.monotonic()
        self._filling = 0.0
        self.tokens_per_second = 0.0
        self.loader_wait_seconds = 0.0
        self.eta = 0.0

    def update(self, step: int, waited: float) -> None:
        """Take in that a step is done.

        Args:
            step: Steps done.
            waited: Seconds that batches have been waited for in all.
        """
        done, elapsed = step - self._first_step, time.monotonic() - self._started
        if done == 1:
            self._filling = waited  # the first batch has to be waited for
        self.loader_wait_seconds = waited - self._filling
        self.tokens_per_second = done * self._tokens_per_step / elapsed
        self.eta = elapsed / done * (self._steps - step)

    @property
    def rates(self) -> dict[str, float]:
        """The figures by name."""
        return {"tokens_per_second": self.tokens_per_second, "loader_wait_seconds": self.loader_wait_seconds}
