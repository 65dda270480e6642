"""Noise that belongs to a sequence."""

import pytest
import torch

from calm_core.models.noise import _WORTH_THREADS, SequenceNoise, derive_seed


@pytest.mark.parametrize("size", [5, _WORTH_THREADS])
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_sequences_draws_do_not_depend_on_the_others_of_the_batch(draw: str, size: int) -> None:
    """Nor on whether they are drawn one after another, as those of one sequence are, or on threads."""
    seeds = [11, 12, 13]
    batch = SequenceNoise(seeds)
    first, second = getattr(batch, draw)(4, size), getattr(batch, draw)(3)
    for row, seed in enumerate(seeds):
        alone = SequenceNoise([seed])
        assert torch.equal(getattr(alone, draw)(4, size)[0], first[row])
        assert torch.equal(getattr(alone, draw)(3)[0], second[row])
    assert not torch.equal(first[0], first[1])


def test_the_distributions_are_the_named_ones() -> None:
    """10,000 draws: means within 5 standard errors (5 / sqrt(10,000) = 0.05 deviations), spreads within 5 %."""
    noise = SequenceNoise([0, 1])
    for row in noise.normal(10_000):
        assert abs(row.mean()) < 0.05
        assert abs(row.std() - 1) < 0.05
    for row in noise.uniform(10_000):
        assert row.min() >= 0 and row.max() < 1
        assert abs(row.mean() - 0.5) < 0.05 * 12**-0.5
        assert abs(row.std() * 12**0.5 - 1) < 0.05


def test_the_global_generator_takes_no_part() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = SequenceNoise([5]).normal(8)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(SequenceNoise([5]).normal(8), first)


def test_a_seed_is_the_same_in_every_version() -> None:
    """Literal values: a change of the derivation would change every resumed run and every evaluation."""
    assert derive_seed(0, "energy", 5) == 6192276691393501766
    assert 0 <= derive_seed() < 2**63


def test_other_parts_give_another_seed() -> None:
    """Also where the parts would read alike when they are only joined."""
    parts = [(1,), ("1",), (1, 1), (11,), ("1", "1"), ("11",), ("1, 1",), (1, "a"), ("a", 1), (0, 1), (1, 0), (-1,)]
    assert len({derive_seed(*each) for each in parts}) == len(parts)
