"""The blockwise cross-entropy against the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from calm_core.models import cross_entropy
from calm_core.models.cross_entropy import linear_cross_entropy

R, V, D = 13, 37, 8


@pytest.fixture(params=[1, 5 * V, 10**9], ids=["a row a block", "blocks of 5", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_BLOCK_ELEMENTS", request.param)


def inputs(dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = (scale * torch.randn(R, D)).to(dtype).requires_grad_()
    weight = torch.randn(V, D).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (R,))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [(torch.float32, 1.0, 1e-5), (torch.float32, 100.0, 1e-5), (torch.bfloat16, 1.0, 2e-2)],
)
def test_value_count_and_gradients_equal_the_plain_formula(dtype: torch.dtype, scale: float, tolerance: float) -> None:
    hidden, weight, target = inputs(dtype, scale)
    plain_hidden, plain_weight, _ = (x.detach().float().requires_grad_() for x in (hidden, weight, target.float()))
    logits = F.linear(plain_hidden, plain_weight)
    expected = F.cross_entropy(logits, target, reduction="sum")
    (0.5 * expected).backward()

    loss, correct = linear_cross_entropy(hidden, weight, target)
    (0.5 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-4)
    assert hidden.grad is not None and weight.grad is not None
    for grad, plain in ((hidden.grad, plain_hidden.grad), (weight.grad, plain_weight.grad)):
        assert plain is not None
        torch.testing.assert_close(grad.float(), plain, rtol=tolerance, atol=tolerance * plain.abs().max().item())
    assert int(correct) == int((F.linear(hidden, weight).float().argmax(1) == target).sum())


def test_a_frozen_projection_gets_no_gradient_and_costs_none() -> None:
    """Two of the three products: logits, and the gradient of the states, which is as before."""
    hidden, weight, target = inputs(torch.float32)
    linear_cross_entropy(hidden, weight, target)[0].backward()
    frozen, states = weight.detach(), hidden.detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(states, frozen, target)[0].backward()
    assert states.grad is not None and hidden.grad is not None
    assert states.grad.equal(hidden.grad)
    assert counter.get_total_flops() == 2 * (2 * R * V * D)


def test_no_row_gives_no_loss() -> None:
    hidden, weight, _ = inputs(torch.float32)
    loss, correct = linear_cross_entropy(hidden[:0], weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and int(correct) == 0
    assert weight.grad is not None and not weight.grad.any()


def test_of_equal_logits_the_first_is_the_most_likely() -> None:
    """As argmax has it; a model that has learned nothing is not right everywhere."""
    hidden, weight = torch.zeros(R, D), torch.ones(V, D)
    loss, correct = linear_cross_entropy(hidden, weight, torch.arange(R))
    assert int(correct) == 1
    torch.testing.assert_close(loss, R * torch.tensor(V).log())
