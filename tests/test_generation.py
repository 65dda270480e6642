"""Text generation: temperature, lengths, seeds, and prompts that end inside a chunk."""

import itertools
from math import comb

import pytest
import torch

from calm_core.config import AutoencoderModelConfig, CalmModelConfig
from calm_core.data.tokenizer import Tokenizer
from calm_core.errors import CalmError
from calm_core.generation import TextGenerator, temperature_weights
from calm_core.models.autoencoder import Autoencoder, freeze
from calm_core.models.calm import Calm

K = 4


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["the river flows past the old port " * 20], 280)
    shape = {"hidden_size": 16, "intermediate_size": 16}
    autoencoder = Autoencoder(AutoencoderModelConfig(chunk_size=K, latent_size=6, **shape), tokenizer.vocab_size)
    config = CalmModelConfig(num_hidden_layers=1, num_attention_heads=2, num_head_layers=1, model_samples=2, **shape)
    calm = Calm(config, tokenizer.vocab_size, K, 6)
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight, std=1.0)
    freeze(autoencoder)
    freeze(calm)
    return TextGenerator(calm, autoencoder, tokenizer)


def weights_of(labels: list[int], temperature: float) -> list[float]:
    row = torch.tensor([labels])
    return temperature_weights(row.unsqueeze(1) == row.unsqueeze(2), temperature)[0].tolist()


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


def test_the_batch_approximation_comes_near_the_target_distribution() -> None:
    """P_T(x) = P(x)^2 / sum P^2 at T = 1/2: the expectation over all batches of 8 samples of a three-way choice."""
    probability = [0.6, 0.3, 0.1]
    expected = [0.0] * 3
    for draw in itertools.product(range(3), repeat=8):
        chance = torch.tensor([probability[i] for i in draw], dtype=torch.float64).prod().item()
        for i, weight in zip(draw, weights_of(list(draw), 0.5), strict=True):
            expected[i] += chance * weight
    target = [p * p / sum(q * q for q in probability) for p in probability]
    assert expected == pytest.approx(target, abs=0.05)  # its bias at S = 8, which falls with S


def test_samples_that_are_excluded_have_no_weight() -> None:
    equal = torch.ones(1, 3, 3, dtype=torch.bool)
    equal[:, 2], equal[:, :, 2] = False, False
    assert temperature_weights(equal, 0.5)[0].tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_seeds_give_equal_text_whatever_else_is_asked(generator: TextGenerator, temperature: float) -> None:
    settings = {"max_new_tokens": 11, "temperature": temperature, "temperature_samples": 16}
    together = generator.generate(["the river", "the old port"], seed=1, **settings)
    alone = generator.generate(["the old port"], seed=1, **settings)
    assert together[1] == alone[0]
    assert generator.generate(["the old port"], seed=2, **settings) != alone


@pytest.mark.parametrize("number", [1, 3, 4, 5, 9])
def test_exactly_the_asked_number_of_tokens(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(generator.tokenizer, "decode", lambda ids: lengths.append(len(ids)) or "")
    generator.generate(["the river flows"], max_new_tokens=number, seed=3)
    assert lengths == [number]


@pytest.mark.parametrize("prompt", ["", "t", "the", "the river", "the river flows past the old"])
def test_prompts_of_any_length(generator: TextGenerator, prompt: str) -> None:
    (text,) = generator.generate([prompt], max_new_tokens=8)
    assert isinstance(text, str)


def test_the_begun_chunk_keeps_the_prompt(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is fed the prompt's own tokens, also where they end inside a chunk, and no padding in between."""
    seen: list[torch.Tensor] = []
    embed = generator.calm.embed
    monkeypatch.setattr(generator.calm, "embed", lambda chunks: seen.append(chunks) or embed(chunks))
    prompt = "the river flows past the"
    tokens = generator.tokenizer.encode(prompt)
    assert len(tokens) % K, "the prompt must end inside a chunk for this test"
    generator.generate([prompt], max_new_tokens=K + 1)
    fed = torch.cat(seen, dim=1).flatten().tolist()
    boundary = [generator.tokenizer.eos_id] + [generator.tokenizer.pad_id] * (K - 1)
    assert fed[:K] == boundary
    assert fed[K : K + len(tokens)] == tokens


def test_an_end_of_text_inside_a_chunk_ends_the_text_there(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = generator.tokenizer.encode("a")[0], generator.tokenizer.encode("b")[0]
    chunk = torch.tensor([a, b, generator.tokenizer.eos_id, a])
    monkeypatch.setattr(generator.autoencoder, "decode", lambda latents: chunk.expand(*latents.shape[:-1], K))
    assert generator.generate([""], max_new_tokens=50) == ["ab"]


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.5])
def test_an_impossible_temperature_is_refused(generator: TextGenerator, temperature: float) -> None:
    with pytest.raises(CalmError, match="temperature must be above 0 and at most 1"):
        generator.generate(["x"], temperature=temperature)
