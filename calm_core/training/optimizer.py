"""The recipe of a step: learning rates and AdamW."""

import math
from typing import Any

import torch
from torch import Tensor, nn

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


AVERAGE = "ema"


def state_kinds(config: TrainingConfig) -> tuple[str, ...]:
    """Names of the optimiser's state tensors that are as large as the parameter that they belong to."""
    return ("exp_avg", "exp_avg_sq")


class Optimizer(torch.optim.AdamW):
    """AdamW that can clip, and leave a step out, by itself.

    Args:
        clip: The largest gradient norm, None where the engine clips.

    Attributes:
        gradient_norm: Of the last step's gradient before it was clipped.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], clip: float | None) -> None:
        super().__init__(groups, betas=betas)
        self._clip = clip
        self.gradient_norm = 0.0

    def init_state(self, parameter: Tensor) -> None:
        """Make the state of a parameter, if it has none."""
        if not self.state[parameter]:
            zeros = {kind: torch.zeros_like(parameter.detach()) for kind in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": torch.tensor(0.0), **zeros}

    def step(self, closure: Any = None) -> None:
        if self._clip is not None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            self.gradient_norm = float(nn.utils.clip_grad_norm_(parameters, self._clip))
            if not math.isfinite(self.gradient_norm):
                return
        super().step()


def make_optimizer(model: nn.Module, config: TrainingConfig, clips: bool) -> Optimizer:
    return Optimizer(parameter_groups(model, config), config.betas, config.gradient_clipping if clips else None)
