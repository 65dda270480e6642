"""The ranks of test_tasks: real trainings, many in one start, and what the ranks see of them.

Each leaves its artifact in <folder>/<name>/out, and what rank 0 has seen in <folder>/<name>/seen.json.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist

from calm_core.config import TrainingConfig
from calm_core.errors import Interrupted
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts
from calm_core.training import worker
from calm_core.training.distributed import gathered
from calm_core.training.energy import EnergyMeter
from calm_core.training.engine import precision_of, zero_stage
from calm_core.training.job import Job, TrainingSpec, check_inputs
from calm_core.training.loop import Trainer
from calm_core.training.meter import CostMeter
from calm_core.training.tasks.base import Task
from calm_core.training.watchdog import Watchdog
from calm_core.weights.load import load_autoencoder
from tests.training.engine_worker import partition_all

STEPS, HELD_OUT = 4, 5
LEARNING_RATE = 5e-3
_TRAINING = {
    "steps": STEPS, "warmup_steps": 1, "learning_rate": LEARNING_RATE, "global_batch_size": 4, "micro_batch_size": 1,
    "log_interval": 1, "validation_interval": 2, "validation_sequences": HELD_OUT,
    "precision": "fp32",
}  # fmt: skip
_WIDTHS = {"hidden_size": 32, "intermediate_size": 48}
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, **_WIDTHS}
_HEADS: dict[str, dict[str, Any]] = {
    "energy": {"kind": "energy", "num_layers": 1, "model_samples": 2, "target_samples": 4, "noise_size": 4},
    "diffusion": {"kind": "diffusion", "num_layers": 1, "sampling_steps": 4},
    "flow": {"kind": "flow", "num_layers": 1, "sampling_steps": 4},
}
TASKS = ("autoencoder", *_HEADS, "transformer")


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        task: The model that is trained, or the head.
        name: Of its folder.
        settings: More than those of all.
        stop: The step at which the last rank is asked to stop; 0: none.
        job: Name of the folder with its checkpoints, if it goes on from another one's.
    """

    task: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    stop: int = 0
    job: str = ""

    @classmethod
    def of(cls, task: str, name: str, stop: int = 0, job: str = "", **settings: Any) -> Self:
        return cls(task, f"{task}-{name}", settings, stop, f"{task}-{job}" if job else "")

    @property
    def config(self) -> TrainingConfig:
        kind = "calm" if self.task in _HEADS else self.task
        model: dict[str, Any] = {"chunk_size": 4, "latent_size": 8, **_WIDTHS}
        if kind != "autoencoder":
            model = _LAYERS | ({"head": _HEADS[self.task]} if kind == "calm" else {})
        # One of them with a loss of decoded samples, in every stage and precision.
        beside = {"decoder_loss": {"kind": "brier", "positions": 0.5}} if self.task == "energy" else {}
        return TrainingConfig.of_kind[kind].model_validate(_TRAINING | {"model": model} | beside | self.settings)


def look_at(trainer: Trainer, case: Case) -> dict[str, Any]:
    """Note what is seen before the first step, and ask to stop where the case says."""
    seen: dict[str, Any] = {"positions": [], "stage": trainer.engine.stage}
    seen["validation"] = trainer.validator.metrics()
    if not trainer.engine.stage and dist.get_world_size() == 1:
        seen["plain validation"] = plain_validation(trainer, case.config)
    next_batch = trainer.loader.next_batch

    def noted() -> Any:
        seen["positions"].append(trainer.loader.state_dict()["position"])
        if trainer.step + 1 == case.stop and dist.get_rank() == dist.get_world_size() - 1:
            trainer.stop.asked = True
        return next_batch()

    trainer.loader.next_batch = noted  # type: ignore[method-assign]
    return seen


def plain_validation(trainer: Trainer, config: TrainingConfig) -> dict[str, float]:
    """The metrics of all held-out sequences at once, of the model alone."""
    task, dataset = trainer.task, trainer.validator._dataset
    positions = np.arange(min(config.validation_sequences, dataset.num_sequences))
    tokens = torch.from_numpy(dataset.rows(positions))
    noise = SequenceNoise([derive_seed(0, "validation", 0, p) for p in positions.tolist()], torch.device("cpu"))
    task.model.eval()
    with torch.no_grad():
        metrics = task.loss(task.model, tokens, noise, task.counts(tokens)).metrics
    task.model.train()
    return {name: float(value) for name, value in metrics.items()}


def frozen(task: Task[Any], trainer: Trainer, autoencoder_uri: str) -> dict[str, Any]:
    """What has become of the autoencoder that a CALM model is trained on."""
    autoencoder = getattr(task, "autoencoder", None)
    if autoencoder is None:
        return {}
    parameters = list(autoencoder.parameters())
    untouched = load_autoencoder(Artifact(autoencoder_uri, AutoencoderFacts)).to(parameters[0].dtype)
    trained = {id(p) for p in trainer.engine.model.parameters()}
    return {
        "equal": all(map(torch.equal, parameters, untouched.parameters())),
        "requires_grad": any(p.requires_grad or p.grad is not None for p in parameters),
        "shared out": any(hasattr(p, "ds_id") or hasattr(p, "_hp_mapping") for p in parameters),
        "trained": any(id(p) in trained for p in parameters),
    }


def run(case: Case, dataset_uri: str, autoencoder_uri: str, folder: Path) -> None:
    makes, seen, trainers = worker._make_trainer, {}, []

    def make(*arguments: Any) -> Trainer:
        trainers.append(makes(*arguments))
        seen.update(look_at(trainers[-1], case))
        return trainers[-1]

    config = case.config
    spec = check_inputs(
        TrainingSpec(
            kind=config.kind,
            config=config,
            dataset_uri=dataset_uri,
            autoencoder_uri=autoencoder_uri if config.kind == "calm" else "",
            output_uri=str(folder / case.name / "out"),
            seed=0,
        )
    )
    worker._make_trainer = make
    try:
        worker._train(
            spec, Job(str(folder / (case.job or case.name) / "job")), Watchdog(0), CostMeter(EnergyMeter(None))
        )
    except Interrupted as error:
        seen["stopped"] = str(error)
    finally:
        worker._make_trainer = makes
    (trainer,) = trainers
    seen["frozen"] = gathered(frozen(trainer.task, trainer, autoencoder_uri))
    assert seen["stage"] == zero_stage(config, dist.get_world_size(), precision_of(config))
    if dist.get_rank() == 0:
        (folder / case.name).mkdir(exist_ok=True)
        (folder / case.name / "seen.json").write_text(json.dumps(seen))


def main(cases: Sequence[Case], dataset_uri: str, autoencoder_uri: str, folder: Path) -> None:
    worker._start_distributed()
    partition_all()
    for case in cases:
        run(case, dataset_uri, autoencoder_uri, folder)
        dist.barrier()
    dist.destroy_process_group()
