"""Learning rates, and AdamW with clipping and an average, against plain formulas."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calm_core.config import CalmConfig, MlpAutoencoderConfig, TrainingConfig, TransformerConfig
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.training.optimizer import (
    AVERAGE,
    AveragingAdamW,
    learning_rate_factor,
    learning_rates,
    make_optimizer,
    parameter_groups,
    state_kinds,
)

RATE, WEIGHT_DECAY, BETAS, EPS, CLIPPING, DECAY = 0.01, 0.1, (0.9, 0.95), 1e-8, 1.0, 0.4
SHAPES = ((3, 4), (4,), (5, 2))


def factors(**settings: Any) -> list[float]:
    config = TrainingConfig.model_validate(settings)
    return [learning_rate_factor(config, step) for step in range(config.steps)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 4, "warmup_steps": 0}, [1, 1, 1, 1]),
        ({"steps": 4, "warmup_steps": 2}, [1 / 2, 1, 1, 1]),
        ({"steps": 4, "warmup_steps": 4}, [1 / 4, 2 / 4, 3 / 4, 1]),
        ({"steps": 5, "warmup_steps": 2, "schedule": "cosine"}, [1 / 2, 1, 1, 3 / 4, 1 / 4]),
        (
            {"steps": 5, "warmup_steps": 2, "schedule": "cosine", "final_learning_rate_fraction": 0.1},
            [0.5, 1, 1, 0.775, 0.325],
        ),
        ({"steps": 4, "warmup_steps": 4, "schedule": "cosine"}, [1 / 4, 2 / 4, 3 / 4, 1]),
        ({"steps": 5, "warmup_steps": 1, "schedule": "wsd", "decay_fraction": 0.6}, [1, 1, 1, 2 / 3, 1 / 3]),
        (
            {"steps": 8, "warmup_steps": 2, "decay_fraction": 0.5, "decay_shape": "sqrt"},
            [1 / 2, 1, 1, 1, 1, 1 / 2, 1 - math.sqrt(2 / 4), 1 - math.sqrt(3 / 4)],
        ),
        (
            {"steps": 4, "warmup_steps": 0, "decay_fraction": 1, "final_learning_rate_fraction": 0.2},
            [1, 0.8, 0.6, 0.4],
        ),
        ({"steps": 4, "warmup_steps": 4, "decay_fraction": 1}, [1 / 4, 2 / 4, 2 / 4, 1 / 4]),
        ({"steps": 1, "warmup_steps": 0}, [1]),
        ({"steps": 1, "warmup_steps": 1, "schedule": "cosine"}, [1]),
        ({"steps": 1, "warmup_steps": 1, "decay_fraction": 1, "decay_shape": "sqrt"}, [1]),
        ({"steps": 1, "warmup_steps": 0, "decay_fraction": 0.01}, [1]),  # a hundredth of a step is none
    ],
    ids=str,
)
def test_a_schedule_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    assert factors(**settings) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0, 1, 60, 200])
def test_a_cosine_at_every_step(warmup: int, floor: float) -> None:
    given = factors(steps=200, warmup_steps=warmup, schedule="cosine", final_learning_rate_fraction=floor)
    rising = [(step + 1) / warmup for step in range(warmup)]
    falling = [floor + (1 - floor) * math.cos(math.pi / 2 * i / (200 - warmup)) ** 2 for i in range(200 - warmup)]
    assert given == pytest.approx(rising + falling, abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("shape", ["linear", "sqrt"])
@pytest.mark.parametrize(("fraction", "decaying"), [(0.2, 40), (0.75, 150), (1.0, 200)])
def test_a_decay_at_every_step(fraction: float, decaying: int, shape: str, floor: float) -> None:
    """Warm-up ends within the decay in the last case: the lower of the two counts."""
    given = factors(
        steps=200, warmup_steps=20, decay_fraction=fraction, decay_shape=shape, final_learning_rate_fraction=floor
    )
    power = {"linear": 1.0, "sqrt": 0.5}[shape]
    rising = [(step + 1) / 20 for step in range(20)] + [1.0] * 180
    lost = [0.0] * (200 - decaying) + [(1 - floor) * (i / decaying) ** power for i in range(decaying)]
    assert given == pytest.approx([min(r, 1 - x) for r, x in zip(rising, lost, strict=True)], abs=1e-12)


def test_settings_from_before_there_were_schedules_mean_the_same_to_the_bit() -> None:
    for steps, warmup, fraction in ((554, 50, 0.4), (20_000, 1000, 0.2), (7, 0, 0.0), (90, 90, 1.0)):
        decaying = fraction * steps
        expected = [
            min(
                (step + 1) / warmup if step < warmup else 1.0,
                (steps - step) / decaying if step > steps - decaying else 1.0,
            )
            for step in range(steps)
        ]
        assert factors(steps=steps, warmup_steps=warmup, decay_fraction=fraction) == expected


def test_a_config_is_read_back() -> None:
    for settings in ({"decay_fraction": 0.4}, {"decay_fraction": 0.0}, {"schedule": "cosine", "ema_decay": 0.9}):
        config = TransformerConfig.model_validate(settings)
        assert TransformerConfig.model_validate_json(config.model_dump_json()) == config


def test_biases_and_norms_do_not_decay() -> None:
    model = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=2, latent_size=4), 9)
    config = TrainingConfig(steps=1, warmup_steps=0, weight_decay=0.1, learning_rate=0.5)
    decayed, free = parameter_groups(model, config)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    assert all(group["lr"] == group["base_lr"] == 0.5 for group in (decayed, free))


def test_the_head_has_a_learning_rate_of_its_own() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1}
    config = CalmConfig.model_validate({"learning_rate": 1e-3, "head_learning_rate": 3e-3, "model": shape})
    model = Calm(config.model, 11, 2, 4)
    rates = {p: group["base_lr"] for group in parameter_groups(model, config) for p in group["params"]}
    names = {name: rates[p] for name, p in model.named_parameters()}
    assert {name.startswith("mlp_generator.") for name in names} == {True, False}
    assert names == {name: 3e-3 if name.startswith("mlp_generator.") else 1e-3 for name in names}
    assert sum(len(group["params"]) for group in parameter_groups(model, config)) == len(names)
    assert learning_rates(config) == {"learning_rate": 1e-3, "head_learning_rate": 3e-3}

    without = config.model_copy(update={"head_learning_rate": None})
    assert [group["base_lr"] for group in parameter_groups(model, without)] == [1e-3, 1e-3]
    assert learning_rates(without) == {"learning_rate": 1e-3}


class Plain:
    """AdamW (Loshchilov and Hutter 2019, with clipping) and the average of one list of numbers, number by number."""

    def __init__(self, values: Sequence[float], weight_decay: Sequence[float]) -> None:
        self.values, self.average, self.weight_decay = list(values), list(values), weight_decay
        self.first, self.second, self.steps = [0.0] * len(self.values), [0.0] * len(self.values), 0

    def step(self, gradient: Sequence[float], rate: float, clipping: float) -> None:
        norm = math.sqrt(sum(g * g for g in gradient))
        clipped = [g * min(1, clipping / (norm + 1e-6)) for g in gradient]
        self.steps += 1
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
        for i, g in enumerate(clipped):
            self.first[i] = BETAS[0] * self.first[i] + (1 - BETAS[0]) * g
            self.second[i] = BETAS[1] * self.second[i] + (1 - BETAS[1]) * g * g
            first = self.first[i] / (1 - BETAS[0] ** self.steps)
            second = self.second[i] / (1 - BETAS[1] ** self.steps)
            self.values[i] *= 1 - rate * self.weight_decay[i]
            self.values[i] -= rate * first / (math.sqrt(second) + EPS)
            self.average[i] = decay * self.average[i] + (1 - decay) * self.values[i]


def make_model() -> nn.Module:
    model = nn.Module()
    generator = torch.Generator().manual_seed(0)
    for i, shape in enumerate(SHAPES):
        model.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape, generator=generator)))
    return model


def gradients(step: int) -> list[Tensor]:
    """Of each parameter; their norm is above CLIPPING in every other step."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) * (1.0 if step % 2 else 0.1) for shape in SHAPES]


def make(model: nn.Module, **settings: Any) -> AveragingAdamW:
    values = {"steps": 9, "warmup_steps": 0, "learning_rate": RATE, "ema_decay": DECAY, "gradient_clipping": CLIPPING}
    return make_optimizer(model, TrainingConfig.model_validate(values | settings), clips=True)


def take(optimizer: AveragingAdamW, model: nn.Module, gradient: list[Tensor]) -> None:
    for parameter, own in zip(model.parameters(), gradient, strict=True):
        parameter.grad = own.clone()
    optimizer.step()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def state(optimizer: AveragingAdamW, model: nn.Module, kind: str) -> Tensor:
    return flat([optimizer.state[p][kind] for p in model.parameters()])


def test_steps_clipping_and_the_average_follow_their_formulas() -> None:
    """The average's decay grows until the fifth of the nine steps; the learning rate changes from step to step."""
    model = make_model()
    optimizer = make(model)
    decays = flat([torch.full(shape, WEIGHT_DECAY if len(shape) > 1 else 0.0) for shape in SHAPES]).double()
    plain = Plain(flat(list(model.parameters())).tolist(), decays.tolist())
    for step in range(9):
        rate = RATE / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        take(optimizer, model, gradients(step))
        gradient = flat(gradients(step)).tolist()
        plain.step(gradient, rate, CLIPPING)
        assert optimizer.gradient_norm == pytest.approx(math.sqrt(sum(g * g for g in gradient)), rel=1e-6)
        assert flat(list(model.parameters())).tolist() == pytest.approx(plain.values, abs=1e-6)
        assert state(optimizer, model, AVERAGE).tolist() == pytest.approx(plain.average, abs=1e-6)
        assert state(optimizer, model, "exp_avg").tolist() == pytest.approx(plain.first, abs=1e-6)
        assert state(optimizer, model, "exp_avg_sq").tolist() == pytest.approx(plain.second, abs=1e-6)


def test_without_clipping_here_it_is_torchs_adamw() -> None:
    model, reference = make_model(), make_model()
    config = TrainingConfig(steps=9, warmup_steps=0, learning_rate=RATE, ema_decay=0.0)
    optimizer = make_optimizer(model, config)
    own = torch.optim.AdamW(parameter_groups(reference, config), betas=config.betas)
    for step in range(9):
        take(optimizer, model, gradients(step))
        for parameter, gradient in zip(reference.parameters(), gradients(step), strict=True):
            parameter.grad = gradient
        own.step()
        assert torch.allclose(flat(list(model.parameters())), flat(list(reference.parameters())), rtol=0, atol=1e-6)
    assert set(optimizer.state[model.p0]) == {"step", *state_kinds(config)} == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_step_whose_gradient_is_not_finite_is_left_out(number: float) -> None:
    """Also the first one; what follows is as if it had not been asked for."""
    model, undisturbed = make_model(), make_model()
    optimizer, reference = make(model), make(undisturbed)
    for step in range(4):
        bad = gradients(step)
        bad[1][2] = number
        take(optimizer, model, bad)
        assert not math.isfinite(optimizer.gradient_norm)
        assert torch.equal(flat(list(model.parameters())), flat(list(undisturbed.parameters())))
        take(optimizer, model, gradients(step))
        take(reference, undisturbed, gradients(step))
        assert optimizer.gradient_norm == reference.gradient_norm
        for kind in ("exp_avg", "exp_avg_sq", AVERAGE):
            assert torch.equal(state(optimizer, model, kind), state(reference, undisturbed, kind))
    assert optimizer.state[model.p0]["step"] == 4


def test_state_that_is_loaded_before_the_first_step_goes_on_to_the_bit() -> None:
    model, resumed = make_model(), make_model()
    optimizer, other = make(model), make(resumed)
    for step in range(3):
        take(optimizer, model, gradients(step))
    for parameter, saved in zip(resumed.parameters(), model.parameters(), strict=True):
        other.init_state(parameter)
        assert torch.equal(other.state[parameter][AVERAGE], parameter)  # the first average is the initial weights
        assert not other.state[parameter]["exp_avg"].any() and other.state[parameter]["step"] == 0
        assert other.state[parameter].keys() == optimizer.state[saved].keys()
        with torch.no_grad():
            parameter.copy_(saved)
        for kind, value in optimizer.state[saved].items():
            other.state[parameter][kind].copy_(value)
        other.init_state(parameter)  # changes nothing that is there
    for step in range(3, 6):
        take(optimizer, model, gradients(step))
        take(other, resumed, gradients(step))
    assert torch.equal(flat(list(model.parameters())), flat(list(resumed.parameters())))
    assert torch.equal(state(optimizer, model, AVERAGE), state(other, resumed, AVERAGE))


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    model = make_model()
    optimizer = make(model)
    before = model.p1.detach().clone()
    model.p0.grad, model.p1.grad, model.p2.grad = gradients(0)[0], None, gradients(0)[2]
    optimizer.step()
    assert torch.equal(model.p1, before) and model.p1 not in optimizer.state
    assert not torch.equal(optimizer.state[model.p0][AVERAGE], model.p0)
