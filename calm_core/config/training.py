"""Settings that every training has."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from calm_core.config.base import MOST_STEPS, Fraction, Section, Steps, Uri

MOST_NODES = 4096
MOST_PROFILED = 20  # steps: each has up to 100,000 events, which are kept in memory
StepsDone = Annotated[int, Field(ge=0, le=MOST_STEPS)]

_SCHEDULES_OF = {
    "decay_fraction": ("wsd",),
    "decay_shape": ("wsd",),
    "final_learning_rate_fraction": ("cosine", "wsd"),
}

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
    initial_weights: Execution[Uri] = Field(  # what lies there tells trainings apart, by its digest: a parent
        "",
        description="a model of the same kind, shape and tokenizer whose weights training starts from: an artifact, or "
        "models:/NAME/VERSION; optimiser and schedule are new. Unset: random weights, from the seed",
    )
    global_batch_size: int = Field(16, ge=1, le=2**20, description="sequences in one optimiser step, over all ranks")
    micro_batch_size: Execution[int] = Field(
        16, ge=1, le=2**20, description="sequences that one rank computes at a time"
    )
    processes: Execution[int | None] = Field(
        None, ge=1, le=1024, description="ranks on this node; unset: one a GPU, or one on CPU"
    )
    nodes: Execution[int] = Field(
        1, ge=1, le=MOST_NODES, description="machines that share the training; more than one: a TrainJob in a pipeline"
    )
    launcher: Execution[Literal["auto", "trainjob"]] = Field(
        "auto", description="trainjob: in a pipeline, a TrainJob of Kubeflow's trains on a single node as well"
    )
    zero_stage: Execution[Literal[0, 1, 2, 3]] = Field(1, description="DeepSpeed ZeRO stage; bf16 runs 0 as 1")
    precision: Literal["auto", "fp32", "bf16", "bf16-mixed"] = Field(
        "auto",
        description="bf16-mixed: bf16 products on fp32 weights; auto: bf16 on a GPU, bf16-mixed on a CPU that computes "
        "bf16, else fp32",
    )
    learning_rate: float = Field(3e-4, ge=1e-12, le=10)
    warmup_steps: int = Field(100, ge=0, le=MOST_STEPS, description="linear warm-up")
    schedule: Literal["constant", "cosine", "wsd"] = Field(
        "constant",
        description="after warm-up: constant (the paper's), cosine (Loshchilov & Hutter 2017), or constant with a "
        "decay at the end, warm-up-stable-decay (Hu et al. 2024)",
    )
    decay_fraction: float = Field(0.0, ge=0, le=1, description="wsd: last share of the steps, in which it decays")
    decay_shape: Literal["linear", "sqrt"] = Field(
        "linear", description="wsd: linear, or 1 - sqrt (Haegele et al. 2024: the lower loss of the two)"
    )
    final_learning_rate_fraction: Fraction = Field(
        0.0, description="cosine, wsd: share of the learning rate to decay to; 0.1 in Hoffmann et al. 2022"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field((0.9, 0.95))
    weight_decay: float = Field(0.1, ge=0, le=100)
    gradient_clipping: float = Field(1.0, ge=1e-12, le=1e12, description="largest gradient norm")
    bad_steps_limit: Execution[int] = Field(
        5, ge=1, le=1000, description="steps in a row whose loss or gradient is not finite that end the training"
    )
    rewinds: int = Field(
        0, ge=0, le=1000, description="how often it goes back to a checkpoint instead, and on behind the bad batches"
    )
    ema_decay: Fraction = Field(
        0.0,
        description="d of the weights' moving average, min(d, (1 + t) / (10 + t)) at step t, e.g. 0.999; validation "
        "and the trained model use it; 0: no average",
    )
    log_interval: Execution[Steps] = Field(10, description="steps between two points of the training curves")
    validation_interval: Execution[Steps] = Field(
        100, description="steps between two validations; the last step is always validated"
    )
    validation_sequences: int = Field(
        32, ge=1, le=2**24, description="held-out sequences in a validation during training"
    )
    checkpoint_interval: Execution[Steps] = Field(
        500, description="steps between two checkpoints; the last step saves one, too"
    )
    checkpoints_kept: Execution[int] = Field(
        2, ge=1, le=1000, description="newest checkpoints that are kept while training"
    )
    keep_every: Execution[Steps | None] = Field(
        None, description="checkpoints of steps that are multiples of this are kept as well, until training ends"
    )
    keep_best: Execution[bool] = Field(False, description="keep the checkpoint that was best on held-out text as well")
    offload: Execution[bool] = Field(
        False,
        description="keep the optimiser's state in the machine's memory rather than the GPU's; runs ZeRO 3 in bf16, 1 "
        "to 3 in fp32",
    )

    stuck_after_seconds: Execution[int] = Field(
        600, ge=0, le=10**6, description="a rank without a step for so long ends the training; 0: never"
    )
    peak_tflops: Execution[float | None] = Field(
        None,
        gt=0,
        le=1e6,
        description="1e12 FLOP/s, dense, of one rank's GPU or CPU, which utilisation is measured against; unset: of "
        "bf16 by the GPU's name, and no utilisation where that is not known",
    )
    profile_steps: Execution[tuple[StepsDone, StepsDone] | None] = Field(
        None, description="[A, B]: rank 0 traces the steps after step A up to step B, beside the trained model"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_decay_is_wsd(cls, values: Any) -> Any:
        """Settings from before there were schedules hold a decay alone."""
        if isinstance(values, Mapping) and "schedule" not in values and values.get("decay_fraction"):
            return {**values, "schedule": "wsd"}
        return values

    @model_validator(mode="after")
    def _schedule_has_what_it_needs(self) -> Self:
        if self.schedule == "wsd" and not self.decay_fraction:
            raise ValueError("decay_fraction (0) must be above 0 with schedule: wsd, e.g. 0.2")
        for key, schedules in _SCHEDULES_OF.items():
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default and self.schedule not in schedules:
                only = " or ".join(schedules)
                raise ValueError(
                    f"{key} ({value}) is for schedule: {only}, and schedule is {self.schedule}; set {key}: {default}, "
                    f"or schedule: {schedules[-1]}"
                )
        return self

    def execution_settings(self) -> set[str]:
        """Names of the settings that say how it is carried out; with rewinds, those that say when one is due do not."""
        names = {name for name, field in type(self).model_fields.items() if _EXECUTION in field.metadata}
        return names - ({"bad_steps_limit", "checkpoint_interval", "validation_interval"} if self.rewinds else set())

    @model_validator(mode="after")
    def _profiled_steps_are_trained(self) -> Self:
        if self.profile_steps is not None:
            first, last = self.profile_steps
            if not first < last <= self.steps or last - first > MOST_PROFILED:
                raise ValueError(
                    f"profile_steps ({first}:{last}) must be A:B with A < B, B at most steps ({self.steps}) and "
                    f"B - A at most {MOST_PROFILED}"
                )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.global_batch_size % (self.micro_batch_size * (self.processes or 1) * self.nodes):
            by_nodes = (" x nodes", f" x {self.nodes}") if self.nodes > 1 else ("", "")
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of micro_batch_size x processes"
                f"{by_nodes[0]} ({self.micro_batch_size} x {self.processes or 1}{by_nodes[1]})"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        return self
