"""Training in bf16 and bf16-mixed, against the same steps with gradients summed in fp64 and whole weights; `auto`."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from calm_core.config import TrainingConfig
from calm_core.training import engine
from calm_core.training.optimizer import parameter_groups
from tests.training.faulty_ranks import run_forked
from tests.training.precision_worker import PRECISIONS, STAGES, batches, loss_of, main, make_model, settings


def expected(precision: str) -> dict[str, torch.Tensor]:
    """Weights after each sequence's gradient is taken in the precision, their sum and AdamW in fp64, in one process."""
    config, masters, is_mixed = settings(precision, 1), make_model().double(), precision == "bf16-mixed"
    optimizer = torch.optim.AdamW(parameter_groups(masters, config), betas=config.betas)
    for batch in batches():
        optimizer.zero_grad()
        for sequence in batch:
            model = make_model().to(torch.float32 if is_mixed else torch.bfloat16)
            model.load_state_dict(masters.state_dict())
            with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                outputs = model(sequence)
            loss_of(outputs).backward()
            for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
                own = parameter.grad.double()
                master.grad = own if master.grad is None else master.grad + own
        optimizer.step()
    return {name: value.float() for name, value in masters.state_dict().items()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_are_summed_in_fp32_and_the_fp32_weights_are_saved(tmp_path: Path, ranks: int) -> None:
    """64 micro-batches a step in all: summed in bf16 they move the weights, which go 4e-3 far, by 6e-5 more or less.

    In both precisions and every ZeRO stage, stopped in between, and with a step at the end that cannot be taken; a
    buffer that is rounded would show as well.
    """
    assert run_forked(ranks, main, tmp_path) == 0
    for precision in PRECISIONS:
        plain = expected(precision)
        for stage in STAGES:
            trained, resumed = (
                safetensors.torch.load_file(tmp_path / f"{precision}-{stage}{kind}.safetensors")
                for kind in ("", "-resumed")
            )
            assert trained.keys() == plain.keys()
            for name, value in trained.items():
                assert value.dtype == torch.float32
                assert (value - plain[name]).abs().max() < 1e-6
                assert torch.equal(value, resumed[name])


@pytest.mark.parametrize(
    ("gpu", "onednn", "capabilities", "others", "expected"),
    [
        (True, True, {}, True, "bf16"),
        (False, True, {"avx512_bf16": True, "amx_bf16": False}, True, "bf16-mixed"),
        (False, True, {"amx_bf16": True}, True, "bf16-mixed"),
        (False, True, {"architecture": "aarch64", "bf16": True}, True, "bf16-mixed"),
        (False, True, {"avx512_bf16": False, "avx512_f": True, "amx_tile": True}, True, "fp32"),
        (False, True, {"architecture": "aarch64", "bf16": False, "neon": True}, True, "fp32"),
        (False, True, {}, True, "fp32"),
        (False, False, {"avx512_bf16": True}, True, "fp32"),  # nothing would use it
        (False, True, {"avx512_bf16": True}, False, "fp32"),  # another rank's processor has it not
    ],
)
def test_auto_is_what_torch_says_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    onednn: bool,
    capabilities: dict[str, object],
    others: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(engine, "gathered", lambda own: [own, others])
    assert engine.precision_of(TrainingConfig(steps=1, warmup_steps=0)) == expected
    for chosen in ("fp32", "bf16", "bf16-mixed"):
        assert engine.precision_of(TrainingConfig(steps=1, warmup_steps=0, precision=chosen)) == chosen
