"""Which sequences a training has stopped at, for people."""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

from calm_core.data.reading.dataset import Source
from calm_core.data.reading.sources import shown_sources

_LONGEST_COMMAND = 500  # characters


@dataclass(frozen=True)
class BadRows:
    """The sequences of the last steps, on all ranks.

    Attributes:
        last_step: The last one's number.
        batch_size: Sequences in one.
        positions: Of the sequences in the global stream.
        suspects: Those of them whose micro-batch had a loss that is not finite; none where it was the gradient's.
        source_of: Where the sequence at a position lies.
    """

    last_step: int
    batch_size: int
    positions: range
    suspects: Collection[int]
    source_of: Callable[[int], Source]

    def to_bytes(self) -> bytes:
        """A JSON line for each sequence."""
        suspects = set(self.suspects)
        return b"".join(
            json.dumps(
                {"step": self._step_of(place), **self.source_of(place)._asdict(), "suspect": place in suspects}
            ).encode()
            + b"\n"
            for place in self.positions
        )

    def _step_of(self, position: int) -> int:
        return self.last_step - (self.positions.stop - 1 - position) // self.batch_size

    @property
    def steps(self) -> str:
        """Which steps they are of."""
        first = self._step_of(self.positions.start)
        return f"step {first:,}" if first == self.last_step else f"steps {first:,} to {self.last_step:,}"

    def command(self) -> str:
        """The command that shows the suspects, or all if there are none; as many as fit, and those of one dataset."""
        (dataset, rows), *others = shown_sources(map(self.source_of, sorted(self.suspects) or self.positions))
        options = [rows, *(more for uri, more in others if uri == dataset)]
        command = " ".join([f"calm inspect {dataset}", *(f"--rows {rows}" for rows in options)])
        return command if len(command) <= _LONGEST_COMMAND else command[:_LONGEST_COMMAND].rpartition(",")[0] or command
