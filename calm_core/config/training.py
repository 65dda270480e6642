"""Settings that every training has."""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from calm_core.config.base import MOST_STEPS, Section, Steps

_EXECUTION = "execution"
T = TypeVar("T")
Execution = Annotated[T, _EXECUTION]
"""Of a setting that says how a training is carried out, and changes nothing but rounding in what comes out: when it is
changed, an unfinished training goes on. A setting without this mark is part of what is trained: when it is changed,
another training begins."""


class TrainingConfig(Section):
    """How one model is trained; shared by every model. Batch sizes count sequences.

    Settings marked `Execution` do not tell trainings apart.
    """

    kind: ClassVar[str]
    of_kind: ClassVar[dict[str, type["TrainingConfig"]]] = {}

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind = kind
            TrainingConfig.of_kind[kind] = cls

    steps: Steps = Field(description="optimiser steps")
    global_batch_size: int = Field(16, ge=1, le=2**20, description="sequences in one optimiser step, over all ranks")
    micro_batch_size: Execution[int] = Field(
        16, ge=1, le=2**20, description="sequences that one rank computes at a time"
    )
    processes: Execution[int | None] = Field(
        None, ge=1, le=1024, description="ranks on this node; unset: one a GPU, or one on CPU"
    )
    zero_stage: Execution[Literal[0, 1, 2, 3]] = Field(1, description="DeepSpeed ZeRO stage; bf16 runs 0 as 1")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU, fp32 on CPU")
    learning_rate: float = Field(3e-4, ge=1e-12, le=10)
    warmup_steps: int = Field(100, ge=0, le=MOST_STEPS, description="linear warm-up")
    decay_fraction: float = Field(
        0.0, ge=0, le=1, description="last share of the steps with linear decay to zero; 0: constant"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field((0.9, 0.95))
    weight_decay: float = Field(0.1, ge=0, le=100)
    gradient_clipping: float = Field(1.0, ge=1e-12, le=1e12, description="largest gradient norm")
    log_interval: Execution[Steps] = Field(10, description="steps between two points of the training curves")
    validation_interval: Execution[Steps] = Field(
        100, description="steps between two validations; the last step is always validated"
    )
    validation_sequences: int = Field(
        32, ge=1, le=2**24, description="held-out sequences in a validation during training"
    )
    checkpoint_interval: Execution[Steps] = Field(500, description="steps between two checkpoints")

    @classmethod
    def execution_settings(cls) -> set[str]:
        """Names of the settings that say how it is carried out."""
        return {name for name, field in cls.model_fields.items() if _EXECUTION in field.metadata}

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.global_batch_size % (self.micro_batch_size * (self.processes or 1)):
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of micro_batch_size x processes "
                f"({self.micro_batch_size} x {self.processes or 1})"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        return self
