"""The energy loss and whole training steps, against the same mathematics written plainly; CALM against the baseline."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from benchmarks.measure import Row, compared, peak_bytes, side_by_side
from benchmarks.sizes import LARGE, SMALL, K, L, M, N, V, baseline, models, plain_energy_loss, written_plainly
from calm_core.config import Config, resolve_config
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.energy_score import energy_loss
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.training.engine import computes_bf16
from calm_core.training.tasks.autoencoder import AutoencoderTask
from calm_core.training.tasks.base import Task
from calm_core.training.tasks.calm import CalmTask
from calm_core.training.tasks.transformer import TransformerTask
from pipelines import profiles

POSITIONS = 4 * 1024 // K
Step = Callable[[], object]
_LOSSES = {"plain": plain_energy_loss, "ours": energy_loss}


def rows() -> Iterator[Row]:
    seconds = side_by_side({name: _energy(name) for name in _LOSSES}, repeats=7)
    size = f"{POSITIONS} positions, N {N}, M {M}, l {L}"
    yield compared(f"energy loss, forward and backward, {size}", seconds, target=10)
    plain, ours = (_peak(name) for name in _LOSSES)
    yield Row(
        f"energy loss, memory, {size}", f"{plain / 2**20:,.0f} MiB", f"{ours / 2**20:,.1f} MiB", plain / ours, target=20
    )
    for precision in precisions():
        for size, (make, repeats, target) in STEPS.items():
            step = in_precision(precision, make())
            seconds = side_by_side({"plain": plainly(step), "ours": step}, repeats)
            yield compared(f"training step {size}, {precision}", seconds, target)


def precisions() -> list[str]:
    """What `precision: auto` could be on this processor."""
    return ["fp32", *(["bf16-mixed"] if computes_bf16() else [])]


def in_precision(precision: str, step: Step) -> Step:
    """A step in fp32, or under torch's autocast as the loop does it in bf16-mixed."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            step()

    return run


def small_step() -> Step:
    calm, autoencoder = models(SMALL, head_layers=4)
    return _step(CalmTask(calm, autoencoder, pad_id=0), batch=4, tokens=1024)


def large_step() -> Step:
    calm, autoencoder = models(LARGE, head_layers=2)
    return _step(CalmTask(calm, autoencoder, pad_id=0), batch=1, tokens=2048)


def tiny_step() -> Step:
    """Of the CALM of profile `tiny`."""
    config, autoencoder = _tiny()
    freeze(autoencoder)
    shape = config.autoencoder.model
    calm = Calm(config.calm.model, config.tokenizer.vocab_size, shape.chunk_size, shape.latent_size)
    task = CalmTask(calm, autoencoder, pad_id=0)
    return _step(task, config.calm.micro_batch_size, config.data.sequence_length)


def tiny_autoencoder_step() -> Step:
    """Of the autoencoder of profile `tiny`."""
    config, autoencoder = _tiny()
    task = AutoencoderTask(autoencoder, pad_id=0)
    return _step(task, config.autoencoder.micro_batch_size, config.data.sequence_length)


def _tiny() -> tuple[Config, Autoencoder]:
    config = resolve_config(profiles.load("tiny"))
    torch.manual_seed(0)
    return config, make_autoencoder(config.autoencoder.model, config.tokenizer.vocab_size)


STEPS: dict[str, tuple[Callable[[], Step], int, float]] = {
    "(a): d 256, 4 layers, 4 x 1024 tokens": (small_step, 5, 1.8),
    "(b): d 1024, 8 layers, 1 x 2048 tokens": (large_step, 3, 1.25),
}
"""How each is made, how often it is measured, and what ratio was asked."""


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
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _step(task: Task[Any], batch: int, tokens: int) -> Step:
    """A training step as the loop does it, with torch's fused AdamW."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(task.model.parameters(), lr=1e-4, fused=True)
    vocab_size = int(cast(Any, task.model).vocab_size)  # every model has one
    tokens_BT = torch.randint(1, vocab_size, (batch, tokens), generator=generator)
    counts = task.counts(tokens_BT)

    def run() -> None:
        optimiser.zero_grad()
        task.loss(task.model, tokens_BT, SequenceNoise(range(batch)), counts).value.backward()
        optimiser.step()

    return run


def plainly(step: Step) -> Step:
    """The same step in the plain way."""

    def run() -> None:
        with written_plainly():
            step()

    return run


if __name__ == "__main__":
    print(peak_bytes(_energy(sys.argv[1])))
