"""The recipe of a step: learning rates, AdamW, and the average of the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from calm_core.config import CalmConfig, TrainingConfig
from calm_core.models.calm import Calm

AVERAGE = "ema"
"""The averaged weights, in an optimiser's state of a parameter."""


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then what the schedule says.

    With L the share of the decay that is left, from 1 before it to 0 after the last step, and F the configured floor,
    the factor falls as F + (1 - F) x shape; the shape is L (linear), 1 - sqrt(1 - L) (sqrt: Haegele et al. 2024, arXiv
    2405.18392) or (1 - cos(pi L)) / 2 (cosine: Loshchilov and Hutter 2017, arXiv 1608.03983).
    """
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    decay_steps = {
        "constant": 0.0,
        "cosine": config.steps - config.warmup_steps,
        "wsd": config.decay_fraction * config.steps,
    }[config.schedule]
    if step <= config.steps - decay_steps:
        return warmup
    left = (config.steps - step) / decay_steps
    if config.schedule == "cosine":
        shape = (1 - math.cos(math.pi * left)) / 2
    else:
        shape = left if config.decay_shape == "linear" else 1 - math.sqrt(1 - left)
    floor = config.final_learning_rate_fraction
    return min(warmup, floor + (1 - floor) * shape)


def learning_rates(config: TrainingConfig) -> dict[str, float]:
    """The configured learning rates by the names under which they are logged: all parameters', and the head's own."""
    rates = {"learning_rate": config.learning_rate}
    if isinstance(config, CalmConfig) and config.head_learning_rate is not None:
        rates["head_learning_rate"] = config.head_learning_rate
    return rates


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """The trained parameters by what AdamW does with them: weight decay on matrices only, not on biases and norms.

    The generative head's are groups of their own if it has a learning rate of its own, after the others. Each group's
    `base_lr` is what the schedule's factor multiplies to give its `lr`.
    """
    rates = learning_rates(config)
    head = set(model.mlp_generator.parameters()) if isinstance(model, Calm) and "head_learning_rate" in rates else set()
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = []
    for name, rate in rates.items():
        own = [p for p in parameters if (p in head) == (name == "head_learning_rate")]
        for decayed, weight_decay in ((True, config.weight_decay), (False, 0.0)):
            chosen = [p for p in own if (p.ndim >= 2) == decayed]
            groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": weight_decay})
    return [group for group in groups if group["params"]]


def state_kinds(config: TrainingConfig) -> tuple[str, ...]:
    """Names of the tensors, shaped like the parameter, that the optimiser keeps of each."""
    return ("exp_avg", "exp_avg_sq", *([AVERAGE] if config.ema_decay else []))


class AveragingAdamW(AdamW):
    """AdamW that averages what it steps, and can clip.

    After a parameter's step t its average moves by 1 - min(d, (1 + t) / (10 + t)) of the way to it: an exponential
    moving average that forgets the initial weights sooner than d alone would (as `num_updates` does in TensorFlow's
    ExponentialMovingAverage). The first average is the parameter itself. It is state like the moments: whoever
    shares, saves and loads those has it too. A step left out moves nothing.

    Args:
        groups: Parameters, each group with its learning rate and weight decay.
        betas: Of AdamW.
        decay: d; 0 keeps no average.
        clipping: Largest global norm of the gradient. Unset, somebody else clips, and leaves out steps whose gradient
            is not finite.

    Attributes:
        gradient_norm: Of the last step before it was clipped; not finite where that step was left out. Only with
            `clipping`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        decay: float = 0.0,
        clipping: float | None = None,
    ) -> None:
        # Fused takes a third of the time on CPU, the same numbers for any number of threads and split of parameters.
        super().__init__(groups, betas=betas, fused=True)
        self.decay = decay
        self.clipping = clipping
        self.gradient_norm = math.nan

    @torch.no_grad()
    def init_state(self, parameter: Tensor) -> None:
        """Make a parameter's state if it has none: torch does so in the first step, which loading must come before."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            if self.decay:
                state[AVERAGE] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's takes one
        """Step all parameters that have a gradient, unless it is clipped here and is not finite."""
        stepped = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.clipping is not None:
            norm = nn.utils.get_total_norm([p.grad for p in stepped if p.grad is not None])
            self.gradient_norm = float(norm)
            if not math.isfinite(self.gradient_norm):
                return
            if self.gradient_norm > 0.999 * self.clipping:  # else all gradients would be multiplied by exactly 1
                nn.utils.clip_grads_with_norm_(stepped, self.clipping, norm)
        for parameter in stepped:
            self.init_state(parameter)
        super().step(closure)
        if self.decay and stepped:
            steps = torch.stack([self.state[p]["step"] for p in stepped]).tolist()
            shares = [1 - min(self.decay, (1 + t) / (10 + t)) for t in steps]
            torch._foreach_lerp_([self.state[p][AVERAGE] for p in stepped], stepped, shares)


def make_optimizer(model: nn.Module, config: TrainingConfig, clips: bool = False) -> AveragingAdamW:
    """The optimiser of a model; it clips the gradient itself if nobody else does."""
    clipping = config.gradient_clipping if clips else None
    return AveragingAdamW(parameter_groups(model, config), config.betas, config.ema_decay, clipping)
