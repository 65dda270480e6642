"""Training in bf16, against the same steps with gradients summed in fp64 and weights of full precision."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from calm_core.training.optimizer import parameter_groups
from tests.training.faulty_ranks import run_forked
from tests.training.precision_worker import STAGES, batches, loss_of, main, make_model, settings


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """Weights after each sequence's gradient is taken in bf16, their sum and AdamW in fp64, in one process."""
    config, masters = settings(1), make_model().double()
    optimizer = torch.optim.AdamW(parameter_groups(masters, config), betas=config.betas)
    for batch in batches():
        optimizer.zero_grad()
        for sequence in batch:
            model = make_model().bfloat16()
            model.load_state_dict(masters.state_dict())
            loss_of(model(sequence)).backward()
            for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
                own = parameter.grad.double()
                master.grad = own if master.grad is None else master.grad + own
        optimizer.step()
    return {name: value.float() for name, value in masters.state_dict().items()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_bf16_sums_gradients_in_fp32_and_saves_the_fp32_weights(
    expected: dict[str, torch.Tensor], tmp_path: Path, ranks: int
) -> None:
    """64 micro-batches a step in all: summed in bf16 they move the weights, which go 4e-3 far, by 6e-5 more or less.

    In every ZeRO stage, stopped in between, and with a step at the end that cannot be taken; a buffer that is rounded
    would show as well.
    """
    assert run_forked(ranks, main, tmp_path) == 0
    for stage in STAGES:
        trained, resumed = (
            safetensors.torch.load_file(tmp_path / f"{stage}{kind}.safetensors") for kind in ("", "-resumed")
        )
        assert trained.keys() == expected.keys()
        for name, value in trained.items():
            assert value.dtype == torch.float32
            assert (value - expected[name]).abs().max() < 1e-6
            assert torch.equal(value, resumed[name])
