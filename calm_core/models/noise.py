"""Random numbers that belong to a sequence, not to a process.

Each sequence of a batch has its own seeded generator, so what it draws depends neither on the other sequences of the
batch, nor on the number of ranks, nor on where training was resumed.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts (run seed, purpose, step, position ...); equal parts give equal seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class SequenceNoise:
    """Seeded generators, one per sequence; every draw has the batch of sequences as its first dimension (fp32)."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

    def rows(self, rows: Sequence[int]) -> "SequenceNoise":
        """The same generators for some of the sequences: what is drawn here is drawn there."""
        part = SequenceNoise([], self.device)
        part._generators = [self._generators[row] for row in rows]
        return part

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1) numbers, [B, *shape]."""
        draws = torch.empty(len(self._generators), *shape, device=self.device)
        for row, generator in zip(draws, self._generators, strict=True):
            row.normal_(generator=generator)
        return draws

    def uniform(self, *shape: int) -> Tensor:
        """Numbers uniform in [0, 1), [B, *shape]."""
        draws = torch.empty(len(self._generators), *shape, device=self.device)
        for row, generator in zip(draws, self._generators, strict=True):
            row.uniform_(generator=generator)
        return draws
