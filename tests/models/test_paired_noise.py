"""Noise paired with a teacher's targets, against plain formulas."""

import pytest
import torch

from calm_core.config import HEADS, TransformerModelConfig
from calm_core.models.heads.make import make_head
from calm_core.models.paired_noise import normal_quantiles, numbers_of, with_digits
from calm_core.models.transformer import Transformer

V, D = 13, 16


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_quantiles_are_the_inverse_of_the_normal_distribution_and_finite_at_the_ends() -> None:
    numbers = torch.cat([uniform(1000), torch.tensor([0.0, 1 - 2.0**-24])])
    quantiles = normal_quantiles(numbers)
    assert quantiles.isfinite().all()
    back = 0.5 * (1 + torch.erf(quantiles.double() / 2**0.5))
    torch.testing.assert_close(back, numbers.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [4, 7, 64, 200])
def test_noise_spells_the_digits_of_numbers(size: int) -> None:
    """One digit a number at a time, written plainly; what no number owns stays as it was."""
    noise, numbers = uniform(5, 3, size), uniform(5, 3, 4, seed=1).double()
    found = with_digits(noise, numbers)
    digits = min(size // 4, 24)
    for k in range(4):
        rest = numbers[..., k].clone()
        for j in range(digits):
            rest = rest * 2
            digit = (rest >= 1).double()
            rest = rest - digit
            own = (digit + noise[..., k * digits + j].double()) / 2
            torch.testing.assert_close(found[..., k * digits + j].double(), own, rtol=0, atol=1e-7)
    assert found[..., 4 * digits :].equal(noise[..., 4 * digits :])
    error = (numbers_of(found, 4) - numbers).abs().max()
    assert error < 2.0**-digits


def test_of_uniform_numbers_the_noise_is_uniform_as_before() -> None:
    """So that a student draws in generation what it has seen in training; 20,000 draws, 3.3 standard errors."""
    found = with_digits(uniform(20_000, 1, 8), uniform(20_000, 1, 2, seed=1).double())[:, 0]
    assert ((found >= 0) & (found < 1)).all()
    assert (found.mean(0) - 0.5).abs().max() < 3.3 * (1 / 12 / 20_000) ** 0.5
    assert (torch.corrcoef(found.T) - torch.eye(8)).abs().max() < 3.3 * 20_000**-0.5
    assert with_digits(torch.full((1, 1, 2), 1 - 2.0**-24), torch.full((1, 1, 2), 1 - 2.0**-53).double()).max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_within_a_tokens_interval_draws_that_token(dtype: torch.dtype) -> None:
    """By the cumulative distribution of the tokens from the likeliest to the least likely; equals by their ids."""
    torch.manual_seed(0)
    config = TransformerModelConfig(hidden_size=D, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    model = Transformer(config, V).to(dtype)
    model.lm_head.weight.data[5] = model.lm_head.weight.data[3]  # two tokens that are always equally likely
    hidden = torch.randn(V * 6, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    token = torch.arange(V).repeat(6)
    start, size = model.interval(hidden, token)
    probability = model.lm_head(hidden).float().softmax(1).double()
    torch.testing.assert_close(size, probability.gather(1, token[:, None])[:, 0])
    sorted_p, order = probability.sort(dim=1, descending=True, stable=True)
    for within in (1e-6, 0.5, 1 - 1e-6):
        number = start + within * size
        place = torch.searchsorted(sorted_p.cumsum(1), number[:, None], right=True)
        assert order.gather(1, place)[:, 0].equal(token)
    assert [len(part) for part in model.interval(hidden[:0], token[:0])] == [0, 0]


@pytest.mark.parametrize(("kind", "is_normal"), [("energy", False), ("flow", True), ("diffusion", True)])
def test_each_head_takes_its_own_noise_of_the_same_numbers(kind: str, is_normal: bool) -> None:
    """The first of them, where it needs fewer."""
    torch.manual_seed(0)
    head = make_head(HEADS.parse({"kind": kind, "num_layers": 1}), D, 5)
    torch.nn.init.normal_(head.final_layer.linears[2].weight)
    numbers, hidden = uniform(3, 2, 80), torch.randn(3, D)
    own = numbers[..., : head.noise_size]
    found = head.sample_paired(hidden, numbers)
    assert found.equal(head.sample(hidden, normal_quantiles(own) if is_normal else own))
