"""Brier terms of the next four tokens, of CALM models for every chunk size and of the token-level Transformer."""

import itertools

import pytest
import torch

from calm_core.config import AUTOENCODERS, CalmModelConfig, EnergyHeadConfig, TransformerModelConfig
from calm_core.evaluation.brier import brier_terms, next_tokens
from calm_core.evaluation.samplers import CalmSampler, TransformerScorer
from calm_core.models.autoencoders.base import to_chunks
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.models.transformer import Transformer

V, L, T, S = 17, 6, 24, 5
SHAPE = {"hidden_size": 16, "intermediate_size": 16}


def make(chunk_size: int, interval: int, spread: float = 2.0, kind: str = "mlp") -> CalmSampler:
    torch.manual_seed(chunk_size)
    shape = {"kind": kind, "chunk_size": chunk_size, "latent_size": L, **SHAPE}
    autoencoder = make_autoencoder(AUTOENCODERS.parse(shape), V)
    config = CalmModelConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        head=EnergyHeadConfig(num_layers=1, noise_size=4, model_samples=2),
        **SHAPE,
    )
    calm = Calm(config, V, chunk_size, L)
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight, std=spread)
    freeze(autoencoder)
    freeze(calm)
    return CalmSampler(calm, autoencoder, interval)


def tokens() -> torch.Tensor:
    return torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(0))


def targets(chunk_size: int, interval: int) -> torch.Tensor:
    return next_tokens(tokens(), interval, chunk_size, tokens() >= 0)[0]


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
@pytest.mark.parametrize("spread", [0.0, 0.05, 2.0], ids=["all samples equal", "some equal", "diverse"])
@pytest.mark.parametrize(("chunk_size", "interval"), [(1, 1), (1, 4), (2, 2), (2, 4), (3, 3), (4, 4), (6, 6), (8, 8)])
def test_terms_equal_a_loop_over_positions_and_samples(
    chunk_size: int, interval: int, spread: float, kind: str
) -> None:
    """With the same noise, every continuation drawn to its end, alone, from a sequence that ends where it starts."""
    sampler, target = make(chunk_size, interval, spread, kind), targets(chunk_size, interval)
    terms = sampler.terms(tokens(), target, SequenceNoise([0, 1]), S)
    steps, positions, every = -(-4 // chunk_size), target.shape[1], interval // chunk_size
    noise = SequenceNoise([0, 1])
    uniform = [noise.uniform(positions, S, 4)]
    uniform += [noise.uniform(positions * S, 4).view(2, positions, S, 4) for _ in range(steps - 1)]
    samples = torch.zeros(2, positions, S, 4, dtype=torch.int64)
    for b, p, s in itertools.product(range(2), range(positions), range(S)):
        context = to_chunks(tokens(), chunk_size)[b : b + 1, : every * (p + 1)]
        for step in range(steps):
            hidden, _ = sampler.calm.transformer(sampler.calm.embed(context))
            latent = sampler.calm.sample(hidden[:, -1], uniform[step][b, p, s][None, None])
            reads = sampler.autoencoder.reads
            before = torch.tensor([-1] * reads + context.flatten().tolist())[context.numel() :]
            context = torch.cat([context, sampler.autoencoder.decode(latent, before)], dim=1)
        samples[b, p, s] = context[0, every * (p + 1) :].flatten()[:4]
    expected = brier_terms(samples.flatten(0, 1), target.flatten(0, 1)).view_as(terms)
    assert torch.equal(terms, expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_the_same_tokens_are_scored_for_every_chunk_size(chunk_size: int) -> None:
    assert torch.equal(targets(chunk_size, 4), targets(4, 4))


def test_a_sequence_is_scored_alike_in_any_batch() -> None:
    for chunk_size in (1, 4):
        sampler, target = make(chunk_size, 4), targets(chunk_size, 4)
        together = sampler.terms(tokens(), target, SequenceNoise([5, 6]), S)
        alone = sampler.terms(tokens()[1:], target[1:], SequenceNoise([6]), S)
        assert torch.equal(together[1:], alone)


def small_transformer(vocab_size: int) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerModelConfig(num_hidden_layers=2, num_attention_heads=2, **SHAPE), vocab_size)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)  # neither uniform nor certain
    freeze(model)
    return model


def test_a_transformers_terms_are_unbiased_and_exact_for_one_token() -> None:
    """Against P of every continuation of four tokens, enumerated; the sampled part within 5 standard errors."""
    vocabulary, length, interval = 3, 12, 4
    model = small_transformer(vocabulary)
    sequence = torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(3))
    target, _ = next_tokens(sequence, interval, 1, sequence >= 0)
    exact = torch.zeros(target.shape[1], 4, dtype=torch.float64)
    for p, n in itertools.product(range(target.shape[1]), range(1, 5)):
        context = sequence[0, : interval * (p + 1)]
        rows = torch.tensor(list(itertools.product(range(vocabulary), repeat=n)))
        joined = torch.cat([context.expand(len(rows), -1), rows], dim=1)
        hidden, _ = model.transformer(model.embed(joined))
        log_p = model.lm_head(hidden).double().log_softmax(-1)[:, len(context) - 1 : -1]
        probability = log_p.gather(2, rows.unsqueeze(-1)).squeeze(-1).sum(1).exp()
        assert probability.sum() == pytest.approx(1)
        is_true = (rows == target[0, p, :n]).all(1)
        exact[p, n - 1] = 2 * probability[is_true].sum() - probability.square().sum()

    repeats = 400
    scorer = TransformerScorer(model, interval)
    terms = scorer.terms(
        sequence.expand(repeats, -1), target.expand(repeats, -1, -1), SequenceNoise(list(range(repeats))), 4
    )
    torch.testing.assert_close(terms[:, :, 0], exact[:, 0].expand(repeats, -1), rtol=1e-5, atol=1e-6)
    error = (terms.mean(0) - exact).abs() / (terms.std(0) / repeats**0.5 + 1e-7)
    assert error.max() < 5


def test_a_transformer_is_scored_like_a_loop_over_positions() -> None:
    """The shared past of all positions changes nothing: each sequence alone, cut at each position, gives its terms."""
    model = small_transformer(V)
    target = targets(1, 4)
    together = TransformerScorer(model, 4).terms(tokens(), target, SequenceNoise([0, 1]), S)
    positions = target.shape[1]
    for b in range(2):
        noise = SequenceNoise([b])
        uniform = [noise.uniform(positions * S).view(positions, S) for _ in range(4)]
        for p in range(positions):
            context, expected = tokens()[b, : 4 * (p + 1)], torch.zeros(4, dtype=torch.float64)
            for s in range(S):
                drawn, weight = context, 1.0
                for n in range(4):
                    hidden, _ = model.transformer(model.embed(drawn[None]))
                    probability = model.lm_head(hidden[0, -1]).softmax(-1).double()
                    expected[n] -= weight * probability.square().sum() / S
                    token = int(torch.searchsorted(probability.cumsum(0), uniform[n][p, s].double(), right=True))
                    weight *= float(probability[token])
                    drawn = torch.cat([drawn, torch.tensor([token])])
            joined = torch.cat([context, target[b, p]])
            hidden, _ = model.transformer(model.embed(joined[None]))
            log_p = model.lm_head(hidden[0]).log_softmax(-1).double()[len(context) - 1 : -1]
            true = log_p.gather(1, target[b, p].unsqueeze(1)).squeeze(1).cumsum(0).exp()
            torch.testing.assert_close(together[b, p], expected + 2 * true, rtol=1e-4, atol=1e-6)
