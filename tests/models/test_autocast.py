"""Each model under autocast to bf16, as `bf16-mixed` trains it, against the same model in fp32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import AUTOENCODERS, CalmModelConfig, TransformerModelConfig
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.cross_entropy import linear_cross_entropy
from calm_core.models.energy_score import energy_loss
from calm_core.models.layers import RMSNorm, freeze
from calm_core.models.noise import SequenceNoise
from calm_core.models.transformer import Transformer
from calm_core.training.tasks.autoencoder import AutoencoderTask
from calm_core.training.tasks.base import Task
from calm_core.training.tasks.calm import CalmTask
from calm_core.training.tasks.transformer import TransformerTask

VOCABULARY = 64
_WIDTHS = {"hidden_size": 32, "intermediate_size": 48}
_LAYERS: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, **_WIDTHS}
HEADS: dict[str, dict[str, Any]] = {
    "energy": {"kind": "energy", "num_layers": 2, "model_samples": 4, "target_samples": 8, "noise_size": 8},
    "diffusion": {"kind": "diffusion", "num_layers": 2},
    "flow": {"kind": "flow", "num_layers": 2},
    "residual": {"kind": "residual", "num_layers": 2},
    "mixture": {"kind": "mixture", "components": 4},
}


def autoencoder(kind: str = "mlp") -> Autoencoder:
    shape = {"kind": kind, "chunk_size": 4, "latent_size": 8, **_WIDTHS}
    return make_autoencoder(AUTOENCODERS.parse(shape), VOCABULARY)


def make_task(name: str) -> Task[Any]:
    torch.manual_seed(0)
    if name in AUTOENCODERS.classes:
        return AutoencoderTask(autoencoder(name), pad_id=0)
    if name == "transformer":
        return TransformerTask(Transformer(TransformerModelConfig(**_LAYERS), VOCABULARY), pad_id=0)
    calm = Calm(CalmModelConfig(head=HEADS[name], **_LAYERS), VOCABULARY, 4, 8)
    head = calm.mlp_generator
    with torch.no_grad():  # it begins at zero, where most gradients are zero, too
        last = head.components if name == "mixture" else head.final_layer.linears[-1]
        last.weight.normal_(std=last.in_features**-0.5)
    return CalmTask(calm, freeze(autoencoder()), pad_id=0)


def step(task: Task[Any], forward: Callable[..., Any]) -> tuple[float, Tensor]:
    """The loss of a batch and its gradient, flat."""
    tokens = torch.randint(1, VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(1))
    task.model.zero_grad()
    loss = task.loss(forward, tokens, SequenceNoise(range(4)), task.counts(tokens)).value
    loss.backward()
    gradients = [p.grad for p in task.model.parameters()]
    assert loss.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("name", [*AUTOENCODERS.classes, *HEADS, "transformer"])
def test_a_step_is_that_of_fp32_but_for_the_rounding_of_products(name: str) -> None:
    """bf16 numbers are 2^-8 apart, as shares of them; a gradient goes through some ten products."""
    task = make_task(name)
    loss, gradient = step(task, task.model)
    with_autocast = torch.autocast("cpu", torch.bfloat16)(task.model)
    mixed_loss, mixed_gradient = step(task, with_autocast)
    assert mixed_loss == pytest.approx(loss, rel=2**-7)
    assert mixed_loss != loss
    assert (mixed_gradient - gradient).norm() < 10 * 2**-8 * gradient.norm()
    again, same_gradient = step(task, with_autocast)
    assert again == mixed_loss
    assert torch.equal(same_gradient, mixed_gradient)


def test_distances_are_fp32() -> None:
    random = torch.Generator().manual_seed(0)
    given = torch.randn(5, 4, 8, generator=random), torch.randn(5, 8, generator=random)
    deviations = torch.randn(5, 6, 8, generator=random)
    expected = energy_loss(*given, deviations, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(energy_loss(*given, deviations, 1.0), expected)


def test_the_cross_entropy_is_that_of_rounded_states_and_weights() -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 16, generator=random), torch.randn(VOCABULARY, 16, generator=random)
    target = torch.randint(VOCABULARY, (9,), generator=random)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, target)
    logits = F.linear(hidden.bfloat16(), weight.bfloat16()).float()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.cross_entropy(logits, target, reduction="sum").item(), rel=1e-6)


def test_a_norm_is_computed_in_fp32_and_given_in_bf16() -> None:
    norm, x = RMSNorm(16, eps=1e-6), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(norm.weight)
    expected = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
    assert torch.allclose(norm(x), expected, rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), norm(x).bfloat16())
        assert norm(x).dtype == torch.bfloat16
    assert torch.allclose(norm(x).bfloat16(), expected.bfloat16(), rtol=2**-7)
