"""Learning rates and the optimiser, against plain formulas."""

import pytest

from calm_core.config import MlpAutoencoderConfig, TrainingConfig
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.training.optimizer import learning_rate_factor, parameter_groups


def test_learning_rate_warms_up_stays_and_decays() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, decay_fraction=0.2)
    factors = [learning_rate_factor(config, step) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(factors[10:81]) == {1.0}
    assert factors[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


def test_the_published_schedule_is_constant_after_warm_up() -> None:
    config = TrainingConfig(steps=50, warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate_factor(config, step) for step in range(50)} == {1.0}


def test_biases_and_norms_do_not_decay() -> None:
    model = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=2, latent_size=4), 9)
    decayed, free = parameter_groups(
        model, TrainingConfig(steps=1, warmup_steps=0, weight_decay=0.1, learning_rate=0.5)
    )
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    assert all(group["lr"] == group["base_lr"] == 0.5 for group in (decayed, free))
