"""Every task in every ZeRO stage, precision and number of ranks: the same losses, the same model, the same numbers."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor

from calm_core.store.artifact import Artifact
from calm_core.store.facts import ModelFacts
from calm_core.weights.curves import CURVES_NAME
from calm_core.weights.load import WEIGHTS_NAME
from tests.training.faulty_ranks import run_forked
from tests.training.task_worker import LEARNING_RATE, STEPS, TASKS, Case, main

pytestmark = pytest.mark.timeout(900)  # of 60 trainings in five starts: a minute where nothing else is at work
MOVED = STEPS * LEARNING_RATE
"""How far AdamW can move a weight, about."""
STAGES = {"fp32": (0, 1, 2, 3), "bf16": (1, 2, 3), "bf16-mixed": (0, 2)}
CASES = {
    1: [
        *(Case.of(task, f"{precision}-1", precision=precision) for task in TASKS for precision in STAGES),
        Case.of("transformer", "one-held-out-1", validation_sequences=1, steps=1),
    ],
    2: [
        *(
            Case.of(task, f"{precision}-2-zero{stage}", precision=precision, zero_stage=stage)
            for task in TASKS
            for precision, stages in STAGES.items()
            for stage in stages
        ),
        *(
            Case.of(
                task, f"recomputed-2-zero{stage}", precision="fp32", zero_stage=stage, activation_checkpointing=True
            )
            for task in ("energy", "transformer")
            for stage in (0, 3)
        ),
        Case.of("transformer", "one-held-out-2", validation_sequences=1, steps=1),
    ],
}
ALL = {
    "precision": "fp32", "steps": 8, "ema_decay": 0.9, "head_learning_rate": 1e-3, "schedule": "wsd",
    "decay_fraction": 0.5, "checkpoint_interval": 100,
    "decoder_loss": {"kind": "cross_entropy", "until": 0.8, "positions": 0.5},
}  # fmt: skip
"""What a checkpoint has to bring back."""
RESUMED: list[tuple[int, list[Case]]] = [
    (
        2,
        [
            Case.of("flow", "undisturbed", zero_stage=2, **ALL),
            Case.of("flow", "a1", stop=3, job="a", zero_stage=2, **ALL),
            Case.of("flow", "a2", stop=5, job="a", zero_stage=2, **ALL),
            Case.of("flow", "a3", job="a", zero_stage=2, **ALL),
            Case.of("flow", "b1", stop=3, job="b", zero_stage=2, **ALL),
            Case.of("flow", "c1", stop=3, job="c", **ALL | {"precision": "bf16-mixed"}),
            Case.of("flow", "c2", stop=5, job="c", **ALL),
            Case.of("flow", "c3", job="c", **ALL),
        ],
    ),
    (1, [Case.of("flow", "b2", stop=5, job="b", **ALL)]),
    (4, [Case.of("flow", "b3", stop=6, job="b", zero_stage=1, **ALL)]),
    (2, [Case.of("flow", "b4", job="b", zero_stage=3, micro_batch_size=2, **ALL)]),
]


class Trained(NamedTuple):
    """What a training has left (see the worker)."""

    seen: dict[str, Any]
    weights: dict[str, Tensor]
    curves: list[dict[str, float]]


@pytest.fixture(scope="module")
def folder(dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all trainings have left what they left."""
    found = tmp_path_factory.mktemp("tasks")
    for ranks, cases in [*CASES.items(), *RESUMED]:
        assert run_forked(ranks, main, cases, dataset_uri, model_uris[0], found) == 0
    return found


def trained(folder: Path, name: str) -> Trained:
    seen = json.loads((folder / name / "seen.json").read_text())
    if "stopped" in seen:
        return Trained(seen, {}, [])
    artifact = Artifact.of_any_kind(str(folder / name / "out"))
    curves = [json.loads(line) for line in artifact.read(CURVES_NAME).splitlines()]
    return Trained(seen, safetensors.torch.load(artifact.read(WEIGHTS_NAME)), curves)


class Differences(NamedTuple):
    """Between two trainings.

    Attributes:
        loss: Largest of any loss or entropy in the curves, as a share of it.
        largest, mean: Of a weight, as shares of how far AdamW can move it.
    """

    loss: float
    largest: float
    mean: float


def differences(folder: Path, name: str, other: str) -> Differences:
    found, expected = trained(folder, name), trained(folder, other)
    assert found.weights.keys() == expected.weights.keys()
    assert all(value.dtype == torch.float32 for value in found.weights.values())
    losses = [
        abs(point[key] / value - 1)
        for point, there in zip(found.curves, expected.curves, strict=True)
        for key, value in there.items()
        if key.endswith(("loss", "entropy"))
    ]
    assert len(losses) >= len(expected.curves)
    weights = torch.cat([(found.weights[key] - value).flatten().abs() for key, value in expected.weights.items()])
    return Differences(max(losses), weights.max().item() / MOVED, weights.mean().item() / MOVED)


def names(precision: str, *, ranks: int = 2) -> list[str]:
    return [case.name for case in CASES[ranks] if case.settings.get("precision") == precision]


@pytest.mark.parametrize("name", names("fp32"))
def test_losses_and_weights_are_those_of_one_rank(folder: Path, name: str) -> None:
    """With two and four micro-batches in a step, whose gradients are summed in another order.

    AdamW moves a weight by the learning rate however small its gradient is, so of a few the rounding decides.
    """
    found = differences(folder, name, f"{name.partition('-')[0]}-fp32-1")
    assert found.loss < 1e-6
    assert found.largest < 5e-3
    assert found.mean < 1e-5


@pytest.mark.parametrize("name", names("bf16") + names("bf16-mixed"))
def test_in_bf16_they_are_those_of_one_rank_but_for_its_rounding(folder: Path, name: str) -> None:
    """A sum that was 1e-7 off rounds a weight to its bf16 neighbour, 4e-3 away, or a product. Seen: a mean of 0.043."""
    of_all = name.rpartition("-2-")[0]  # task and precision
    of_one = differences(folder, name, f"{of_all}-1")
    assert of_one.loss < 2e-3
    assert of_one.mean < 0.06


@pytest.mark.parametrize("name", names("bf16"))
def test_in_bf16_they_are_the_same_in_each_stage(folder: Path, name: str) -> None:
    of_stage_2 = differences(folder, name, f"{name.rpartition('-2-')[0]}-2-zero2")
    assert of_stage_2.loss < 1e-6
    assert of_stage_2.largest < 1e-3


@pytest.mark.parametrize("name", [n for p in ("bf16", "bf16-mixed") for ranks in (1, 2) for n in names(p, ranks=ranks)])
def test_bf16_learns_what_fp32_learns(folder: Path, name: str) -> None:
    """And leaves the fp32 weights that AdamW has stepped."""
    found = differences(folder, name, f"{name.partition('-')[0]}-fp32-1")
    assert found.loss < 1e-2
    assert found.mean < 0.1
    weights = torch.cat([value.flatten() for value in trained(folder, name).weights.values() if value.ndim == 2])
    assert (weights != weights.bfloat16().float()).float().mean() > 0.5


@pytest.mark.parametrize("task", TASKS)
def test_ranks_that_share_a_validation_find_what_one_finds(folder: Path, task: str) -> None:
    """Of five sequences, before the first step; and one rank finds what the model alone makes of all at once."""
    one = trained(folder, f"{task}-fp32-1").seen
    assert one["validation"] == pytest.approx(one["plain validation"], rel=1e-5, abs=1e-7)
    for stage in STAGES["fp32"]:
        two = trained(folder, f"{task}-fp32-2-zero{stage}").seen
        assert two["validation"] == pytest.approx(one["validation"], rel=1e-12), stage


def test_fewer_held_out_sequences_than_ranks_are_validated_once(folder: Path) -> None:
    one, two = (trained(folder, f"transformer-one-held-out-{ranks}").seen["validation"] for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize("name", [name for ranks in (1, 2) for p in STAGES for name in names(p, ranks=ranks)])
def test_the_frozen_autoencoder_is_left_as_it_is(folder: Path, name: str) -> None:
    """On every rank: neither shared out nor trained."""
    untouched = {"equal": True, "requires_grad": False, "shared out": False, "trained": False}
    is_calm = name.partition("-")[0] not in ("autoencoder", "transformer")
    assert all(found == (untouched if is_calm else {}) for found in trained(folder, name).seen["frozen"])


def test_a_training_resumed_twice_ends_with_the_same_bits_and_reads_each_sequence_once(folder: Path) -> None:
    """With the average, a learning rate of the head's own, and a schedule that decays."""
    starts = [trained(folder, f"flow-a{number}") for number in (1, 2, 3)]
    undisturbed = trained(folder, "flow-undisturbed")
    assert [start.seen.get("stopped", "").partition(";")[0] for start in starts] == [
        "stopped after step 3 of 8",
        "stopped after step 5 of 8",
        "",
    ]
    positions = [start.seen["positions"] for start in starts]
    assert positions == [[0, 4, 8], [12, 16], [20, 24, 28]]
    assert [position for start in positions for position in start] == undisturbed.seen["positions"]
    assert starts[-1].curves == undisturbed.curves
    assert starts[-1].weights.keys() == undisturbed.weights.keys()
    for name, value in undisturbed.weights.items():
        assert starts[-1].weights[name].equal(value), name


def test_a_training_goes_on_on_one_and_four_ranks_in_other_stages(folder: Path) -> None:
    """From two at ZeRO 2 to one, to four at 1, and to two at 3 with other micro-batches."""
    starts = [trained(folder, f"flow-b{number}") for number in (1, 2, 3, 4)]
    assert [start.seen["stage"] for start in starts] == [2, 0, 1, 3]
    assert [start.seen["positions"] for start in starts] == [[0, 4, 8], [12, 16], [20], [24, 28]]
    found = differences(folder, "flow-b4", "flow-undisturbed")
    assert found.loss < 1e-6
    assert found.largest < 5e-3


def test_the_precision_that_was_trained_in_is_told(folder: Path) -> None:
    for name, told in {
        "flow-fp32-1": "fp32",
        "flow-bf16-2-zero3": "bf16",
        "flow-bf16-mixed-1": "bf16-mixed",
        "flow-c3": "bf16-mixed, then fp32",
    }.items():
        facts = Artifact.of_any_kind(str(folder / name / "out")).facts
        assert isinstance(facts, ModelFacts)
        assert facts.precision == told, name
