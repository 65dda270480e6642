"""How fast a model writes, by a clock that moves when the model is asked for a chunk."""

from collections.abc import Sequence

import pytest
import torch

from calm_core.config import CalmModelConfig, EnergyHeadConfig, MlpAutoencoderConfig
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import CalmError
from calm_core.evaluation import speed
from calm_core.generation.text import CalmChunks, Sampling, TextGenerator
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.layers import freeze
from calm_core.store.facts import SpeedFacts

K = 4


@pytest.fixture
def generator() -> TextGenerator:
    torch.manual_seed(0)
    tokenizer, shape = Tokenizer.train(["the old port " * 20], 280), {"hidden_size": 16, "intermediate_size": 16}
    autoencoder = MlpAutoencoder(MlpAutoencoderConfig(chunk_size=K, latent_size=6, **shape), tokenizer.vocab_size)
    head = EnergyHeadConfig(num_layers=1, model_samples=2)
    config = CalmModelConfig(num_hidden_layers=1, num_attention_heads=2, head=head, **shape)
    calm = Calm(config, tokenizer.vocab_size, K, 6)
    return TextGenerator(CalmChunks(freeze(calm), freeze(autoencoder)), tokenizer)


class Scripted:
    """Writes so many tokens for each prompt, and then ends the text; each chunk takes a second.

    Before the texts that are counted, the first prompt is continued by one chunk, twice.
    """

    def __init__(self, generator: TextGenerator, lengths: Sequence[int]) -> None:
        self.now = 0.0
        self._chunks = 0
        end, token = generator.tokenizer.eos_id, generator.tokenizer.encode("the")[0]
        self._texts = [[token] * length + [end] * K for length in lengths]

    def monotonic(self) -> float:
        return self.now

    def choose(self, hidden_BD: torch.Tensor, *_: object) -> torch.Tensor:
        self.now += 1
        self._chunks += 1
        at = K * max(self._chunks - 3, 0)
        living = [text for text in self._texts if self._chunks <= 2 or len(text) - K >= at]
        return torch.tensor([text[at : at + K] for text in living[: len(hidden_BD)]])


def measured(generator: TextGenerator, lengths: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> SpeedFacts:
    script = Scripted(generator, lengths)
    monkeypatch.setattr(speed, "time", script)
    monkeypatch.setattr(generator.model, "choose", script.choose)
    return speed.measure(generator, [""] * len(lengths), max_new_tokens=100, sampling=Sampling(), seed=0)


def test_tokens_that_are_written_count_and_not_those_that_were_asked_for(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 each, 9 and 2 come: the longer one takes three chunks, the last of which ends it."""
    facts = measured(generator, [9, 2], monkeypatch)
    assert facts.tokens_per_second == pytest.approx(11 / 3)
    assert facts.first_chunk_seconds == 1


def test_a_model_that_writes_nothing_has_no_speed(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(generator, [0], monkeypatch).tokens_per_second == 0


def test_memory_and_device_are_told(generator: TextGenerator) -> None:
    facts = speed.measure(generator, ["the", ""], max_new_tokens=6, sampling=Sampling(0.5, samples=4), seed=0)
    assert facts.tokens_per_second > 0
    assert facts.memory_bytes is not None and facts.memory_bytes > 2**26  # torch alone takes more
    assert facts.device.endswith(f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}")


def test_without_a_prompt_there_is_nothing_to_measure(generator: TextGenerator) -> None:
    with pytest.raises(CalmError, match="without a prompt nothing is written"):
        speed.measure(generator, [], max_new_tokens=6, sampling=Sampling(), seed=0)
