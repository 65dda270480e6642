"""Sampling at a temperature against enumerated distributions, and the pruned decoding against the whole one."""

import itertools
import random
from math import comb, prod

import pytest
import torch

from calm_core.config import AUTOENCODERS
from calm_core.generation.temperature import (
    FREE,
    BudgetExceeded,
    TextSoFar,
    choose_chunks,
    power_sample,
    temperature_weights,
)
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.layers import freeze

PROBABILITY = [0.5, 0.3, 0.15, 0.05]


def target(temperature: float) -> list[float]:
    powers = [p ** (1 / temperature) for p in PROBABILITY]
    return [power / sum(powers) for power in powers]


def chi_square_p_value(counts: list[int], expected: list[float]) -> float:
    """Probability of a chi-square statistic at least this large if the expected frequencies are true."""
    total = sum(counts)
    statistic = sum((c - total * e) ** 2 / (total * e) for c, e in zip(counts, expected, strict=True))
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


@pytest.mark.parametrize("temperature", [1.0, 0.9, 0.7, 0.5, 0.4, 1 / 3, 0.3])
def test_the_exact_sampler_has_the_target_distribution(temperature: float) -> None:
    generator = random.Random(0)
    counts = [0] * 4
    for _ in range(20_000):
        sample, _ = power_sample(
            lambda: generator.choices(range(4), PROBABILITY)[0], generator.random, temperature, budget=10**6
        )
        counts[sample] += 1
    assert chi_square_p_value(counts, target(temperature)) > 0.001  # a seed in a thousand would fail
    assert chi_square_p_value(counts, target(temperature * 0.9)) < 1e-6  # and the test can tell


def test_the_budget_is_kept_to_the_last_draw() -> None:
    """At T = 1/2 the third and fourth draw are the first equal pair."""
    draws = [0, 1, 2, 2]
    sample, used = power_sample(iter(draws).__next__, lambda: 0.5, 0.5, budget=4)
    assert (sample, used) == (2, 4)
    with pytest.raises(BudgetExceeded):
        power_sample(iter(draws).__next__, lambda: 0.5, 0.5, budget=3)


def weights_of(labels: list[int], temperature: float) -> list[float]:
    counts = torch.tensor([[labels.count(label) for label in labels]])
    return temperature_weights(counts, temperature)[0].tolist()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_weights_are_binomial_coefficients_for_integer_inverse_temperatures(n: int) -> None:
    """A chunk seen c times has weight C(c, n), shared by its copies: label 0 five times, 1 three times, 2 once."""
    labels = [0] * 5 + [1] * 3 + [2]
    total = sum(comb(c, n) for c in (5, 3, 1))
    weights = weights_of(labels, 1 / n)
    for label, count in ((0, 5), (1, 3), (2, 1)):
        share = sum(w for w, own in zip(weights, labels, strict=True) if own == label)
        assert share == pytest.approx(comb(count, n) / total)


def test_a_fallback_when_no_chunk_is_seen_often_enough() -> None:
    """1/T = 4, seen twice at most: 4 -> 3 -> 2, so the pair wins; all different: 1, so all are equally likely."""
    assert weights_of([0, 0, 1, 2], 0.25) == pytest.approx([0.5, 0.5, 0, 0])
    assert weights_of([0, 1, 2], 0.25) == pytest.approx([1 / 3] * 3)
    assert weights_of([0, 0, 1], 1 / 2.5) == pytest.approx([0.5, 0.5, 0])  # 2.5 -> 1.5, which one copy does not reach


def test_samples_that_are_excluded_have_no_weight() -> None:
    assert temperature_weights(torch.tensor([[2, 2, 0]]), 0.5)[0].tolist() == [0.5, 0.5, 0]
    assert temperature_weights(torch.tensor([[0, 0]]), 0.5)[0].tolist() == [0, 0]


@pytest.mark.parametrize("temperature", [0.7, 0.5, 0.4])
def test_the_batch_approximation_nears_the_target_with_more_samples(temperature: float) -> None:
    """Its expectation over all batches, enumerated by the counts of each chunk, for S = 4, 12 and 36."""
    distances = []
    for samples in (4, 12, 36):
        expected = [0.0] * 3
        p = [0.6, 0.3, 0.1]
        for a, b in itertools.product(range(samples + 1), repeat=2):
            counts = [a, b, samples - a - b]
            if counts[2] < 0:
                continue
            chance = comb(samples, a) * comb(samples - a, b) * prod(q**c for q, c in zip(p, counts, strict=True))
            labels = [i for i, count in enumerate(counts) for _ in range(count)]
            for i, weight in zip(labels, weights_of(labels, temperature), strict=True):
                expected[i] += chance * weight
        wanted = [q ** (1 / temperature) for q in p]
        distances.append(sum(abs(e - w / sum(wanted)) for e, w in zip(expected, wanted, strict=True)) / 2)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.03


V, L = 11, 5


def make(chunk_size: int, kind: str = "mlp") -> Autoencoder:
    torch.manual_seed(chunk_size)
    shape = {"chunk_size": chunk_size, "latent_size": L, "hidden_size": 16, "intermediate_size": 16}
    model = make_autoencoder(AUTOENCODERS.parse(shape | {"kind": kind}), V)
    freeze(model)
    return model


def choose_from_all(
    model: Autoencoder, latents: torch.Tensor, uniform: torch.Tensor, temperature: float, text: TextSoFar
) -> torch.Tensor:
    """The choice written plainly: every sample decoded whole, every pair compared."""
    chunks, begun = model.decode(latents, text.before_BW.unsqueeze(1)), text.begun_BK
    free = begun.unsqueeze(1) == FREE
    fits = ((chunks == begun.unsqueeze(1)) | free).all(-1)
    equal = (chunks.unsqueeze(1) == chunks.unsqueeze(2)).all(-1) & fits.unsqueeze(1) & fits.unsqueeze(2)
    cumulative = temperature_weights(equal.sum(-1), temperature).cumsum(-1)
    out = []
    for row in range(len(latents)):
        chosen = 0
        if fits[row].any():
            chosen = int(torch.searchsorted(cumulative[row], uniform[row].double(), right=True))
        latent = latents[row, min(chosen, latents.shape[1] - 1)]  # which a reading decoder continues the beginning from
        decoded = model.decode(latent[None], text.before_BW[row], begun[row])[0]
        out.append(torch.where(begun[row] == FREE, decoded, begun[row]))
    return torch.stack(out)


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.5, 0.4, 0.25, 0.1])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6, 3.0], ids=["equal", "close", "mixed", "diverse"])
@pytest.mark.parametrize(("chunk_size", "samples"), [(1, 30), (2, 30), (4, 30), (4, 1), (4, 2), (4, 200)])
def test_pruned_decoding_chooses_what_whole_decoding_chooses(
    chunk_size: int, samples: int, spread: float, temperature: float, kind: str
) -> None:
    """Rows differ in their spread, so that some fall back and others do not; some have begun their chunk."""
    model, rows = make(chunk_size, kind), 6
    generator = torch.Generator().manual_seed(7)
    centre = torch.randn(rows, 1, L, generator=generator)
    noise = torch.randn(rows, samples, L, generator=generator)
    latents = centre + spread * torch.linspace(0.2, 1.5, rows).view(-1, 1, 1) * noise
    uniform = torch.rand(rows, generator=generator)
    before = torch.randint(V, (rows, model.reads), generator=generator)
    likely = model.decode(centre, before.unsqueeze(1))[:, 0]
    begun = torch.full_like(likely, FREE)
    begun[1, : chunk_size - 1] = likely[1, : chunk_size - 1]  # some samples fit
    begun[2, :1] = V - 1  # perhaps none does
    text = TextSoFar(before, begun)
    plain = choose_from_all(model, latents, uniform, temperature, text)
    assert torch.equal(choose_chunks(model, latents, uniform, temperature, text), plain)


def test_diverse_samples_are_hardly_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 tokens of 200 samples; with a real vocabulary far fewer collide than among these 11 tokens."""
    model, decoded = make(4), []
    token = model.token
    monkeypatch.setattr(model, "token", lambda trunk, k, *read: decoded.append(len(trunk)) or token(trunk, k))
    latents = 3 * torch.randn(8, 200, L, generator=torch.Generator().manual_seed(0))
    text = TextSoFar(torch.zeros(8, 0, dtype=torch.int64), torch.full((8, 4), FREE))
    choose_chunks(model, latents, torch.rand(8), 0.1, text)
    assert sum(decoded) < 0.75 * 8 * 200 * 4
