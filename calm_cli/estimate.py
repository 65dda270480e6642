"""`calm estimate`: what a configuration costs, before anything is run."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from calm_cli.options import DEFAULT_PROFILE, JsonOption, ProfileOption, SetOption, configuration
from calm_cli.result import print_json
from calm_cli.screen import Screen
from calm_cli.tables import show_table
from calm_core.config import Config

if TYPE_CHECKING:
    from calm_core.training.distillation import TeacherCost

_FORMULA = (
    "forward = 2 x weights of matrix products + 4 x positions x hidden size x layers (attention); "
    "backward = 2 x forward.",
    "CALM trains with the head once for each model sample (a mixture's: once for all) and the encoder forward; it "
    "writes with the head and the decoder.",
    "memory = parameters (bf16 unless precision says otherwise), fp32 gradients, copy and Adam's moments, shared as "
    "ZeRO's stage says; and the activations of one micro-batch, a rough count.",
)


def estimate(
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share a training run.")] = 8,
    json_: JsonOption = False,
) -> None:
    """Parameters, training and inference FLOPs, and memory of the models that a profile describes. Nothing is trained.

    Examples:

      calm estimate --profile calm-m

      calm estimate --profile calm-m --set calm.model.num_hidden_layers=24 --gpus 64
    """
    config = configuration(profile, set_)
    from calm_core.scaling import cost as costs

    estimates = costs.estimate(config, gpus)
    teacher = _teacher(config)
    if json_:
        models = {name: asdict(cost) | {"training_flops": cost.training_flops} for name, cost in estimates.items()}
        if teacher:
            models["CALM"] |= {"teacher_flops": teacher.passes, "teacher_training_flops": teacher.training}
        print_json({"gpus": gpus, "models": models})
        return
    rows = {
        f"  {part}": [f"{cost.parameters[part]:,}" if part in cost.parameters else "" for cost in estimates.values()]
        for part in dict.fromkeys(name for cost in estimates.values() for name in cost.parameters)
    }
    rows |= {
        "parameters": [f"{sum(cost.parameters.values()):,}" for cost in estimates.values()],
        "training tokens": [f"{cost.training_tokens:.3g}" for cost in estimates.values()],
        "training FLOPs per token": [f"{cost.training_flops_per_token:.3g}" for cost in estimates.values()],
        "training FLOPs": [f"{cost.training_flops:.3g}" for cost in estimates.values()],
    }
    if teacher:
        student = estimates["CALM"].training_flops
        with_passes, training = student + teacher.passes, teacher.training
        rows |= {
            "... with the teacher's passes": ["", f"{with_passes:.3g}", ""],
            "... and its training": ["", "unknown" if training is None else f"{with_passes + training:.3g}", ""],
        }
    rows["inference FLOPs per token"] = [f"{cost.inference_flops_per_token:.3g}" for cost in estimates.values()]
    for stage in costs.ZERO_STAGES:
        rows[f"state per GPU, ZeRO {stage}, {gpus} GPUs"] = [
            f"{cost.state_bytes[stage] / 2**30:.2f} GiB" for cost in estimates.values()
        ]
    rows["activations per micro-batch"] = [f"{cost.activation_bytes / 2**30:.2f} GiB" for cost in estimates.values()]
    console = Screen()
    show_table(
        ["", *estimates],
        [[name, *values] for name, values in rows.items()],
        console,
        right=range(1, len(estimates) + 1),
    )
    console.print()
    for sentence in _FORMULA:
        console.print(sentence, style="dim")


def _teacher(config: Config) -> "TeacherCost | None":
    """What the teacher of CALM's settings adds."""
    if not config.calm.teacher:
        return None
    from calm_core.training.distillation import teacher_cost
    from calm_core.weights.teacher import teacher_artifact

    teacher = teacher_artifact(config.calm.teacher)
    return teacher_cost(config.calm, teacher, config.autoencoder, config.data.sequence_length)
