"""A training step of the loop, on DeepSpeed and one rank, against a plain PyTorch loop that does the same."""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.measure import Numbers, Row, in_process
from benchmarks.sizes import LARGE, SMALL
from calm_core.config import CalmConfig, Config, TrainingConfig, resolve_config
from calm_core.data.reading.dataset import open_dataset
from calm_core.data.reading.loader import Loader
from calm_core.data.sources.factbook import write_factbook
from calm_core.data.stage import prepare_data
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.telemetry.sinks import Curves, Point, Sinks
from calm_core.training import worker
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.engine import Engine
from calm_core.training.loop import Trainer
from calm_core.training.optimizer import learning_rate_factor, parameter_groups
from calm_core.training.profiler import StepProfiler
from calm_core.training.tasks.base import Inputs, Task
from calm_core.training.tasks.calm import CalmTask
from calm_core.training.tasks.make import make_task
from calm_core.training.validation import Validator
from pipelines import profiles

_CASES = {
    "tiny-autoencoder": ("autoencoder", "the autoencoder of tiny", 33),
    "tiny-calm": ("calm", "CALM of tiny", 33),
    "tiny-transformer": ("transformer", "the baseline of tiny", 33),
    "small-calm": ("calm", "CALM, d 256, 4 layers, 4 x 512 tokens", 23),
    "large-calm": ("calm", "CALM, d 1024, 8 layers, 4 x 512 tokens", 13),
}
"""By name: kind of model, what it is, steps."""
_WARM_UP = 2  # steps, in which memory is allocated
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_TOLERANCE = 1e-2  # between metrics of the two loops, whose rounding errors grow from step to step
_SEED = 0


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        text, dataset = f"{folder}/text.jsonl", f"{folder}/dataset"
        write_factbook(text)
        config = resolve_config(profiles.load("tiny"), [f"data.sources=[{text}]"])
        prepare_data(config.data, config.tokenizer, dataset)
        for case, (_, what, _) in _CASES.items():
            numbers = in_process("benchmarks.engine", case, dataset)
            for clock, name in ((f"a step of {what}", "wall"), ("... in CPU-seconds", "cpu")):
                plain, ours = (f"{1000 * numbers[f'{name}_{side}']:,.1f} ms" for side in ("plain", "ours"))
                yield Row(clock, plain, ours, numbers[f"{name}_ratio"], target=0.9)


def _config_of(case: str) -> Config:
    if case.startswith("tiny"):
        return resolve_config(profiles.load("tiny"))
    shape = SMALL if case.startswith("small") else LARGE
    layers = 4 if case.startswith("small") else 2
    sizes = [f"calm.model.{name}={value}" for name, value in shape.items()]
    head = f"calm.model.head={{kind: energy, num_layers: {layers}}}"
    return resolve_config(profiles.load("tiny"), [*sizes, head, "calm.global_batch_size=4", "calm.micro_batch_size=4"])


def _task(config: Config, kind: str, inputs: Inputs) -> Task[Any]:
    """A new model, from one seed; CALM is trained on an autoencoder that has learned nothing."""
    torch.manual_seed(_SEED)
    if kind != CalmConfig.kind:
        return make_task(getattr(config, kind), inputs)
    shape = config.autoencoder.model
    autoencoder = make_autoencoder(shape, inputs.dataset.vocab_size)
    freeze(autoencoder)
    calm = Calm(config.calm.model, inputs.dataset.vocab_size, shape.chunk_size, shape.latent_size)
    return CalmTask(calm, autoencoder, inputs.dataset.pad_id)


class _Turns:
    """A sink that gets the point of every step: there, the other loop takes its turn."""

    def __init__(self, other: Callable[[], Numbers]) -> None:
        self._other = other
        self.difference = 0.0  # of a metric, as a share of it
        self.ours: list[Numbers] = []
        self.plain: list[Numbers] = []
        self._resumed = _now()

    def begin_with(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing has been measured."""

    def log(self, point: Point) -> None:
        self.ours.append(_since(self._resumed))
        started = _now()
        with _as_torch_is():
            metrics = self._other()
        self.plain.append(_since(started))
        differences = (abs(point.metrics[name] / value - 1) for name, value in metrics.items() if value)
        self.difference = max(self.difference, *differences)
        self._resumed = _now()


def _now() -> Numbers:
    return {name: clock() for name, clock in _CLOCKS.items()}


def _since(started: Numbers) -> Numbers:
    return {name: time - started[name] for name, time in _now().items()}


@contextmanager
def _as_torch_is() -> Iterator[None]:
    """What a plain loop would have: no deterministic algorithms."""
    ours = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(ours)


def _plain_loop(task: Task[Any], loader: Loader, config: TrainingConfig) -> Callable[[], Numbers]:
    """A step as anybody writes it: the same model, loss, batches, noise, clipping, AdamW and schedule."""
    groups = parameter_groups(task.model, config)
    optimiser = torch.optim.AdamW(groups, betas=config.betas, fused=True)  # as fast as ours
    parameters = [p for group in groups for p in group["params"]]
    done = 0

    def step() -> Numbers:
        nonlocal done
        batch = loader.next_batch()
        noise = SequenceNoise([derive_seed(_SEED, "train", done, p) for p in batch.positions])
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(config, done)
        optimiser.zero_grad()
        loss = task.loss(task.model, batch.tokens, noise, task.counts(batch.tokens))
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clipping)
        optimiser.step()
        done += 1
        return {name: value.item() for name, value in loss.metrics.items()}

    return step


def _measure(case: str, dataset_uri: str, folder: str) -> Numbers:
    """Median seconds of a step of both loops, which take turns, and the median ratio of neighbours, by both clocks."""
    kind, _, steps = _CASES[case]
    whole = _config_of(case)
    never = {"validation_interval": 10**6, "checkpoint_interval": 10**6, "validation_sequences": 1}
    config: TrainingConfig = getattr(whole, kind).model_copy(
        update={"steps": steps, "log_interval": 1, "precision": "fp32", **never}
    )
    dataset, device = open_dataset(dataset_uri, "train"), torch.device("cpu")
    inputs = Inputs(dataset, None, _SEED, device, torch.float32)

    def loader() -> Loader:
        return Loader(dataset, config.global_batch_size, seed=_SEED)

    turns = _Turns(_plain_loop(_task(whole, kind, inputs), loader(), config))
    task = _task(whole, kind, inputs)
    engine, curves = Engine(task.model, config), Curves()
    trainer = Trainer(
        task=task,
        engine=engine,
        loader=loader(),
        validator=Validator(task, engine, open_dataset(dataset_uri, "validation"), config, _SEED),
        checkpointer=Checkpointer(folder, engine, config),
        sinks=Sinks([curves, turns]),
        curves=curves,
        config=config,
        seed=_SEED,
        stage=kind,
        folder=folder,
        tell=print,
        profiler=StepProfiler(None, folder, print),
    )
    trainer.fit()
    trainer.checkpointer.finish()
    counted = slice(_WARM_UP, steps - 1)  # the last step validates
    if turns.difference > _TOLERANCE:
        sys.exit(f"{case}: the loops compute different things: {turns.difference:.1e} apart")
    pairs = list(zip(turns.plain[counted], turns.ours[counted], strict=True))
    numbers = {}
    for clock in _CLOCKS:
        numbers[f"{clock}_plain"] = statistics.median(plain[clock] for plain, _ in pairs)
        numbers[f"{clock}_ours"] = statistics.median(ours[clock] for _, ours in pairs)
        numbers[f"{clock}_ratio"] = statistics.median(plain[clock] / ours[clock] for plain, ours in pairs)
    return numbers


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    worker._start_distributed()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_measure(sys.argv[1], sys.argv[2], folder)))
    torch.distributed.destroy_process_group()
