"""The recipe of a step on real ranks: learning rates, clipping and averaged weights, against plain loops."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from calm_core.errors import CalmError
from calm_core.models.noise import SequenceNoise
from calm_core.store.artifact import Artifact
from calm_core.store.facts import ModelFacts
from calm_core.training.optimizer import learning_rate_factor
from calm_core.training.stage import train
from calm_core.weights.curves import CURVES_NAME
from calm_core.weights.load import WEIGHTS_NAME
from tests.training.average_worker import CASES, SEQUENCES, STEPS, batch, held_out_loss, make_task, settings
from tests.training.faulty_ranks import KILLED, Fault, ForkedLauncher
from tests.training.test_stages import autoencoder_config


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have written all cases, in one start."""
    folder = tmp_path_factory.mktemp("averages")
    ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *ranks, "tests.training.average_worker", str(folder)],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        check=True,
    )
    return folder


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


@pytest.mark.parametrize(("precision", "stage"), CASES)
def test_the_average_is_that_of_a_plain_loop(written: Path, precision: str, stage: int) -> None:
    """Validation and the trained model use it; and what was interrupted, and never validated, ends the same."""
    tensors, resumed = (
        safetensors.torch.load_file(written / f"{precision}-{stage}{kind}.safetensors") for kind in ("", "-resumed")
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
    assert {name.partition("/")[0] for name in resumed} & set("012345") == set("345")  # it did not begin anew

    task = make_task(settings(precision, stage))
    task.model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    # In a process that has run ZeRO 3, DeepSpeed adds the bias of a linear layer to products that are bf16 already.
    tolerance = 1e-3 if precision == "bf16" else 1e-5
    for those, loss in ((average, tensors["held-out loss"]), (last, resumed["held-out loss"])):
        task.model.load_state_dict(those, strict=False)
        assert held_out_loss(task, task.model).item() == pytest.approx(loss.item(), rel=tolerance)
    assert tensors["held-out loss"] > 1.01 * resumed["held-out loss"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_trains_what_a_plain_loop_does(written: Path, stage: int) -> None:
    tensors, expected = safetensors.torch.load_file(written / f"fp32-{stage}.safetensors"), plain_weights()
    trained = weights(tensors, STEPS)
    assert trained.keys() == expected.keys()
    for name, value in trained.items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-5)


def test_averaging_changes_validation_and_the_trained_model_but_no_step(dataset_uri: str, tmp_path: Path) -> None:
    """And what a killed training goes on with is what an undisturbed one has."""

    def trained(place: str, faults: Mapping[int, Fault] | None = None, **settings: Any) -> Artifact[ModelFacts]:
        return train(
            autoencoder_config(log_interval=1, validation_interval=4, checkpoint_interval=2, **settings),
            dataset_uri,
            str(tmp_path / place),
            seed=0,
            checkpoint_root=str(tmp_path / f"{place}-checkpoints"),
            launcher=ForkedLauncher(faults),
        )

    plain, averaged = trained("plain"), trained("averaged", ema_decay=0.9)
    curves = [[json.loads(line) for line in one.read(CURVES_NAME).splitlines()] for one in (plain, averaged)]
    for without, having in zip(*curves, strict=True):
        for name, value in without.items():
            assert (having[name] == value) is not name.startswith("validation_"), name
    assert plain.read(WEIGHTS_NAME) != averaged.read(WEIGHTS_NAME)

    with pytest.raises(CalmError, match="a rank was killed"):
        trained("killed", {6: KILLED}, ema_decay=0.9)
    resumed = trained("killed", ema_decay=0.9)
    assert resumed.read(WEIGHTS_NAME) == averaged.read(WEIGHTS_NAME)
    assert resumed.read(CURVES_NAME) == averaged.read(CURVES_NAME)
