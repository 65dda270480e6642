"""Random numbers that belong to a sequence, not to a process.

Each sequence of a batch has its own seeded generator, so what it draws depends neither on the other sequences of the
batch, nor on the number of ranks, nor on where training was resumed.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_WORTH_THREADS = 2**18  # numbers of a sequence, a millisecond's work


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
        return self._drawn(Tensor.normal_, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers uniform in [0, 1), [B, *shape]."""
        return self._drawn(Tensor.uniform_, shape)

    def _drawn(self, fill: Callable[..., Any], shape: tuple[int, ...]) -> Tensor:
        draws = torch.empty(len(self._generators), *shape, device=self.device)

        def draw(row: Tensor, generator: torch.Generator) -> None:
            fill(row, generator=generator)

        # torch draws from one generator on one thread. What a generator draws does not depend on the others.
        threads = min(torch.get_num_threads(), len(draws)) if self.device.type == "cpu" else 1
        if threads > 1 and draws[0].numel() >= _WORTH_THREADS:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(draw, draws, self._generators))
        else:
            for row, generator in zip(draws, self._generators, strict=True):
                draw(row, generator)
        return draws
