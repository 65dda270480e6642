"""The energy loss against its formula, written out."""

import itertools

import pytest
import torch
from torch import Tensor

from calm_core.models import energy_score
from calm_core.models.energy_score import energy_loss

R, N, M, L = 5, 4, 7, 6


def plain_energy_loss(samples: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """2/(N M) sum ||x_n - z_m||^alpha - 1/(N (N-1)) sum_{n != k} ||x_n - x_k||^alpha, one distance at a time."""
    losses = []
    for x, z in zip(samples, targets, strict=True):
        cross = sum((x[n] - z[m]).norm() ** alpha for n in range(len(x)) for m in range(len(z)))
        between = sum((x[n] - x[k]).norm() ** alpha for n, k in itertools.permutations(range(len(x)), 2))
        losses.append(2 * cross / (len(x) * len(z)) - between / (len(x) * (len(x) - 1)))
    return torch.stack(losses)


def make(scale: float, spread: float, model_samples: int = N) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mean = scale * torch.randn(R, L, generator=generator, dtype=torch.float64)
    deviations = spread * torch.randn(R, M, L, generator=generator, dtype=torch.float64)
    samples = mean.unsqueeze(1) + 2 * spread * torch.randn(
        R, model_samples, L, generator=generator, dtype=torch.float64
    )
    return samples, mean, deviations


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(
    ("scale", "spread", "model_samples"),
    [(1.0, 1.0, N), (20.0, 0.05, N), (0.0, 100.0, N), (1.0, 1.0, 2)],
    ids=["ordinary", "large mean and small spread", "large spread", "two samples"],
)
def test_loss_and_gradient_equal_the_formula(scale: float, spread: float, model_samples: int, alpha: float) -> None:
    samples, mean, deviations = make(scale, spread, model_samples)
    plain_samples = samples.clone().requires_grad_()
    plain = plain_energy_loss(plain_samples, mean.unsqueeze(1) + deviations, alpha)
    plain.sum().backward()
    fast_samples = samples.clone().requires_grad_()
    fast = energy_loss(fast_samples, mean, deviations, alpha)
    fast.sum().backward()

    assert fast.dtype == torch.float32
    # fp32 keeps 7 digits of coordinates up to 20, of which distances of 0.1 are differences.
    assert torch.allclose(fast.double(), plain, rtol=2e-5, atol=1e-6)
    assert torch.allclose(fast_samples.grad, plain_samples.grad, rtol=1e-3, atol=1e-4 * plain_samples.grad.abs().max())


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_of_positions_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, mean, deviations = make(1.0, 1.0)
    weights = torch.linspace(0.5, 2, R)
    whole = samples.clone().requires_grad_()
    (weights * energy_loss(whole, mean, deviations, 1.0)).sum().backward()
    monkeypatch.setitem(energy_score._BLOCK_POSITIONS, "cpu", block)
    parts = samples.clone().requires_grad_()
    (weights * energy_loss(parts, mean, deviations, 1.0)).sum().backward()
    assert torch.allclose(parts.grad, whole.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_identical_samples_have_finite_gradients(alpha: float) -> None:
    """All samples are equal at the start of training, when the head's last layer is zero."""
    _, mean, deviations = make(1.0, 1.0)
    samples = torch.zeros(R, N, L, requires_grad=True)
    energy_loss(samples, mean, deviations, alpha).sum().backward()
    assert samples.grad is not None
    assert samples.grad.isfinite().all()
    assert samples.grad.abs().sum() > 0


def test_the_true_distribution_has_the_lowest_expected_loss() -> None:
    """Strictly proper: on average, samples of the target beat a shifted, a narrower and a wider distribution."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.randn(20_000, 1, 2, generator=generator)
    mean = torch.zeros(20_000, 2)
    draws = torch.randn(20_000, 2, 2, generator=generator)
    loss = {
        name: energy_loss(samples, mean, deviations, 1.0).mean().item()
        for name, samples in {
            "true": draws,
            "shifted": draws + 0.5,
            "narrow": 0.5 * draws,
            "wide": 1.5 * draws,
        }.items()
    }
    assert min(loss, key=loss.__getitem__) == "true"


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.9])
def test_bf16_samples_are_measured_in_fp32(alpha: float) -> None:
    """Equal to the formula on the rounded samples; only the gradient is rounded to their eight bits."""
    samples, mean, deviations = make(20.0, 0.5)
    rounded = samples.bfloat16()
    plain_samples = rounded.double().requires_grad_()
    plain = plain_energy_loss(plain_samples, mean.float().double().unsqueeze(1) + deviations, alpha)
    plain.sum().backward()
    fast_samples = rounded.clone().requires_grad_()
    fast = energy_loss(fast_samples, mean, deviations, alpha)
    fast.sum().backward()
    assert fast.dtype == torch.float32 and fast_samples.grad.dtype == torch.bfloat16
    assert torch.allclose(fast.double(), plain, rtol=2e-5, atol=1e-6)
    assert torch.allclose(fast_samples.grad.double(), plain_samples.grad, rtol=2**-7, atol=1e-4)
