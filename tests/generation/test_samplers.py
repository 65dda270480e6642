"""Each sampler where the answer is known: normal latents, two modes, and what a sampler is refused for."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calm_core.config import AUTOENCODERS, CalmModelConfig, FlowHeadConfig, MlpAutoencoderConfig
from calm_core.config.evaluation import SAMPLERS
from calm_core.config.heads import (
    DiffusionHeadConfig,
    EnergyHeadConfig,
    HeadConfig,
    MixtureHeadConfig,
    ResidualHeadConfig,
)
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import CalmError
from calm_core.generation.samplers.densest import MOST, latents_at, medoid
from calm_core.generation.samplers.make import BY_NAME
from calm_core.generation.samplers.path import shrunk_path
from calm_core.generation.samplers.scaled import truncated_normal
from calm_core.generation.temperature import FREE, TextSoFar
from calm_core.generation.text import CalmChunks, Sampling, TextGenerator
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.heads.flow import FlowHead
from calm_core.models.heads.residual import ResidualHead
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise

K, L = 4, 6
SHAPE = {"hidden_size": 16, "intermediate_size": 16}
HEADS: dict[str, HeadConfig] = {
    "flow": FlowHeadConfig(num_layers=1, sampling_steps=4),
    "energy": EnergyHeadConfig(num_layers=1, noise_size=8),
    "diffusion": DiffusionHeadConfig(num_layers=1, sampling_steps=5),
    "residual": ResidualHeadConfig(num_layers=1),
    "mixture": MixtureHeadConfig(),
}
FITTING = [
    *(("flow", name) for name in SAMPLERS if name != "branch"),
    *(("diffusion", name) for name in SAMPLERS if name not in ("path", "branch")),
    *((head, name) for head in ("energy", "residual", "mixture") for name in ("branch", "densest", "batch", "exact")),
]


def chunks(kind: str, decoder: str = "mlp") -> CalmChunks:
    """A model with random weights whose samples differ, and are equal often enough to be accepted."""
    torch.manual_seed(0)
    shape = {"kind": decoder, "chunk_size": K, "latent_size": L, **SHAPE}
    autoencoder = make_autoencoder(AUTOENCODERS.parse(shape), 11)
    config = CalmModelConfig(num_hidden_layers=1, num_attention_heads=2, head=HEADS[kind], **SHAPE)
    calm = Calm(config, 11, K, L)
    last = calm.mlp_generator.components if kind == "mixture" else calm.mlp_generator.final_layer.linears[2]
    torch.nn.init.normal_(last.weight, std=0.3)
    freeze(autoencoder)
    freeze(calm)
    return CalmChunks(calm, autoencoder)


def draw(model: CalmChunks, sampling: Sampling, seeds: list[int], begun: Tensor | None = None) -> Tensor:
    before = torch.ones(len(seeds), model.reads, dtype=torch.int64)
    hidden = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)).expand(len(seeds), 16)
    begun = torch.full((len(seeds), K), FREE) if begun is None else begun
    with torch.no_grad():
        return model.choose(hidden, TextSoFar(before, begun), SequenceNoise(seeds), sampling)


@torch.no_grad()
def test_the_branch_of_a_residual_head_shrinks_towards_its_mean() -> None:
    head = chunks("residual").calm.mlp_generator
    assert isinstance(head, ResidualHead)
    torch.nn.init.normal_(head.mean[3].weight)
    hidden, drawn = torch.randn(3, 16), torch.randn(3, 5, L)
    mean = head.mean(hidden).unsqueeze(1) * head.latent_scale
    expected = mean + 0.3 * (head.sample(hidden, drawn) - mean)
    torch.testing.assert_close(head.sample(hidden, drawn, 0.3), expected)


def test_every_sampler_that_may_be_named_is_there() -> None:
    assert list(BY_NAME) == list(SAMPLERS)


@pytest.mark.parametrize(("kind", "name"), FITTING)
def test_at_temperature_1_every_sampler_is_the_plain_one(kind: str, name: Any) -> None:
    model, seeds = chunks(kind), [*range(6)]
    begun = torch.full((6, K), FREE)
    begun[3:, 0] = draw(model, Sampling(), [9])[0, 0]
    assert torch.equal(draw(model, Sampling(1.0, sampler=name), seeds, begun), draw(model, Sampling(), seeds, begun))


@pytest.mark.parametrize(("kind", "name"), FITTING)
def test_equal_seeds_give_equal_chunks_which_keep_what_is_begun(kind: str, name: Any) -> None:
    """Whatever else is in the batch; and other seeds give others."""
    model, seeds, sampling = chunks(kind), [*range(12)], Sampling(0.7, sampler=name)
    begun = torch.full((12, K), FREE)
    for row, known in enumerate((1, 2, 3)):
        begun[row, :known] = torch.arange(known) + 3
    together = draw(model, sampling, seeds, begun)
    for row in (0, 2, 5):
        assert torch.equal(draw(model, sampling, [row], begun[[row]])[0], together[row])
    assert torch.equal(torch.where(begun == FREE, FREE, together), begun)
    assert len({tuple(chunk) for chunk in together[3:].tolist()}) > 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("flow", "path"),
        ("flow", "noise-scale"),
        ("flow", "truncated"),
        ("energy", "branch"),
        ("residual", "branch"),
        ("mixture", "branch"),
    ],
)
def test_a_lower_temperature_gives_likelier_chunks(kind: str, name: Any) -> None:
    """How often two samples are equal grows as the temperature falls."""
    model, seeds = chunks(kind), [*range(400)]
    equal = []
    for temperature in (1.0, 0.7, 0.4):
        out = draw(model, Sampling(temperature, sampler=name), seeds)
        _, counts = torch.unique(out, dim=0, return_counts=True)
        equal.append((counts * (counts - 1)).sum().item() / (400 * 399))
    assert equal[0] < equal[1] < equal[2]


class Mixture(FlowHead):
    """Knows the velocity of its latents, a mixture of normal ones; one number each."""

    weights, means, std = torch.ones(1), torch.zeros(1), 1.0

    def predict(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        t = time.view(-1, 1)[..., None] if x.ndim == 2 else time.view(1, -1, 1)
        variance = (1 - t) ** 2 + (t * self.std) ** 2
        share = torch.softmax(self.weights.log() - (x - t * self.means) ** 2 / (2 * variance), -1)
        latents = self.means + t * self.std**2 / variance * (x - t * self.means)
        noises = (1 - t) / variance * (x - t * self.means)
        velocity: Tensor = (share * (latents - noises)).sum(-1, keepdim=True)
        return velocity


def mixture(weights: list[float], means: list[float], std: float, evaluations: int) -> Mixture:
    head = Mixture(FlowHeadConfig(num_layers=1, sampling_steps=evaluations), 16, 1)
    head.weights, head.means, head.std = torch.tensor(weights), torch.tensor(means), std
    return head


@torch.no_grad()
def test_normal_latents_are_the_power_when_the_noise_is_scaled_by_its_root() -> None:
    """N(3, 0.5^2)^(1/T) is N(3, T 0.5^2): less noise into the exact path of normal latents."""
    head, normal = (
        mixture([1.0], [3.0], 0.5, 200),
        torch.randn(1, 20_000, 1, generator=torch.Generator().manual_seed(0)),
    )
    for temperature in (1.0, 0.5, 0.1):
        scaled = head.sample(torch.zeros(1, 16), normal * math.sqrt(temperature))
        path = shrunk_path(head, torch.zeros(1, 16), normal, math.sqrt(temperature))
        for latents in (scaled, path):
            assert latents.mean().item() == pytest.approx(3, abs=0.02)
            assert latents.std().item() == pytest.approx(0.5 * math.sqrt(temperature), rel=0.03)


@torch.no_grad()
def test_of_two_modes_the_likelier_one_gains_on_the_path() -> None:
    """Weights 0.7 and 0.3: at T = 0.5 the power has 0.845, and the path must come nearer to it than the model."""
    head, normal = mixture([0.7, 0.3], [-2.0, 2.0], 0.1, 8), torch.randn(1, 20_000, 1)
    shares = []
    for temperature in (1.0, 0.7, 0.5, 0.3):
        latents = shrunk_path(head, torch.zeros(1, 16), normal, temperature)
        shares.append((latents < 0).double().mean().item())
    assert shares[0] == pytest.approx(0.7, abs=0.02)
    assert shares == sorted(shares)
    assert abs(shares[2] - 0.845) < 0.845 - 0.7


@torch.no_grad()
@pytest.mark.parametrize("evaluations", [1, 2, 3, 4])
def test_the_path_of_all_noise_is_the_heads_own(evaluations: int) -> None:
    """So that nothing jumps where the temperature reaches 1."""
    model = chunks("flow")
    head = model.calm.mlp_generator
    assert isinstance(head, FlowHead)
    head.config = head.config.model_copy(update={"sampling_steps": evaluations})
    hidden, normal = torch.randn(3, 16), torch.randn(3, 5, L)
    torch.testing.assert_close(shrunk_path(head, hidden, normal, 1.0), head.sample(hidden, normal))


def test_truncated_noise_is_the_middle_of_the_normal_distribution() -> None:
    """A share of 0.5 lies within 0.6745 of the mean, as evenly as before."""
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    moved = truncated_normal(normal, 0.5)
    assert moved.abs().max().item() <= 0.6745
    assert (moved[normal.argsort()].diff() > -1e-6).all()
    inner = normal[normal.abs() < 0.6745]
    assert moved.std().item() == pytest.approx(inner.std().item(), rel=0.02)


def test_the_medoid_is_the_middle_of_the_largest_crowd() -> None:
    latents = torch.tensor([[9.0, 0.0], [0.0, 0.1], [0.0, 0.0], [0.1, 0.0], [-9.0, 0.0]])
    assert medoid(latents.expand(2, 3, 5, 2)).tolist() == [[[0.0, 0.0]] * 3] * 2
    assert [latents_at(t) for t in (1.0, 0.7, 0.5, 0.001)] == [1, 4, 8, MOST]


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("energy", "path", "it is a path of the flow head"),
        ("diffusion", "path", "it is a path of the flow head"),
        ("energy", "noise-scale", "its noise is normalised first, so that less of it is the same; take branch"),
        ("energy", "truncated", "its noise is normalised first, so that less of it is the same; take branch"),
        ("flow", "branch", "it is of energy, residual and mixture heads, whose noise is a branch of its own"),
    ],
)
def test_a_sampler_that_does_not_go_with_the_head_is_refused(kind: str, name: Any, reason: str) -> None:
    for temperature in (0.5, 1.0):
        with pytest.raises(CalmError, match=f"^sampler {name}: does not go with a head of kind {kind}: {reason}"):
            draw(chunks(kind), Sampling(temperature, sampler=name), [0])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"sampler": "warm"}, "there is no sampler the text 'warm'; there are path, noise-scale, "),
        ({"sampler": "path", "samples": 9}, "samples: is of the sampler batch, and not of path"),
        ({"sampler": "batch", "budget": 9}, "budget: is of the sampler exact, and not of batch"),
        ({"samples": 9, "budget": 9}, "samples: is of the sampler batch, and not of exact"),
    ],
)
def test_settings_of_another_sampler_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(CalmError, match=f"^{reason}"):
        Sampling(0.5, **arguments)


@pytest.mark.parametrize(
    ("kind", "decoder", "best"),
    [
        ("flow", "mlp", "path"),
        ("energy", "mlp", "batch"),
        ("flow", "reading", "batch"),
        ("residual", "mlp", "branch"),
        ("diffusion", "mlp", "batch"),
        ("mixture", "mlp", "branch"),
        ("mixture", "reading", "batch"),
    ],
)
def test_unset_the_best_for_the_model_is_taken(kind: str, decoder: str, best: Any) -> None:
    model, seeds = chunks(kind, decoder), [*range(20)]
    assert model.sampler_name(Sampling(0.5)) == best
    assert torch.equal(draw(model, Sampling(0.5), seeds), draw(model, Sampling(0.5, sampler=best), seeds))


@pytest.mark.parametrize(("decoder", "samples"), [("mlp", 200), ("reading", 48)])
def test_unset_as_many_chunks_are_counted_as_the_decoder_asks_for(decoder: str, samples: int) -> None:
    model, seeds = chunks("mixture", decoder), [*range(20)]
    unset, told = (Sampling(0.5, sampler="batch", samples=number) for number in (None, samples))
    assert torch.equal(draw(model, unset, seeds), draw(model, told, seeds))


def test_prompts_of_every_length_are_continued_by_each_sampler() -> None:
    tokenizer = Tokenizer.train(["the river flows past the old port " * 20], 280)
    torch.manual_seed(0)
    autoencoder = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=K, latent_size=L, **SHAPE), tokenizer.vocab_size)
    config = CalmModelConfig(num_hidden_layers=1, num_attention_heads=2, head=HEADS["flow"], **SHAPE)
    calm = Calm(config, tokenizer.vocab_size, K, L)
    freeze(autoencoder)
    freeze(calm)
    generator = TextGenerator(CalmChunks(calm, autoencoder), tokenizer)
    prompts = ["", "t", "the", "the river", "the river flows past the old"]
    assert len({len(tokenizer.encode(prompt)) % K for prompt in prompts}) > 2
    for name in (name for kind, name in FITTING if kind == "flow"):
        written = generator.write(prompts, max_new_tokens=7, sampling=Sampling(0.6, sampler=name), seed=1)
        assert all(0 < len(one.tokens) <= 7 for one in written)


@pytest.mark.parametrize(
    ("kind", "name"), [("flow", "path"), ("residual", "branch"), ("mixture", "branch"), ("energy", "batch")]
)
def test_a_model_names_the_sampler_that_it_takes(kind: str, name: Any) -> None:
    model = chunks(kind)
    assert model.sampler_name(Sampling(0.5)) == name
    assert model.sampler_name(Sampling(0.5, sampler="densest")) == "densest"
    assert model.sampler_name(Sampling()) is None
