"""The ranks of test_not_finite: they train small baselines one after the other, each with something wrong in it.

Arguments: a JSON file with the cases, and the folder where each has one of its own, with its job, its output, and
`endings.json`: how each start of it has ended. Given the spec of a single training, they train that as a whole program
does; the case is in $FAULT then.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from calm_core.config import TrainingConfig, TransformerConfig
from calm_core.data.reading.loader import Batch
from calm_core.errors import CalmError, Interrupted
from calm_core.models.noise import SequenceNoise
from calm_core.store.facts import CheckpointFacts
from calm_core.training import loop, worker
from calm_core.training.energy import EnergyMeter
from calm_core.training.job import Job, TrainingSpec, check_inputs
from calm_core.training.loop import Trainer
from calm_core.training.meter import CostMeter
from calm_core.training.tasks.base import Loss
from calm_core.training.watchdog import Watchdog

FAULT_VARIABLE = "FAULT"
SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SETTINGS = {
    "steps": 12, "warmup_steps": 0, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 1,
    "log_interval": 1, "validation_interval": 4, "validation_sequences": 2, "checkpoint_interval": 2,
    "bad_steps_limit": 3, "precision": "fp32", "model": SHAPE,
}  # fmt: skip

_factor = loop.learning_rate_factor
_make_trainer = worker._make_trainer


class Killed(Exception):
    """The training ends as it is."""


@dataclass
class Case:
    """A training, and what is wrong in it.

    Attributes:
        settings: Beside those that all have.
        faults: By the number of a batch, from 1 on, what its numbers are multiplied by, "nan" or "inf", and where: in
            the "loss", in the "gradient" alone, or in the "validation" after it. Who leaves the batch out is spared.
        rank: That is hit; -1 is the last one.
        empty: Batches that hold nothing but padding, counted alike.
        rates: Steps with a learning rate of their own.
        stops, kills: Steps at which SIGTERM comes, or the end, once each; the training is then begun again.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    rank: int = -1
    empty: list[int] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    stops: list[int] = field(default_factory=list)
    kills: list[int] = field(default_factory=list)

    @property
    def config(self) -> TransformerConfig:
        return TransformerConfig.model_validate(SETTINGS | self.settings)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def disturb(trainer: Trainer, case: Case) -> None:
    """Do to a training what the case says. A checkpoint counts before the next step begins."""
    task, loader = trainer.task, trainer.loader
    next_batch, loss_of, save = loader.next_batch, task.loss, trainer.checkpointer.save
    is_hit = dist.get_rank() == case.rank % dist.get_world_size()
    last: list[int] = [0]  # number of the last batch

    def batch() -> Batch:
        found = next_batch()
        last[0] = found.positions[0] // trainer.config.global_batch_size + 1
        if last[0] in case.empty:
            found.tokens.fill_(loader.dataset.pad_id)
        return found

    def loss(forward: Any, tokens: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        found = loss_of(forward, tokens, noise, counts)
        where, factor = case.faults.get(str(last[0]), ("", "1"))
        if not is_hit or not where or task.model.training == (where == "validation"):
            return found
        if where == "gradient":
            found.value.register_hook(lambda gradient: gradient * float(factor))
            return found
        value = found.value * float(factor)
        return Loss(value, {**found.metrics, task.objective: value})

    def factor(config: TrainingConfig, step: int) -> float:
        trainer.stop.asked = step + 1 in case.stops
        if trainer.stop.asked:
            case.stops.remove(step + 1)
        if step + 1 in case.kills:
            case.kills.remove(step + 1)
            raise Killed
        own = case.rates.get(str(step + 1))
        return _factor(config, step) if own is None else own / config.learning_rate

    def saved(facts: CheckpointFacts, curves: bytes) -> None:
        save(facts, curves)
        trainer.checkpointer.finish()

    loader.next_batch, task.loss, trainer.checkpointer.save = batch, loss, saved  # type: ignore[method-assign]
    loop.learning_rate_factor = factor


def disturbed(case: Case) -> Any:
    """What makes trainers as the worker's own, and disturbs them."""

    def make(*arguments: Any) -> Trainer:
        trainer = _make_trainer(*arguments)
        disturb(trainer, case)
        return trainer

    return make


def run(case: Case, dataset_uri: str, folder: Path) -> None:
    """Train, again where it was ended from outside, and note all endings."""
    worker._make_trainer = disturbed(case)
    output, job = str(folder / "out"), Job(str(folder / "job"))
    spec = TrainingSpec(kind="transformer", config=case.config, dataset_uri=dataset_uri, output_uri=output, seed=0)
    spec = check_inputs(spec)
    endings: list[tuple[int, str]] = []
    while True:
        try:
            worker._train(spec, job, Watchdog(0), CostMeter(EnergyMeter(None)))
        except Killed:
            endings.append((137, "killed"))
            continue
        except Interrupted as error:
            endings.append((error.exit_code, str(error)))
            continue
        except CalmError as error:
            endings.append((error.exit_code, str(error)))
        else:
            outcome = job.outcome()
            endings.append((0, outcome.message if outcome and not dist.get_rank() else ""))
        break
    (folder / f"endings-{dist.get_rank()}.json").write_text(json.dumps(endings))


def main(cases: Path, dataset_uri: str, folder: Path) -> None:
    worker._start_distributed()
    for values in json.loads(cases.read_text()):
        run(Case(**values), dataset_uri, folder / values["name"])
    dist.destroy_process_group()


if __name__ == "__main__":
    if FAULT_VARIABLE in os.environ:
        worker._make_trainer = disturbed(Case(**json.loads(os.environ[FAULT_VARIABLE])))
        try:
            worker.main(sys.argv[1])
        except CalmError as error:
            sys.exit(error.exit_code)
    else:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
