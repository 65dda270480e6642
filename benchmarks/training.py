"""The energy loss and whole training steps, against the same mathematics written plainly; CALM against the baseline."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from benchmarks.measure import Row, compared, peak_bytes, side_by_side
from benchmarks.sizes import LARGE, SMALL, K, L, M, N, V, baseline, models, plain_energy_loss, written_plainly
from calm_core.models.energy_score import energy_loss
from calm_core.models.noise import SequenceNoise
from calm_core.training.tasks.base import Task
from calm_core.training.tasks.calm import CalmTask
from calm_core.training.tasks.transformer import TransformerTask

POSITIONS = 4 * 1024 // K
_LOSSES = {"plain": plain_energy_loss, "ours": energy_loss}


def rows() -> Iterator[Row]:
    seconds = side_by_side({name: _energy(name) for name in _LOSSES}, repeats=7)
    size = f"{POSITIONS} positions, N {N}, M {M}, l {L}"
    yield compared(f"energy loss, forward and backward, {size}", seconds, target=10)
    plain, ours = (_peak(name) for name in _LOSSES)
    yield Row(
        f"energy loss, memory, {size}", f"{plain / 2**20:,.0f} MiB", f"{ours / 2**20:,.1f} MiB", plain / ours, target=20
    )
    calm, autoencoder = models(SMALL, head_layers=4)
    step = _step(CalmTask(calm, autoencoder, pad_id=0), batch=4, tokens=1024)
    seconds = side_by_side({"plain": _plainly(step), "ours": step}, repeats=5)
    yield compared("training step (a): d 256, 4 layers, 4 x 1024 tokens", seconds, target=1.8)
    calm, autoencoder = models(LARGE, head_layers=2)
    step = _step(CalmTask(calm, autoencoder, pad_id=0), batch=1, tokens=2048)
    seconds = side_by_side({"plain": _plainly(step), "ours": step}, repeats=3)
    yield compared("training step (b): d 1024, 8 layers, 1 x 2048 tokens", seconds, target=1.25)


def baseline_rows() -> Iterator[Row]:
    for vocab_size in (V, 128_256):
        calm, autoencoder = models(SMALL, head_layers=4, vocab_size=vocab_size)
        tasks: dict[str, Task[Any]] = {
            "baseline": TransformerTask(baseline(SMALL, vocab_size), pad_id=0),
            "CALM": CalmTask(calm, autoencoder, pad_id=0),
        }
        steps = {name: _step(task, batch=4, tokens=1024) for name, task in tasks.items()}
        speed = {name: 4096 / s for name, s in side_by_side(steps, repeats=3 if vocab_size == V else 1).items()}
        yield Row(
            f"training, CALM against the baseline, V {vocab_size:,}",
            f"{speed['baseline']:,.0f} tokens/s",
            f"{speed['CALM']:,.0f} tokens/s",
            speed["CALM"] / speed["baseline"],
        )


def _energy(name: str) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(POSITIONS, N, L, generator=generator).requires_grad_()
    mean = torch.randn(POSITIONS, L, generator=generator)
    deviations = 0.3 * torch.randn(POSITIONS, M, L, generator=generator)

    def run() -> None:
        samples.grad = None
        _LOSSES[name](samples, mean, deviations, 1.0).sum().backward()

    return run


def _peak(name: str) -> int:
    """Memory of one loss beyond its inputs, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _step(task: Task[Any], batch: int, tokens: int) -> Callable[[], object]:
    """A training step as the loop does it, with torch's own AdamW."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(task.model.parameters(), lr=1e-4)
    vocab_size = int(cast(Any, task.model).vocab_size)  # every model has one
    tokens_BT = torch.randint(1, vocab_size, (batch, tokens), generator=generator)
    counts = task.counts(tokens_BT)

    def run() -> None:
        optimiser.zero_grad()
        task.loss(task.model, tokens_BT, SequenceNoise(range(batch)), counts).value.backward()
        optimiser.step()

    return run


def _plainly(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with written_plainly():
            step()

    return run


if __name__ == "__main__":
    print(peak_bytes(_energy(sys.argv[1])))
