"""BrierLM at K = 1: all start positions together, against a loop over positions."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Row, compared, side_by_side
from benchmarks.sizes import SMALL, models, spread_samples
from calm_core.evaluation.brier import MAX_N, brier_terms, next_tokens
from calm_core.evaluation.samplers import CalmSampler
from calm_core.models.autoencoders.base import to_chunks
from calm_core.models.backbone import KeyValues
from calm_core.models.noise import SequenceNoise

TOKENS = 512


def rows() -> Iterator[Row]:
    calm, autoencoder = models(SMALL, head_layers=4, chunk_size=1)
    sampler = CalmSampler(calm, autoencoder, interval=1)
    tokens = torch.randint(1, calm.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    targets, _ = next_tokens(tokens, 1, 1, tokens >= 0)
    for samples in (2, 8):
        for name, deviation in (("confident", 1e-4), ("between", 0.2), ("untrained", 1.0)):
            spread_samples(calm, deviation)
            share = _collisions(sampler, tokens)
            loop = partial(_loop, sampler, tokens, targets, samples)
            batch = partial(_batch, sampler, tokens, targets, samples)
            assert torch.equal(loop(), batch()), "the loop and the batch must give the same terms"
            seconds = side_by_side({"loop": loop, "ours": batch}, repeats=1)
            what = (
                f"BrierLM, K 1, {TOKENS} positions, S {samples}, {name}: {share:.0%} of the pairs of samples are equal"
            )
            yield compared(what, seconds, target=10 if share > 0.5 else 1)


def _batch(sampler: CalmSampler, tokens: Tensor, targets: Tensor, samples: int) -> Tensor:
    return sampler.terms(tokens, targets, SequenceNoise([0]), samples)


@torch.no_grad()
def _collisions(sampler: CalmSampler, tokens: Tensor) -> float:
    """Share of equal pairs among eight first tokens of each position."""
    samples = 8
    chunks = to_chunks(tokens, 1)
    hidden, _ = sampler.calm.transformer(sampler.calm.embed(chunks))
    drawn = sampler.calm.sampling_noise(SequenceNoise([0]), TOKENS, samples)
    first = sampler.autoencoder.decode(sampler.calm.sample(hidden, drawn), chunks.unsqueeze(2))[..., 0]
    equal = (first.unsqueeze(2) == first.unsqueeze(3)).float().mean().item()
    return (equal * samples - 1) / (samples - 1)


@torch.no_grad()
def _loop(sampler: CalmSampler, tokens: Tensor, targets: Tensor, samples: int) -> Tensor:
    """One position after the other: its samples go on as a batch from the cached keys and values before it."""
    calm, positions = sampler.calm, targets.shape[1]
    hidden, prefix = calm.transformer(calm.embed(to_chunks(tokens, 1)[:, :positions]))
    noise = SequenceNoise([0])
    drawn = [calm.sampling_noise(noise, positions, samples)]
    drawn += [calm.sampling_noise(noise, positions * samples).unflatten(1, (positions, samples)) for _ in range(3)]
    terms = []
    for p in range(positions):
        latents = calm.sample(hidden[:, p], drawn[0][:, p])
        sampled = sampler.autoencoder.decode(latents, tokens[:, p]).view(samples, 1)
        past = [
            KeyValues(*(x[:, :, : p + 1].expand(samples, -1, -1, -1) for x in (layer.keys, layer.values)))
            for layer in prefix
        ]
        for step in range(1, MAX_N):
            states, past = calm.transformer(calm.embed(sampled[:, None, -1:]), past)
            latents = calm.sample(states[:, 0], drawn[step][0, p].unsqueeze(1))
            sampled = torch.cat([sampled, sampler.autoencoder.decode(latents[:, 0], sampled[:, -1:])], dim=1)
        terms.append(brier_terms(sampled.unsqueeze(0), targets[:, p]))
    return torch.stack(terms, dim=1)
