"""BrierLM: the estimator against exhaustive enumeration, the score against its formula."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from calm_core.evaluation.brier import brier_terms, brierlm, next_tokens
from calm_core.evaluation.language_model_quality import agreement
from calm_core.evaluation.samplers import UnigramSampler
from calm_core.evaluation.training_text import TrainingText
from calm_core.models.noise import SequenceNoise


@pytest.mark.parametrize("number", [2, 3])
def test_the_estimator_is_unbiased(number: int) -> None:
    """Its exact expectation over all samples of a small model is 2 P(y) - sum_x P(x)^2, for every n."""
    sequences = list(itertools.product(range(2), repeat=2))  # all texts of two tokens
    probability = torch.tensor([0.5, 0.2, 0.05, 0.25], dtype=torch.float64)
    target = torch.tensor([[0, 1]])
    expectation = torch.zeros(2, dtype=torch.float64)
    for draw in itertools.product(range(len(sequences)), repeat=number):
        samples = torch.tensor([[sequences[i] for i in draw]])
        expectation += probability[list(draw)].prod() * brier_terms(samples, target)[0]

    for n in (1, 2):
        marginal: dict[tuple[int, ...], float] = {}
        for text, p in zip(sequences, probability.tolist(), strict=True):
            marginal[text[:n]] = marginal.get(text[:n], 0.0) + p
        exact = 2 * marginal[(0, 1)[:n]] - sum(p * p for p in marginal.values())
        assert expectation[n - 1].item() == pytest.approx(exact, abs=1e-12)


def test_two_samples_give_the_definition() -> None:
    """1{x1 = y} + 1{x2 = y} - 1{x1 = x2}."""
    target = torch.tensor([[1, 2, 3, 4]] * 3)
    samples = torch.tensor(
        [
            [[1, 2, 3, 4], [1, 2, 9, 4]],  # one right, one right up to its third token
            [[1, 8, 3, 4], [1, 8, 3, 4]],  # both the same, wrong from the second on
            [[5, 2, 3, 4], [6, 2, 3, 4]],  # both wrong from the start, not equal
        ]
    )
    expected = [[1, 1, 1, 1], [1, -1, -1, -1], [0, 0, 0, 0]]
    assert brier_terms(samples, target).tolist() == expected


def test_each_brier_n_is_clamped_alone() -> None:
    """Two negative factors multiply to a positive one; the score is zero all the same."""
    assert brierlm(np.array([0.1, -0.1, -0.1, 0.1])) == 0
    assert brierlm(np.array([0.16, 0.04, 0.02, 0.005])) == pytest.approx(100 * (0.16 * 0.04 * 0.02 * 0.005) ** 0.25)


@pytest.mark.parametrize(
    ("chunk_size", "starts"),
    [(1, range(1, 9)), (2, range(2, 9, 2)), (3, range(3, 7, 3)), (4, range(4, 9, 4)), (6, [6])],
)
def test_every_start_with_whole_chunks_of_four_tokens_after_it_counts(chunk_size: int, starts: list[int]) -> None:
    """Of 12 tokens; with K < 4 the last valid start counts too. K = 3 needs two whole chunks after a start."""
    tokens = torch.arange(12).unsqueeze(0)
    targets, counted = next_tokens(tokens, chunk_size, chunk_size, torch.ones_like(tokens, dtype=torch.bool))
    assert targets[0].tolist() == [[s, s + 1, s + 2, s + 3] for s in starts]
    assert counted.all()


def test_a_position_with_padding_in_its_next_tokens_does_not_count() -> None:
    tokens = torch.arange(1, 13).unsqueeze(0)
    real = tokens != 12
    assert next_tokens(tokens, 4, 4, real)[1].tolist() == [[True, False]]
    assert next_tokens(tokens, 2, 2, real)[1].tolist() == [[True, True, True, False]]


def test_the_unigram_sampler_reaches_the_score_of_its_distribution() -> None:
    """Brier-1 of a model that ignores context is sum_x P(x)^2 when the text has the same frequencies."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.0, 0.5, 0.3, 0.2])
    tokens = torch.multinomial(shares, 64 * 64, replacement=True, generator=generator).view(64, 64)
    counted = TrainingText(torch.bincount(tokens.flatten(), minlength=4), None).frequencies
    assert torch.allclose(counted, shares.double(), atol=0.03)  # 4,096 draws: a deviation is below 0.008
    sampler = UnigramSampler(counted)
    targets, real = next_tokens(tokens, 4, 4, tokens > 0)
    terms = sampler.terms(tokens, targets, SequenceNoise(range(64)), 32).flatten(0, 1)
    exact = sum(p**2 for p in (0.5, 0.3, 0.2))
    assert real.all()
    assert terms.mean(0)[0].item() == pytest.approx(exact, abs=0.03)
    assert terms.mean(0)[1].item() == pytest.approx(exact**2, abs=0.03)


def test_pairs_of_samples_take_the_memory_of_the_samples() -> None:
    """At once, the 4 * 200 * 200 pairs of a position would: 10 GB of a batch of eight sequences of 2,048 tokens."""

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            self.largest = max(self.largest, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    samples, target = torch.randint(3, (2, 200, 4)), torch.randint(3, (2, 4))
    with Sizes() as sizes:
        brier_terms(samples, target)
        agreement(samples, target[:, 0])
    assert sizes.largest == samples.numel()
