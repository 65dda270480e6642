"""The task of each kind of model."""

from typing import Any

from calm_core.config import TrainingConfig
from calm_core.training.tasks.autoencoder import AutoencoderTask
from calm_core.training.tasks.base import Inputs, Task
from calm_core.training.tasks.calm import CalmTask
from calm_core.training.tasks.distillation import DistillationTask
from calm_core.training.tasks.transformer import TransformerTask

TASKS: dict[str, type[Task[Any]]] = {task.facts.kind: task for task in (AutoencoderTask, CalmTask, TransformerTask)}


def make_task(config: TrainingConfig, inputs: Inputs) -> Task[Any]:
    """The task that a config is of, with a new model."""
    task: type[Task[Any]] = DistillationTask if inputs.teacher is not None else TASKS[config.kind]
    return task.create(config, inputs)
