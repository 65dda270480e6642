"""Heads against their formulas; the energy score and the energy head have tests of their own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calm_core.config import HEADS, CalmModelConfig, parse_section
from calm_core.errors import ConfigError
from calm_core.models.heads.base import Head, Targets
from calm_core.models.heads.denoising import DenoisingHead
from calm_core.models.heads.diffusion import DiffusionHead
from calm_core.models.heads.flow import FlowHead
from calm_core.models.heads.make import make_head
from calm_core.models.heads.mixture import MixtureHead
from calm_core.models.heads.residual import ResidualHead
from calm_core.models.layers import initialize
from calm_core.models.noise import SequenceNoise

D, L, N, P = 16, 5, 3, 4


def make(head: str, **settings: int) -> DenoisingHead:
    torch.manual_seed(0)
    made = make_head(HEADS.parse({"kind": head, "num_layers": 2, "model_samples": N, **settings}), D, L)
    assert isinstance(made, DenoisingHead)
    return made


def targets() -> Targets:
    counted = torch.tensor([[True, False, True, True], [True, True, False, True]])
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(int(counted.sum()), L, generator=generator)
    return Targets(counted, mean, 0.1 * torch.randn(len(mean), N, L, generator=generator))


@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_the_loss_equals_a_loop_over_positions_and_draws(head: str) -> None:
    model, wanted = make(head), targets()
    model.fit(2 * torch.ones(3, L))
    hidden = torch.randn(2, P, D, generator=torch.Generator().manual_seed(2))
    loss = model.loss(hidden, wanted, SequenceNoise([0, 1]))

    noise = SequenceNoise([0, 1])
    uniform, normal = noise.uniform(P, N), noise.normal(P, N, L)
    for r, (b, p) in enumerate(wanted.counted_BP.nonzero().tolist()):
        errors = []
        for n in range(N):
            latent, e, u = (wanted.mean_RL[r] + wanted.deviations_RML[r, n]) / 2, normal[b, p, n], uniform[b, p, n]
            if head == "flow":
                time, x, goal = u, (1 - u) * e + u * latent, latent - e
            else:
                time = (u * 1000).floor() / 999
                signal = torch.cos((time + 0.008) / 1.008 * torch.pi / 2).square().clamp(1e-4, 1 - 1e-4)
                x, goal = signal.sqrt() * latent + (1 - signal).sqrt() * e, e
            predicted = model.predict(x[None], time[None], model.condition(hidden[b, p]))
            errors.append((predicted[0] - goal).square().mean())
        torch.testing.assert_close(loss[r], torch.stack(errors).mean(), rtol=1e-5, atol=1e-6)


def test_the_linear_path_adds_a_map_of_the_condition_to_the_velocity() -> None:
    model = make("flow", linear_path=True)
    assert isinstance(model, FlowHead) and model.linear_path is not None
    model.apply(initialize)
    model.finish_initialization()
    generator = torch.Generator().manual_seed(2)
    condition, x = (torch.randn(P, size, generator=generator) for size in (D, L))
    at = x, torch.rand(P, generator=generator), condition
    torch.testing.assert_close(model.predict(*at), torch.zeros(P, L))  # a new head stands still, as without it
    with torch.no_grad():
        model.linear_path.weight.normal_(generator=generator)
    torch.testing.assert_close(model.predict(*at), condition @ model.linear_path.weight.T)


def velocity(x: Tensor, time: Tensor, mean: float, variance: float) -> Tensor:
    """E[latent - noise | x_t] for latents of N(mean, variance)."""
    residual = (x - time * mean) / ((1 - time) ** 2 + time**2 * variance)
    return mean + time * variance * residual - (1 - time) * residual


def noise_at(head: DiffusionHead) -> Callable[[Tensor, Tensor, float, float], Tensor]:
    """E[noise | x_t] for latents of N(mean, variance)."""

    def expected(x: Tensor, time: Tensor, mean: float, variance: float) -> Tensor:
        signal = head.signal(time)
        return (1 - signal).sqrt() * (x - signal.sqrt() * mean) / (signal * variance + 1 - signal)

    return expected


@pytest.mark.parametrize(("head", "steps"), [("diffusion", 200), ("flow", 64), ("flow", 65)])
def test_with_a_perfect_network_samples_have_the_distribution_of_the_data(
    head: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both samplers are then an affine map of normal noise, so mean and spread say it all."""
    model, mean, deviation, scale = make(head, sampling_steps=steps), 0.7, 0.4, 3.0
    model.latent_scale.fill_(scale)
    expected = noise_at(model) if isinstance(model, DiffusionHead) else velocity
    monkeypatch.setattr(model, "predict", lambda x, time, condition: expected(x, time, mean, deviation**2))
    quantiles = torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1).expand(1, 3, L)
    samples = model.sample(torch.zeros(1, D), quantiles)
    wanted = scale * (mean + deviation * quantiles)
    torch.testing.assert_close(samples, wanted, rtol=0, atol=0.05 * scale * deviation)


@pytest.mark.parametrize(("head", "steps"), [("diffusion", 7), ("flow", 1), ("flow", 2), ("flow", 7), ("flow", 8)])
def test_a_sample_takes_as_many_evaluations_as_asked(head: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = make(head, sampling_steps=steps), []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda *arguments: calls.append(1) or predict(*arguments))
    samples = model.sample(torch.zeros(2, 3, D), torch.zeros(2, 3, N, L))
    assert samples.shape == (2, 3, N, L)
    assert len(calls) == steps


def test_more_sampling_steps_than_noise_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sampling_steps \(11\) must not exceed diffusion_steps \(10\)"):
        parse_section(CalmModelConfig, {"head": {"kind": "diffusion", "diffusion_steps": 10, "sampling_steps": 11}})
    parse_section(CalmModelConfig, {"head": {"kind": "flow", "sampling_steps": 11}})


def test_the_condition_reaches_every_sample() -> None:
    model = FlowHead(make("flow").config, D, L)
    hidden, noise = torch.randn(2, D, generator=torch.Generator().manual_seed(3)), torch.zeros(2, N, L)
    samples = model.sample(hidden, noise)
    assert not torch.equal(samples[0], samples[1])


def require_formula(
    model: Head, draws: Tensor, formula: Callable[[Tensor, Tensor, list[Tensor]], Tensor], scale: float
) -> None:
    """Loss and gradients of a head are those of a formula of one position's state, draws [N, U] and targets z_m."""
    wanted = targets()
    wanted = Targets(wanted.counted_BP, wanted.mean_RL, wanted.deviations_RML[:, :2])
    model.fit(scale * torch.ones(3, L))
    hidden = torch.randn(2, P, D, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = model.loss(hidden, wanted, SequenceNoise([0, 1]))
    plain = torch.stack(
        [
            formula(
                hidden[b, p], draws[b, p], [wanted.mean_RL[r] + deviation for deviation in wanted.deviations_RML[r]]
            )
            for r, (b, p) in enumerate(wanted.counted_BP.nonzero().tolist())
        ]
    )
    torch.testing.assert_close(loss, plain)
    weights, inputs = torch.linspace(0.5, 1.5, len(loss)), (hidden, *model.parameters())
    grads, by_formula = (torch.autograd.grad((weights * each).sum(), inputs) for each in (loss, plain))
    for grad, expected in zip(grads, by_formula, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


def residual() -> ResidualHead:
    """With weights that are not zero anywhere."""
    torch.manual_seed(0)
    made = make_head(HEADS.parse({"kind": "residual", "num_layers": 2, "model_samples": N, "target_samples": 2}), D, L)
    assert isinstance(made, ResidualHead)
    return made.apply(initialize)


def test_the_residual_head_equals_its_formula() -> None:
    """A loop over pairs, from z = scale (mean(h) + u + network(u, h))."""
    model, scale = residual(), 2.0

    def formula(h: Tensor, normal: Tensor, z: list[Tensor]) -> Tensor:
        x = [scale * (model.mean(h) + u + model.network(u[None], model.condition(h))[0]) for u in normal]
        to_targets = sum((x_n - z_m).norm() for x_n in x for z_m in z) * 2 / (N * len(z))
        between = sum((x[n] - x[k]).norm() for n in range(N) for k in range(N) if n != k) / (N * (N - 1))
        return (to_targets - between) / (scale * L**0.5)

    require_formula(model, SequenceNoise([0, 1]).normal(P, N, L), formula, scale)


def test_a_residual_sample_is_its_noise_before_training() -> None:
    model = residual()
    model.finish_initialization()
    model.fit(3 * torch.ones(2, L))
    drawn = model.sampling_noise(SequenceNoise([5]), P, N)
    samples = model.sample(torch.randn(1, P, D), drawn)
    torch.testing.assert_close(samples, 3 * drawn)


C = 4


def mixture() -> MixtureHead:
    """With components that differ in everything."""
    torch.manual_seed(0)
    settings = {"kind": "mixture", "components": C, "num_layers": 2, "model_samples": N, "target_samples": 2}
    made = make_head(HEADS.parse(settings), D, L)
    assert isinstance(made, MixtureHead)
    return made.apply(initialize)


def test_the_mixture_head_equals_its_formula() -> None:
    """A loop over draws and components."""
    model, scale = mixture(), 2.0

    def formula(h: Tensor, normal: Tensor, z: list[Tensor]) -> Tensor:
        numbers = model.components(model.layers(h))
        means, w, s = numbers[: C * L].view(C, L), numbers[C * L : -C].softmax(0), numbers[-C:].exp()
        x = [[scale * (means[c] + s[c] * u[:L]) for c in range(C)] for u in normal]
        to_targets = sum(w[c] * (x[n][c] - z_m).norm() for n in range(N) for c in range(C) for z_m in z)
        pairs = [(n, k) for n in range(N) for k in range(N) if n != k]
        between = sum(w[c] * w[d] * (x[n][c] - x[k][d]).norm() for n, k in pairs for c in range(C) for d in range(C))
        return (to_targets * 2 / (N * len(z)) - between / len(pairs)) / (scale * L**0.5)

    require_formula(model, SequenceNoise([0, 1]).normal(P, N, L + 1), formula, scale)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_mixture_draws_components_by_weight_and_normal_noise_around_them(temperature: float) -> None:
    """Weights to the power 1 / T; of the noise, T times."""
    model, draws = mixture(), 20_000
    model.fit(3 * torch.ones(2, L))
    with torch.no_grad():
        model.components.bias[: C * L] = 20 * torch.arange(C).repeat_interleave(L)  # far apart
        hidden = torch.randn(1, D)
        samples = model.sample(hidden, model.sampling_noise(SequenceNoise([5]), draws), temperature)[0] / 3
        log_weights, means, std = model.mixture(hidden)
    chosen = torch.cdist(samples, means[0]).argmin(1)
    weights = (log_weights[0] / temperature).softmax(0)
    torch.testing.assert_close(torch.bincount(chosen, minlength=C) / draws, weights, rtol=0, atol=0.015)
    noise = (samples - means[0][chosen]) / std[0][chosen].unsqueeze(1)
    torch.testing.assert_close(noise.mean(), torch.tensor(0.0), rtol=0, atol=0.02)
    torch.testing.assert_close(noise.std(), torch.tensor(temperature), rtol=0.02, atol=0)


def test_new_components_differ_and_weigh_the_same() -> None:
    model = mixture()
    model.finish_initialization()
    log_weights, means, std = model.mixture(torch.randn(P, D))
    torch.testing.assert_close(log_weights.exp(), torch.full((P, C), 1 / C))
    torch.testing.assert_close(std, torch.ones(P, C))
    assert torch.pdist(means[0]).min() > 0.1


@pytest.mark.parametrize(
    ("kind", "dtype"), [(k, d) for k in (residual, mixture) for d in (torch.float32, torch.bfloat16)]
)
def test_a_one_shot_head_trains_in_any_precision(kind: Callable[[], Head], dtype: torch.dtype) -> None:
    """Towards a latent that the hidden state tells: the loss falls to the posterior's own spread."""
    model, positions = kind(), 32
    model.finish_initialization()
    model.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(1, positions, D, generator=generator)
    mean, counted = hidden[0, :, :L], torch.ones(1, positions, dtype=torch.bool)
    losses = []
    for step in range(100):
        deviations = 0.1 * torch.randn(positions, 2, L, generator=generator)
        loss = model.loss(hidden.to(dtype), Targets(counted, mean, deviations), SequenceNoise([step])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert loss.dtype == torch.float32
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
