"""The training loop: every rank runs it, DeepSpeed steps the model, rank 0 reports.

Randomness is a function of (seed, step, sequence), so a resumed run continues bit for bit, and a run on more ranks
computes the same global batches with the same noise.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from calm_core.config import TrainingConfig
from calm_core.data.reading.loader import Batch, Loader, Mixture, TokenDataset
from calm_core.errors import CalmError
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.telemetry.mlflow_run import Run
from calm_core.telemetry.progress import report
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.distributed import all_reduce_sum
from calm_core.training.tasks import Task

DEFAULT_BUCKET = 500_000_000  # elements, DeepSpeed's default reduce_bucket_size


class Interrupted(CalmError):
    """The run was asked to stop; its checkpoint is saved and the next run continues from it."""


def headline_text(name: str, value: float) -> str:
    """A metric as it is shown beside a stage."""
    number = f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {number}"


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, then linear decay over the last steps."""
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    decay_steps = config.decay_fraction * config.steps
    decay = (config.steps - step) / decay_steps if step > config.steps - decay_steps else 1.0
    return min(warmup, decay)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only, not on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def start_engine(task: Task, config: TrainingConfig, bf16: bool) -> Any:
    """DeepSpeed's engine around the task's model, with AdamW and the learning-rate schedule."""

    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: learning_rate_factor(config, step))

    parameters = sum(p.numel() for p in task.model.parameters())
    micro_steps = config.global_batch_size // (config.micro_batch_size * dist.get_world_size())
    engine, *_ = deepspeed.initialize(
        model=task.model,
        optimizer=AdamW(parameter_groups(task.model, config.weight_decay), lr=config.learning_rate, betas=config.betas),
        lr_scheduler=schedule,
        config={
            "train_batch_size": config.global_batch_size,
            "train_micro_batch_size_per_gpu": config.micro_batch_size,
            "gradient_accumulation_steps": micro_steps,
            "gradient_clipping": config.gradient_clipping,
            "zero_optimization": {
                "stage": config.zero_stage,
                # DeepSpeed allocates the whole bucket anew each step, however small the model.
                "reduce_bucket_size": min(DEFAULT_BUCKET, parameters),
            },
            "bf16": {"enabled": bf16},
            "steps_per_print": 10**9,  # the loop reports itself
        },
    )
    return engine


class Trainer:
    """Trains one task on one data set.

    Args:
        task: Model and loss.
        dataset, validation: Training and held-out sequences.
        config: Batch sizes, schedule, intervals.
        seed: Of the order of the data and of all noise.
        stage: Name under which progress is reported.
        run: Where rank 0 logs the curves.
        checkpoints: URL of the folder of this training run's checkpoints.
        bf16: Whether DeepSpeed trains in bfloat16.
    """

    def __init__(
        self,
        task: Task,
        dataset: TokenDataset | Mixture,
        validation: TokenDataset | Mixture,
        config: TrainingConfig,
        *,
        seed: int,
        stage: str,
        run: Run,
        checkpoints: str,
        bf16: bool,
    ) -> None:
        self.task = task
        self.config = config
        self.seed = seed
        self.stage = stage
        self.run = run
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.validation = validation
        self.loader = Loader(dataset, config.global_batch_size, seed=seed, rank=self.rank, world_size=self.world_size)
        self.engine = start_engine(task, config, bf16)
        self.device: torch.device = self.engine.device
        self.checkpointer = Checkpointer(checkpoints)
        self.step = 0
        self.curves: list[dict[str, float]] = []
        self.tokens_per_second = 0.0
        self.loader_wait_seconds = 0.0
        self._stop_asked = False

    def fit(self) -> None:
        """Train to the last step, from the latest checkpoint if there is one.

        Raises:
            Interrupted: SIGTERM came; a checkpoint of the step that was under way is saved.
            CalmError: The loss is not finite.
        """
        if state := self.checkpointer.load_latest(self.engine):
            self.step, self.curves = state["step"], state["curves"]
            self.loader.load_state_dict(state["loader"])
        first_step, started, filling = self.step, time.monotonic(), 0.0
        with self._stopping_on_sigterm():
            while self.step < self.config.steps:
                metrics, stop = self._train_step()
                self.step += 1
                elapsed = time.monotonic() - started
                if self.step == first_step + 1:
                    filling = self.loader.wait_seconds  # the first batch has to be waited for
                self.loader_wait_seconds = self.loader.wait_seconds - filling
                self.tokens_per_second = self._tokens(self.step - first_step) / elapsed
                last = self.step == self.config.steps
                validated = self.step % self.config.validation_interval == 0 or last
                if validated:
                    metrics |= {f"validation_{name}": value for name, value in self.validate().items()}
                if self.step % self.config.log_interval == 0 or validated:
                    self._log(metrics, eta=elapsed / (self.step - first_step) * (self.config.steps - self.step))
                if stop or (self.step % self.config.checkpoint_interval == 0 and not last):
                    self._save_checkpoint()
                if stop and not last:
                    raise Interrupted(
                        f"stopped after step {self.step} of {self.config.steps}; run again to continue from there"
                    )

    def _tokens(self, steps: int) -> int:
        return steps * self.config.global_batch_size * self.loader.dataset.sequence_length

    def _train_step(self) -> tuple[dict[str, float], bool]:
        """One optimiser step on one global batch: its metrics, and whether any rank was asked to stop."""
        batch = self.loader.next_batch()
        tokens = batch.tokens.to(self.device)
        stop_asked = torch.tensor([float(self._stop_asked)], device=self.device)
        totals = all_reduce_sum(torch.cat([self.task.counts(tokens), stop_asked]), self.device)
        counts, stop = totals[:-1].clamp_min(1), bool(totals[-1] > 0)
        sums: dict[str, Tensor] = {}
        for part in _micro_batches(batch, self.config.micro_batch_size):
            noise = self._noise("train", self.step, part.positions)
            loss = self.task.loss(self.engine, part.tokens.to(self.device), noise, counts)
            # The engine averages over ranks and micro-batches; the loss is already a share of the global mean.
            self.engine.backward(loss.value * self.world_size * self.engine.gradient_accumulation_steps())
            self.engine.step()
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach()
        metrics = self._reduce(sums)
        if not np.isfinite(list(metrics.values())).all():
            raise CalmError(
                f"{self.stage}: the loss is not finite at step {self.step + 1} ({metrics}); lower learning_rate"
            )
        return metrics, stop

    def _noise(self, purpose: str, step: int, positions: list[int]) -> SequenceNoise:
        return SequenceNoise([derive_seed(self.seed, purpose, step, p) for p in positions], self.device)

    def _reduce(self, sums: dict[str, Tensor]) -> dict[str, float]:
        names = sorted(sums)
        values = all_reduce_sum(torch.stack([sums[name] for name in names]).double(), self.device)
        return dict(zip(names, values.tolist(), strict=True))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Metrics on the first held-out sequences, with the same noise each time; shared between the ranks."""
        number = min(self.config.validation_sequences, self.validation.num_sequences)
        batches = [
            Batch(torch.from_numpy(self.validation.rows(indices)), indices.tolist())
            for indices in np.array_split(np.arange(number), -(-number // self.config.micro_batch_size))
        ]
        counts = torch.stack([self.task.counts(batch.tokens) for batch in batches]).sum(0).clamp_min(1).to(self.device)
        sums: dict[str, Tensor] = {}
        self.task.model.eval()
        for batch in batches:  # each rank computes all of them: validation is small, and ZeRO-3 needs ranks in step
            noise = self._noise("validation", 0, batch.positions)
            loss = self.task.loss(self.engine, batch.tokens.to(self.device), noise, counts)
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
        self.task.model.train()
        return {name: float(value) for name, value in sums.items()}

    def _log(self, metrics: dict[str, float], eta: float) -> None:
        if self.rank != 0:
            return
        metrics = metrics | {"learning_rate": self.engine.get_lr()[0]}
        self.curves.append({"step": self.step, **metrics})
        speed = {"tokens_per_second": self.tokens_per_second, "loader_wait_seconds": self.loader_wait_seconds}
        self.run.log_metrics(metrics | speed, step=self.step)
        report(
            self.stage,
            done=self.step,
            total=self.config.steps,
            rate=self.tokens_per_second,
            eta=eta,
            note=self._headline(),
        )

    def _headline(self) -> str:
        """The latest validation number that matters, or the training loss before there is one."""
        names = (f"validation_{self.task.headline}", self.task.headline)
        for name in names:
            for record in reversed(self.curves):
                if name in record:
                    return headline_text(name, record[name])
        return ""

    def _save_checkpoint(self) -> None:
        state = {"step": self.step, "curves": self.curves, "loader": self.loader.state_dict()}
        self.checkpointer.save(self.engine, self.step, state)

    @contextmanager
    def _stopping_on_sigterm(self) -> Iterator[None]:
        def ask(signum: int, frame: FrameType | None) -> None:
            self._stop_asked = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def weights(self) -> dict[str, Tensor]:
        """The whole model's weights on CPU, contiguous; gathered from all ranks under ZeRO-3."""
        with deepspeed.zero.GatheredParameters(list(self.task.model.parameters()), enabled=self.config.zero_stage == 3):
            return {name: value.detach().cpu().clone() for name, value in self.task.model.state_dict().items()}


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.positions), size):
        yield Batch(batch.tokens[start : start + size], batch.positions[start : start + size])
