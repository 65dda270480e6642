"""The training loop: every rank runs it, DeepSpeed steps the model, rank 0 reports.

Randomness is a function of (seed, step, sequence), so a resumed run continues bit for bit, and a run on more ranks
computes the same global batches with the same noise.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from calm_core.config import TrainingConfig
from calm_core.data.reading.loader import Batch, Loader
from calm_core.errors import Interrupted
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.store.facts import CheckpointFacts
from calm_core.telemetry.sinks import Curves, Point, Sinks
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.distributed import all_reduce_sum, largest_of
from calm_core.training.engine import Engine
from calm_core.training.guards import require_finite, require_step
from calm_core.training.meter import Peak, SpeedMeter, most_memory
from calm_core.training.optimizer import learning_rate_factor, learning_rates
from calm_core.training.profiler import StepProfiler
from calm_core.training.stopping import StopRequest
from calm_core.training.tasks.base import Task
from calm_core.training.validation import Validator
from calm_core.training.watchdog import Watchdog


def headline_text(name: str, value: float) -> str:
    """A metric as it is shown beside a stage."""
    number = f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {number}"


@dataclass
class Trainer:
    """Trains one task; the parts are made by the worker.

    Attributes:
        task: Model and loss.
        engine: Steps the model.
        loader: Global batches of the training split.
        validator: Metrics on the held-out split.
        checkpointer: Where to go on from.
        sinks: What takes the points of the curves; of ranks that report nothing, none.
        curves: One of the sinks: its records are part of a checkpoint.
        config: Batch sizes, schedule, intervals.
        seed: Of all noise.
        stage: Name that an error tells.
        watchdog: Is told of each step.
        profiler: Traces some of the steps.
        peak: Of the hardware, None where it is not known.
        step: Optimiser steps done.
    """

    task: Task[Any]
    engine: Engine
    loader: Loader
    validator: Validator
    checkpointer: Checkpointer
    sinks: Sinks
    curves: Curves
    config: TrainingConfig
    seed: int
    stage: str
    profiler: StepProfiler
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0))
    peak: Peak | None = None
    step: int = 0
    meter: SpeedMeter = field(init=False)
    stop: StopRequest = field(default_factory=StopRequest)

    def fit(self) -> None:
        """Train to the last step, from the latest checkpoint if there is one.

        Raises:
            Interrupted: SIGTERM came; a checkpoint of the step that was under way is saved.
            CalmError: The loss is not finite.
        """
        self._resume()
        self.watchdog.alive()
        tokens = self.config.global_batch_size * self.loader.dataset.sequence_length
        self.meter = SpeedMeter(self.step, self.config.steps, tokens, self.peak)
        with self.stop.listening(), self.profiler:
            while not self._finished:
                self.profiler.begin_step(self.step)
                self.engine.set_learning_rate(learning_rate_factor(self.config, self.step))
                metrics, stopping = self._train_step()
                self.step += 1
                self.meter.update(self.step, self.loader.wait_seconds)
                self._validate_and_log(metrics)
                self.watchdog.alive()
                with self.meter.aside("checkpoint_wait_seconds"):
                    self._save_if_due(stopping)
                self.watchdog.alive()

    def _resume(self) -> None:
        if found := self.checkpointer.load_latest():
            facts, curves = found
            self.step = facts.step
            self.curves.load(curves)
            self.loader.load_state_dict({"position": facts.position})

    @property
    def _finished(self) -> bool:
        return self.step == self.config.steps

    def _train_step(self) -> tuple[dict[str, float], bool]:
        """One optimiser step on one global batch: its metrics, and whether any rank was asked to stop."""
        device: torch.device = self.engine.device
        batch = self.loader.next_batch()
        # Summed with the counts: all ranks must decide alike, and one message is enough.
        flags = torch.tensor([self.stop.asked, self.checkpointer.is_written], dtype=torch.float64, device=device)
        totals = all_reduce_sum(torch.cat([self.task.counts(batch.tokens.to(device)), flags]), device)
        counts, (stops, written) = totals[:-2].clamp_min(1), totals[-2:].tolist()
        if written == dist.get_world_size():
            self.checkpointer.settle()
        sums: dict[str, Tensor] = {}
        for part in _micro_batches(batch, self.config.micro_batch_size):
            noise = SequenceNoise([derive_seed(self.seed, "train", self.step, p) for p in part.positions], device)
            loss = self.task.loss(self.engine, part.tokens.to(device), noise, counts)
            self.engine.backward(loss.value)
            self.engine.step()
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        names = sorted(sums)
        values = all_reduce_sum(torch.stack([sums[name] for name in names]).double(), device)
        metrics = dict(zip(names, values.tolist(), strict=True))
        require_finite(self.stage, self.step + 1, metrics)
        require_step(self.stage, self.step + 1, self.engine.gradient_norm)
        return metrics, stops > 0

    def _validate_and_log(self, metrics: dict[str, float]) -> None:
        validating = self.step % self.config.validation_interval == 0 or self._finished
        if validating:
            with self.meter.aside("validation_seconds"):
                metrics |= {f"validation_{name}": value for name, value in self.validator.metrics().items()}
            require_finite(self.stage, self.step, metrics)
        if validating or self.step % self.config.log_interval == 0:
            factor = learning_rate_factor(self.config, self.step - 1)
            metrics |= {name: rate * factor for name, rate in learning_rates(self.config).items()}
            if math.isfinite(norm := self.engine.gradient_norm):
                metrics["gradient_norm"] = norm
            speed = self.meter.point(largest_of(self._own_figures(), self.engine.device))
            with self.meter.aside("sinks_seconds"):
                self.sinks.log(
                    Point(self.step, self.config.steps, metrics, speed, self.meter.eta, self.headline(metrics))
                )

    def _own_figures(self) -> dict[str, float]:
        return {
            "loader_wait_seconds": self.meter.loader_wait_seconds,
            "checkpoint_write_seconds": self.checkpointer.wrote,
            "memory_bytes": most_memory(self.engine.device),
        }

    def headline(self, metrics: Mapping[str, float] = MappingProxyType({})) -> str:
        """The latest validation number that matters, or the training loss before there is one.

        Args:
            metrics: Those of a point that is not in the curves yet.
        """
        names = (f"validation_{self.task.headline}", self.task.headline)
        values = ((name, metrics.get(name, self.curves.latest(name))) for name in names)
        return next((headline_text(name, value) for name, value in values if value is not None), "")

    def _save_if_due(self, stopping: bool) -> None:
        """Save at each interval, unless one is being written still, and where training ends."""
        ending = stopping or self._finished
        if ending or (self.step % self.config.checkpoint_interval == 0 and not self.checkpointer.is_busy):
            facts = CheckpointFacts(
                step=self.step,
                position=self.loader.state_dict()["position"],
                optimizer_steps=self.engine.optimizer_steps,
                validation=self.curves.latest(f"validation_{self.task.objective}"),
                ranks=dist.get_world_size(),
            )
            self.checkpointer.save(facts, self.curves.to_bytes())
        if stopping and not self._finished:
            lost = self.checkpointer.finish()
            there = f"the last checkpoint, since this one could not be saved ({lost})" if lost else "there"
            raise Interrupted(
                f"stopped after step {self.step} of {self.config.steps}; run again to continue from {there}"
            )


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.positions), size):
        yield Batch(batch.tokens[start : start + size], batch.positions[start : start + size])
