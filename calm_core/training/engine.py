"""The engine of a step: DeepSpeed with AdamW, ZeRO and precision, and all of its state by parameter name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from calm_core.config import TrainingConfig
from calm_core.training.distributed import gathered
from calm_core.training.optimizer import AVERAGE, make_optimizer, state_kinds

DEFAULT_BUCKET = 500_000_000  # elements, DeepSpeed's default reduce_bucket_size
WEIGHTS = "weights"


def computes_bf16() -> bool:
    """Whether this processor multiplies bf16 numbers itself, as torch finds, and torch has what makes use of it."""
    found = torch.cpu.get_capabilities()  # "bf16" is ARM's
    return torch.backends.mkldnn.is_available() and any(map(found.get, ("avx512_bf16", "amx_bf16", "bf16")))


def precision_of(config: TrainingConfig) -> str:
    """The precision that is trained in: fp32, bf16 or bf16-mixed. With `auto` all ranks have to ask."""
    if config.precision != "auto":
        return config.precision
    if torch.cuda.is_available():
        return "bf16"
    return "bf16-mixed" if all(gathered(computes_bf16())) else "fp32"


def zero_stage(config: TrainingConfig, ranks: int, precision: str) -> int:
    """The ZeRO stage that is run.

    bf16 needs 1 at least, since without ZeRO DeepSpeed sums gradients in bf16, and 3 with offloading: in 1 and 2 it
    sums micro-batches in bf16 then, and after a step that it leaves out it leaves out all others, too. Offloading alone
    needs 1. A single rank has nobody to share with, and the flat copies of weights and gradients cost a small model a
    quarter of its step.
    """
    if config.offload:
        return 3 if precision == "bf16" else max(config.zero_stage, 1)
    if precision == "bf16":
        return max(config.zero_stage, 1)
    return config.zero_stage if ranks > 1 else 0


class Engine:
    """A model, AdamW and DeepSpeed; every rank calls every method, with the same arguments but for the data.

    In bf16, weights and activations are bf16; gradients are summed, over micro-batches and over ranks, in fp32, and
    AdamW works on fp32 weights. In bf16-mixed, weights and gradients are fp32 as well, and the model computes under
    torch's autocast: matrix products in bf16, attention too on a GPU, the rest as it is written. The model's buffers
    stay as they are. A step whose gradient is not finite changes nothing, in any stage.

    The state is what a checkpoint holds: fp32 tensors by kind (WEIGHTS, and those of the optimiser's state) and name,
    whole, whatever the stage and the number of ranks.

    Args:
        model: What is trained; it moves to the engine's device.
        config: Precision, batch sizes, stage, optimiser.

    Attributes:
        precision: That it computes in.
        device: Where it computes.
        kinds: Of the state.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        ranks = dist.get_world_size()
        self.model = model
        self.precision = precision_of(config)
        self.stage = zero_stage(config, ranks, self.precision)
        self._optimizer = make_optimizer(model, config, clips=self.stage == 0)
        self._parameters = dict(model.named_parameters())
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=self._settings(config, ranks)
        )
        if not self.stage and ranks == 1:  # a sum of one: DeepSpeed would copy all gradients, there and back
            self._deepspeed.enable_backward_allreduce = False
        self.device: torch.device = self._deepspeed.device
        if self.precision == "bf16-mixed":  # within the model: around it, DeepSpeed would switch it off on a GPU
            model.forward = torch.autocast(self.device.type, torch.bfloat16)(model.forward)
        for name, buffer in buffers.items():  # DeepSpeed makes them bf16 as well
            module, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(module), own_name, buffer.to(self.device))
        self.kinds = (WEIGHTS, *state_kinds(config))
        self._make_state()

    def _settings(self, config: TrainingConfig, ranks: int) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": self.stage,
            # DeepSpeed allocates the whole bucket anew each step, however small the model.
            "reduce_bucket_size": min(DEFAULT_BUCKET, sum(p.numel() for p in self.model.parameters())),
        }
        if config.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        return {
            "train_batch_size": config.global_batch_size,
            "train_micro_batch_size_per_gpu": config.micro_batch_size,
            "gradient_accumulation_steps": config.global_batch_size // (config.micro_batch_size * ranks),
            "gradient_clipping": config.gradient_clipping if self.stage else 0.0,  # without ZeRO, AdamW's step clips
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,  # ours is AdamW
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own needs a compiler
            "bf16": {"enabled": self.precision == "bf16"},
            # Both would follow the weights' type: in bf16 a sum of 120 micro-batches is 1 % off.
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "steps_per_print": 10**9,  # the loop reports itself
        }

    def _make_state(self) -> None:
        """Make the optimiser's state, which torch would make in the first step: a checkpoint may come before."""
        stepped = [p for group in self._optimizer.param_groups for p in group["params"]]
        if self.stage == 3:  # which takes them out between steps
            stepped = self._deepspeed.optimizer.fp32_partitioned_groups_flat
        for parameter in stepped:
            self._optimizer.init_state(parameter)
        if self.stage in (1, 2):
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def __call__(self, *arguments: Any) -> Any:
        """What the model makes of the arguments: a tensor, or a tuple of them, in which DeepSpeed finds the gradient.

        In a data class it finds none, and with ZeRO 1 in bf16 it adds each micro-batch to the next ones again.
        """
        outputs = self._deepspeed(*arguments)
        assert isinstance(outputs, (Tensor, tuple)), f"{type(outputs)} is no tensor or tuple"
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient; its loss is a share of the global batch's mean."""
        # DeepSpeed averages over ranks and micro-batches; the loss is already a share of the global mean.
        self._deepspeed.backward(loss * dist.get_world_size() * self._deepspeed.gradient_accumulation_steps())

    def step(self) -> None:
        """End a micro-batch; after the last one of a global batch, step."""
        self._deepspeed.step()

    @property
    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before it was clipped; not finite where the step was left out."""
        norm = self._optimizer.gradient_norm if self.stage == 0 else self._deepspeed.get_global_grad_norm()
        return float(norm)

    def set_learning_rate(self, factor: float) -> None:
        """Set all learning rates, as a share of the configured ones."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    @property
    def optimizer_steps(self) -> int:
        """Steps that AdamW has taken, which its bias correction counts: those left out are not among them."""
        return int(next(iter(self._optimizer.state.values()))["step"])

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        for state in self._optimizer.state.values():
            state["step"].fill_(steps)

    def shapes(self) -> dict[tuple[str, str], torch.Size]:
        """Shape of each tensor of the state, by kind and name."""
        parameters = {
            (kind, name): getattr(p, "ds_shape", p.shape) for kind in self.kinds for name, p in self._parameters.items()
        }
        return parameters | {(WEIGHTS, name): buffer.shape for name, buffer in self._buffers().items()}

    def _buffers(self) -> dict[str, Tensor]:
        """Those that belong to the model, rather than being computed from its shape."""
        known = self.model.state_dict().keys()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in known}

    def get(self, kind: str, name: str) -> Tensor:
        """One tensor of the state, which may share memory with it."""
        parameter = self._parameters.get(name)
        if parameter is None:
            return self._buffers()[name]
        if self.stage == 0:
            return parameter.detach() if kind == WEIGHTS else self._optimizer.state[parameter][kind]
        whole = (
            safe_get_full_fp32_param(parameter) if kind == WEIGHTS else safe_get_full_optimizer_state(parameter, kind)
        )
        assert isinstance(whole, Tensor)
        return whole

    def set(self, kind: str, name: str, value: Tensor) -> None:
        """Replace one tensor of the state; the value is on any device."""
        parameter, value = self._parameters.get(name), value.to(self.device)
        if parameter is None:
            self._buffers()[name].copy_(value)
        elif kind == WEIGHTS:
            self._compute_with(parameter, value)
            if self.stage == 3:
                safe_set_local_fp32_param(parameter, _own_part(parameter, value))
            elif self.stage:
                safe_set_full_fp32_param(parameter, value)
        elif self.stage == 3:
            safe_set_local_optimizer_state(parameter, _own_part(parameter, value), kind)
        elif self.stage:
            safe_set_full_optimizer_state(parameter, value, kind)
        else:
            self._optimizer.state[parameter][kind].copy_(value)

    @torch.no_grad()
    def _compute_with(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set what forward and backward see of a parameter; with ZeRO, AdamW has its own fp32 copy of it."""
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
            parameter.data.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In this block the model computes with the averaged weights, if they are kept."""
        if AVERAGE not in self.kinds:
            yield
            return
        # Without ZeRO they are what AdamW works on, with it there are copies to take them from again.
        own = {name: p.detach().clone() for name, p in self._parameters.items()} if self.stage == 0 else {}
        for name, parameter in self._parameters.items():
            self._compute_with(parameter, self.get(AVERAGE, name))
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                self._compute_with(parameter, own[name] if own else self.get(WEIGHTS, name))

    def whole_weights(self) -> dict[str, Tensor]:
        """The trained model's weights on CPU, in fp32 and under the model's own names; on rank 0, else none.

        They are the averaged ones if those are kept, else what AdamW works on: in bf16 the model's own are rounded to 3
        digits, and miss small steps.
        """
        kind = AVERAGE if AVERAGE in self.kinds else WEIGHTS
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        weights = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():  # a shared parameter has several names
            own_name = names.get(id(tensor), name)
            value = self.get(kind if own_name in self._parameters else WEIGHTS, own_name)
            if dist.get_rank() == 0:
                weights[name] = value.detach().cpu().clone()
        return weights


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a parameter's value with ZeRO 3, which fills up the last one with zeros."""
    flat: Tensor = value.flatten()
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed's
    part = torch.zeros(size, dtype=value.dtype, device=value.device)
    own = flat[dist.get_rank() * size :][:size]
    part[: own.numel()] = own
    return part
