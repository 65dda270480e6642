"""Sampling the next four tokens from a CALM model, for every chunk size."""

import pytest
import torch

from calm_core.config import AutoencoderModelConfig, CalmModelConfig
from calm_core.evaluation.brier import next_tokens
from calm_core.evaluation.samplers import CalmSampler
from calm_core.models.autoencoder import Autoencoder, freeze, to_chunks
from calm_core.models.calm import Calm
from calm_core.noise import SequenceNoise

V, L, T, S = 17, 6, 24, 3


def make(chunk_size: int) -> CalmSampler:
    torch.manual_seed(chunk_size)
    shape = {"hidden_size": 16, "intermediate_size": 16}
    autoencoder = Autoencoder(AutoencoderModelConfig(chunk_size=chunk_size, latent_size=L, **shape), V)
    config = CalmModelConfig(
        num_hidden_layers=2, num_attention_heads=2, num_head_layers=1, noise_size=4, model_samples=2, **shape
    )
    calm = Calm(config, V, chunk_size, L)
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight, std=2.0)
    freeze(autoencoder)
    freeze(calm)
    return CalmSampler(calm, autoencoder)


def tokens() -> torch.Tensor:
    return torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 6, 8])
def test_samples_and_targets_have_the_same_positions(chunk_size: int) -> None:
    samples = make(chunk_size)(tokens(), SequenceNoise([0, 1]), S)
    targets, _ = next_tokens(tokens(), chunk_size, tokens() >= 0)
    assert samples.shape == (*targets.shape[:2], S, 4)


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_shared_prefixes_equal_a_loop_over_positions(chunk_size: int) -> None:
    """With the same noise, every continuation alone, from a sequence that ends where it starts."""
    sampler = make(chunk_size)
    samples = sampler(tokens(), SequenceNoise([0, 1]), S)
    steps = -(-4 // chunk_size)
    chunks = to_chunks(tokens(), chunk_size)
    positions = chunks.shape[1] - steps
    noise = SequenceNoise([0, 1])
    uniform = [noise.uniform(positions, S, 4)]
    uniform += [noise.uniform(positions * S, 1, 4).view(2, positions, S, 4) for _ in range(steps - 1)]
    for b in range(2):
        for p in range(positions):
            for s in range(S):
                context = chunks[b : b + 1, : p + 1]
                for step in range(steps):
                    hidden, _ = sampler.calm.transformer(sampler.calm.embed(context))
                    latent = sampler.calm.sample(hidden[:, -1], uniform[step][b, p, s][None, None])
                    context = torch.cat([context, sampler.autoencoder.decode(latent)], dim=1)
                drawn = context[0, p + 1 :].flatten()[:4]
                assert torch.equal(samples[b, p, s], drawn), (b, p, s)


def test_a_sequence_is_scored_alike_in_any_batch() -> None:
    sampler = make(4)
    together = sampler(tokens(), SequenceNoise([5, 6]), S)
    alone = sampler(tokens()[1:], SequenceNoise([6]), S)
    assert torch.equal(together[1:], alone)
