"""The recipe of a step: learning rates and AdamW."""

from typing import Any

from torch import nn

from calm_core.config import TrainingConfig


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, then linear decay over the last steps."""
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    decay_steps = config.decay_fraction * config.steps
    decay = (config.steps - step) / decay_steps if step > config.steps - decay_steps else 1.0
    return min(warmup, decay)


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """The trained parameters by what AdamW does with them: weight decay on matrices only, not on biases and norms.

    Each group's `base_lr` is what the schedule's factor multiplies to give its `lr`.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = {"lr": config.learning_rate, "base_lr": config.learning_rate}
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay, **rate},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, **rate},
    ]
    return [group for group in groups if group["params"]]
