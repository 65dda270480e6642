"""The training loop: every rank runs it, DeepSpeed steps the model, rank 0 reports.

Randomness is a function of (seed, step, sequence), so a resumed run continues bit for bit, and a run on more ranks
computes the same global batches with the same noise.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from calm_core.config import TrainingConfig
from calm_core.data.reading.loader import Batch, Loader
from calm_core.errors import CalmError, Interrupted, StorageError
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.store import storage
from calm_core.store.facts import CheckpointFacts, GuardState
from calm_core.telemetry.sinks import Curves, Point, Sinks
from calm_core.training.bad_rows import BadRows
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.distributed import all_reduce_sum, gathered, largest_of
from calm_core.training.energy import EnergyMeter
from calm_core.training.engine import Engine
from calm_core.training.guards import Guards, Verdict
from calm_core.training.meter import CostMeter, Peak, SpeedMeter, Spent, most_memory
from calm_core.training.optimizer import learning_rate_factor, learning_rates
from calm_core.training.profiler import StepProfiler
from calm_core.training.stopping import StopRequest
from calm_core.training.tasks.base import Task
from calm_core.training.validation import Validator
from calm_core.training.watchdog import Watchdog

BAD_ROWS_NAME = "bad-rows.jsonl"


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
        costs: What training takes.
        watchdog: Is told of each step.
        folder: URI of the folder where is noted which sequences have stopped it.
        tell: Shows one line to whoever watches; of ranks that report nothing, it shows nothing.
        profiler: Traces some of the steps.
        peak: Of the hardware, None where it is not known.
        must_resume: Whether to go on from a checkpoint, or not to train at all.
        step: Optimiser steps done.
        precision: That it is trained in; one after the other where it goes on from a checkpoint of another one.
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
    folder: str
    tell: Callable[[str], object]
    profiler: StepProfiler
    costs: CostMeter = field(default_factory=lambda: CostMeter(EnergyMeter(None)))
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0))
    peak: Peak | None = None
    must_resume: bool = False
    step: int = 0
    precision: str = field(init=False)
    meter: SpeedMeter = field(init=False)
    guards: Guards = field(init=False)
    _told: dict[Verdict, int] = field(default_factory=dict)  # the step from which on the next one is told
    _suspects: list[int] = field(default_factory=list)  # positions whose loss was not finite at the last, bad steps
    stop: StopRequest = field(default_factory=StopRequest)

    def fit(self) -> None:
        """Train to the last step, from the latest checkpoint if there is one.

        Raises:
            Interrupted: SIGTERM came; a checkpoint of the step that was under way is saved.
            ConfigError: No checkpoint can be used, and it shall go on from one.
            CalmError: Too much was not finite; the last good checkpoint stands.
        """
        self.guards = Guards(self.config)
        self.precision = self.engine.precision
        self._resume()
        self.watchdog.alive()
        self._start_meter()
        with self.profiler:
            while not self._finished:
                self.profiler.begin_step(self.step)
                self.engine.set_learning_rate(learning_rate_factor(self.config, self.step))
                self.task.begin_step(self.step)
                metrics, stopping = self._train_step()
                self.step += 1
                self.meter.update(self.step, self.loader.wait_seconds)
                self._check(metrics)
                if not self.guards.at_limit:
                    self._validate_and_log(metrics)
                self.watchdog.alive()
                if self.guards.wants_rewind and self._rewind():
                    continue
                if self.guards.at_limit:
                    raise self._failure()
                with self.meter.aside("checkpoint_wait_seconds"):
                    self._save_if_due(stopping)
                self.watchdog.alive()

    def _start_meter(self) -> None:
        tokens = self.config.global_batch_size * self.loader.dataset.sequence_length
        self.meter = SpeedMeter(self.step, self.config.steps, tokens, self.peak)

    def _resume(self) -> None:
        if found := self.checkpointer.load_latest(is_required=self.must_resume):
            facts, curves = found
            self.step = facts.step
            self.costs.before = Spent(facts.seconds, facts.accelerator_seconds, facts.energy_joules)
            self.curves.load(curves)
            self.sinks.begin_with(self.curves.records)
            self.loader.load_state_dict({"position": facts.position})
            self.guards.load_state_dict(facts.guards.model_dump())
            self.tell(f"continues from step {self.step:,} of {self.config.steps:,}")
            self._go_on_in(facts.precision)
        elif self.config.rewinds:  # so that there is one to go back to from the first step on
            self._save(is_regular=True)

    def _go_on_in(self, before: str | None) -> None:
        """Note where a checkpoint is of another precision, as from another kind of processor: its weights are fp32."""
        if before and before.rpartition(" ")[2] != self.precision:
            self.tell(f"trains in {self.precision} from here on, before in {before}")
            before = f"{before}, then {self.precision}"
        self.precision = before or self.precision

    def _rewind(self) -> bool:
        """Go back to a checkpoint, and on behind the batches since; returns whether there is one."""
        self.checkpointer.finish()
        step, target = self.step, self.guards.rewind_step
        if target is None or not (found := self.checkpointer.load_latest(until=target)):
            return False
        facts, curves = found
        why = self.guards.reason if self.guards.at_limit else f"{self.guards.spikes_in_row} losses in a row are spikes"
        self.step = facts.step
        self.curves.load(curves)
        self.guards.rewind(facts.guards.model_dump())
        self._told.clear()
        self._suspects.clear()
        self._start_meter()
        self.watchdog.alive()
        self.tell(
            f"back from step {step:,} to the checkpoint of step {self.step:,}, and on behind the batches since: {why} "
            f"(rewind {self.guards.rewinds:,} of at most {self.config.rewinds:,})"
        )
        return True

    def _check(self, metrics: dict[str, float]) -> None:
        """Give a step to the guards, and tell what is wrong with it, once a log interval."""
        verdict = self.guards.check_step(
            self.step, metrics, metrics.get(self.task.objective), self.engine.gradient_norm
        )
        if verdict is not Verdict.BAD:
            self._suspects.clear()
        if verdict is Verdict.OK or self.step < self._told.get(verdict, 0):
            return
        self._told[verdict] = self.step + self.config.log_interval
        what = (
            self.guards.reason if verdict is Verdict.BAD else f"the loss jumped to {metrics[self.task.objective]:.4g}"
        )
        self.tell(f"step {self.step:,}: {what} ({self.guards.summary()} so far)")

    def _failure(self) -> CalmError:
        """What to say where training cannot go on; which sequences it was is written to a file as well."""
        self.checkpointer.finish()
        read = self.loader.positions(self.guards.bad_in_row)
        rows = BadRows(self.step, self.config.global_batch_size, read, self._suspects, self.loader.source_of)
        note = storage.join(self.folder, BAD_ROWS_NAME)
        if dist.get_rank() == 0:
            with suppress(StorageError):
                storage.write(note, rows.to_bytes())
        dist.barrier()  # the first rank that ends takes the others with it
        return CalmError(
            f"{self.stage}: {self.guards.reason} at {rows.steps}; {self.checkpointer.standing}. Look at what was read "
            f"({rows.command()}; all of it is in {note}) and leave it out, lower learning_rate, or allow rewinds"
        )

    @property
    def _finished(self) -> bool:
        return self.step == self.config.steps

    def _train_step(self) -> tuple[dict[str, float], bool]:
        """One optimiser step on one global batch: its metrics, and whether any rank was asked to stop."""
        device: torch.device = self.engine.device
        batch = self.loader.next_batch()
        # Summed with the counts: all ranks must decide alike, and one message is enough.
        flags = torch.tensor([self.stop.asked, self.checkpointer.is_done], dtype=torch.float64, device=device)
        totals = all_reduce_sum(torch.cat([self.task.counts(batch.tokens.to(device)), flags]), device)
        anything, counts, (stops, done) = totals[:-2].any(), totals[:-2].clamp_min(1), totals[-2:].tolist()
        if done == dist.get_world_size():
            self.checkpointer.settle()
        sums: dict[str, Tensor] = {}
        losses: list[tuple[Batch, Tensor]] = []
        for part in _micro_batches(batch, self.config.micro_batch_size):
            noise = SequenceNoise([derive_seed(self.seed, "train", self.step, p) for p in part.positions], device)
            loss = self.task.loss(self.engine, part.tokens.to(device), noise, counts)
            self.engine.backward(loss.value)
            self.engine.step()
            losses.append((part, loss.value.detach()))
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        names = sorted(sums)
        values = all_reduce_sum(torch.stack([sums[name] for name in names]).double(), device)
        metrics = dict(zip(names, values.tolist(), strict=True))
        if not all(map(math.isfinite, metrics.values())):
            own = [position for part, loss in losses if not loss.isfinite() for position in part.positions]
            self._suspects += [position for found in gathered(own) for position in found]
        return (metrics if anything else {}), stops > 0

    def _validate_and_log(self, metrics: dict[str, float]) -> None:
        validating = self.step % self.config.validation_interval == 0 or self._finished
        if validating:
            with self.meter.aside("validation_seconds"):
                measured = self.validator.metrics(self.watchdog.alive)
            measured = {f"validation_{name}": value for name, value in measured.items()}
            self.guards.check_validation(measured)
            metrics |= measured
        if validating or self.step % self.config.log_interval == 0:
            factor = learning_rate_factor(self.config, self.step - 1)
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
            metrics |= {name: rate * factor for name, rate in learning_rates(self.config).items()}
            metrics |= self.guards.counts
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

    def result(self) -> str:
        """What to say of a finished training: its headline, and what went wrong."""
        trouble = self.guards.summary()
        return f"{self.headline()} ({trouble})" if trouble else self.headline()

    def _save_if_due(self, stopping: bool) -> None:
        """Save at each interval, unless one is being saved still, and where training ends; a bad step is not saved."""
        if not self.guards.bad_in_row:
            regular = self.step % self.config.checkpoint_interval == 0
            # What is gone back to must not depend on how quickly it was written.
            if stopping or self._finished or (regular and (self.config.rewinds or not self.checkpointer.is_busy)):
                self._save(regular)
            elif regular:
                self.checkpointer.leave_out(self.step)
        if stopping and not self._finished:
            self.watchdog.stop()  # what is written is written in the time that it takes
            self.checkpointer.finish()
            there = "" if self.checkpointer.latest == self.step else f"{self.checkpointer.standing}; "
            begun = "begin anew" if self.checkpointer.latest is None else "continue from there"
            raise Interrupted(f"stopped after step {self.step} of {self.config.steps}; {there}run again to {begun}")

    def _save(self, is_regular: bool) -> None:
        if is_regular and self.config.rewinds:
            self.guards.saved(self.step)
        facts = CheckpointFacts(
            step=self.step,
            position=self.loader.state_dict()["position"],
            optimizer_steps=self.engine.optimizer_steps,
            validation=self.curves.latest(f"validation_{self.task.objective}"),
            guards=GuardState(**self.guards.state_dict()),
            precision=self.precision,
            ranks=dist.get_world_size(),
            **asdict(self.costs.spent(self.engine.device)),
        )
        self.checkpointer.save(facts, self.curves.to_bytes())


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.positions), size):
        yield Batch(batch.tokens[start : start + size], batch.positions[start : start + size])
