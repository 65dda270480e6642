"""The loss of a global batch in any split."""

from typing import Any

import pytest
import torch

from calm_core.config import DECODER_LOSSES, CalmModelConfig, EnergyHeadConfig, MlpAutoencoderConfig
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.decoder_losses.make import make_decoder_loss
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.training.tasks.autoencoder import AutoencoderTask
from calm_core.training.tasks.base import Task
from calm_core.training.tasks.calm import CalmTask

V, K, L, T = 13, 4, 5, 16
SHAPE = {"hidden_size": 8, "intermediate_size": 8}


def make_task(kind: str) -> Task[Any]:
    torch.manual_seed(0)
    autoencoder = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=K, latent_size=L, **SHAPE), V)
    if kind == "autoencoder":
        return AutoencoderTask(autoencoder, pad_id=0)
    freeze(autoencoder)
    head = EnergyHeadConfig(num_layers=1, model_samples=3, target_samples=4)
    config = CalmModelConfig(num_hidden_layers=1, num_attention_heads=2, head=head, **SHAPE)
    calm = Calm(config, V, K, L)
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight)
    if kind == "calm":
        return CalmTask(calm, autoencoder, pad_id=0)
    settings = {"kind": kind, "weight": 0.5, "until": 0.5, "positions": 0.6}
    return CalmTask(calm, autoencoder, 0, make_decoder_loss(DECODER_LOSSES.parse(settings), autoencoder), steps=8)


@pytest.mark.parametrize("kind", ["autoencoder", "calm", "cross_entropy", "brier"])
@pytest.mark.parametrize("split", [[4], [1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
def test_any_split_of_a_batch_has_the_same_gradient(kind: str, split: list[int]) -> None:
    """Also when its parts hold different numbers of real tokens, and one is nearly all padding."""
    task = make_task(kind)
    tokens = torch.randint(1, V, (4, T), generator=torch.Generator().manual_seed(1))
    tokens[0, 6:] = 0
    tokens[2, 13:] = 0
    counts = task.counts(tokens)

    def gradient(sizes: list[int]) -> tuple[float, torch.Tensor]:
        task.model.zero_grad()
        total, start = 0.0, 0
        for size in sizes:
            noise = SequenceNoise(range(start, start + size))
            loss = task.loss(task.model, tokens[start : start + size], noise, counts)
            loss.value.backward()
            total, start = total + loss.value.item(), start + size
        return total, torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])

    whole, parts = gradient([4]), gradient(split)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert torch.allclose(parts[1], whole[1], rtol=1e-4, atol=1e-6)


def test_a_loss_of_decoded_samples_falls_linearly_and_is_computed_until_it_is_gone() -> None:
    """Validation goes on to tell it; the head's loss is the same with and without it."""
    plain, task = make_task("calm"), make_task("cross_entropy")
    tokens = torch.randint(1, V, (4, T), generator=torch.Generator().manual_seed(1))
    counts = task.counts(tokens)

    def metrics(of: Task[Any]) -> tuple[float, dict[str, float]]:
        loss = of.loss(of.model, tokens, SequenceNoise(range(4)), counts)
        return loss.value.item(), {name: value.item() for name, value in loss.metrics.items()}

    head_loss, _ = metrics(plain)
    for step, weight in enumerate([0.5, 0.375, 0.25, 0.125, 0.0, 0.0, 0.0, 0.0]):
        task.begin_step(step)
        value, found = metrics(task)
        assert found["energy_loss"] == head_loss
        assert ("decoder_cross_entropy" in found) == (weight > 0)
        assert value == pytest.approx(head_loss + weight * found.get("decoder_cross_entropy", 0), rel=1e-6)
    task.model.eval()
    assert metrics(task)[1].keys() == {"energy_loss", "decoder_cross_entropy"}
