"""The recipe of a step on real ranks: learning rates, clipping and averaged weights, against plain loops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from calm_core.models.noise import SequenceNoise
from calm_core.training.optimizer import learning_rate_factor
from tests.training.average_worker import CASES, SEQUENCES, STEPS, STOP, batch, held_out_loss, make_task, settings


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of ranks, where they have written all cases in one start."""
    folders = {ranks: tmp_path_factory.mktemp("averages") for ranks in CASES}
    for ranks, folder in folders.items():
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
        subprocess.run(
            [sys.executable, "-m", *start, "tests.training.average_worker", str(folder)],
            env=os.environ | {"DS_ACCELERATOR": "cpu"},
            check=True,
        )
    return folders


def weights(tensors: dict[str, Tensor], what: object) -> dict[str, Tensor]:
    return {name.removeprefix(f"{what}/"): value for name, value in tensors.items() if name.startswith(f"{what}/")}


def plain_average(tensors: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
    average = weights(tensors, 0)
    for step in range(1, STEPS + 1):
        own = min(decay, (1 + step) / (10 + step))
        average = {name: own * average[name] + (1 - own) * value for name, value in weights(tensors, step).items()}
    return average


def plain_weights() -> dict[str, Tensor]:
    """Trained by torch's own AdamW on whole batches, one parameter a group."""
    config = settings("fp32", 0)
    task = make_task(config)
    groups = [
        {
            "params": [p],
            "weight_decay": config.weight_decay if p.ndim > 1 else 0.0,
            "lr": config.head_learning_rate if name.startswith("mlp_generator.") else config.learning_rate,
        }
        for name, p in task.model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas)
    configured = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, configured, strict=True):
            group["lr"] = rate * learning_rate_factor(config, step)
        optimizer.zero_grad()
        tokens = batch(step)
        task.loss(task.model, tokens, SequenceNoise(range(SEQUENCES)), task.counts(tokens)).value.backward()
        norm = torch.nn.utils.clip_grad_norm_(task.model.parameters(), config.gradient_clipping)
        assert norm > config.gradient_clipping
        optimizer.step()
    return {name: p.detach() for name, p in task.model.named_parameters()}


@pytest.mark.parametrize(
    ("ranks", "precision", "stage"), [(ranks, *case) for ranks, cases in CASES.items() for case in cases]
)
def test_the_average_is_that_of_a_plain_loop(written: dict[int, Path], ranks: int, precision: str, stage: int) -> None:
    """Validation and the trained model use it; and what was interrupted, and never validated, ends the same."""
    tensors, resumed = (
        safetensors.torch.load_file(written[ranks] / f"{precision}-{stage}{kind}.safetensors")
        for kind in ("", "-resumed")
    )
    average, expected = weights(tensors, "ema"), plain_average(tensors, settings(precision, stage).ema_decay)
    assert average.keys() == expected.keys()
    for name, value in average.items():
        assert value.dtype == torch.float32 and torch.allclose(value, expected[name], rtol=0, atol=1e-6)
        assert torch.equal(tensors[f"trained/{name}"], value)
    last = weights(tensors, STEPS)
    assert max((average[name] - last[name]).abs().max() for name in last) > 1e-3  # it is no copy of them

    for name in resumed.keys() - {"held-out loss"}:
        assert torch.equal(resumed[name], tensors[name])
    assert f"{STEPS}/transformer.norm.weight" in resumed and f"{STOP - 1}/transformer.norm.weight" not in resumed

    task = make_task(settings(precision, stage))
    task.model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    # In a process that has run ZeRO 3, DeepSpeed adds the bias of a linear layer to products that are bf16 already.
    tolerance = 1e-3 if precision == "bf16" else 1e-5
    for those, loss in ((average, tensors["held-out loss"]), (last, resumed["held-out loss"])):
        task.model.load_state_dict(those, strict=False)
        assert held_out_loss(task, task.model).item() == pytest.approx(loss.item(), rel=tolerance)
    assert tensors["held-out loss"] > 1.01 * resumed["held-out loss"]


@pytest.mark.parametrize(
    ("ranks", "stage"), [(ranks, stage) for ranks, cases in CASES.items() for kind, stage in cases if kind == "fp32"]
)
def test_every_stage_trains_what_a_plain_loop_does(written: dict[int, Path], ranks: int, stage: int) -> None:
    tensors, expected = safetensors.torch.load_file(written[ranks] / f"fp32-{stage}.safetensors"), plain_weights()
    trained = weights(tensors, STEPS)
    assert trained.keys() == expected.keys()
    for name, value in trained.items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-5)
