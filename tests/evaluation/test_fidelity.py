"""The quality of an autoencoder against plain formulas, token by token and chunk by chunk."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from calm_core.config import AUTOENCODERS, AutoencoderModelConfig, MlpAutoencoderConfig
from calm_core.errors import CalmError
from calm_core.evaluation import fidelity
from calm_core.models.autoencoders.base import Autoencoder, Posterior, reconstruct
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.store.facts import AutoencoderQuality

V, PAD = 50, 0
COUNTS = torch.tensor([0, 0, 1, 9, 10, 99, 100, 123_456] + [5] * (V - 8))


@cache
def trained(kind: str, chunk_size: int) -> Autoencoder:
    """So far that some tokens come back from a sampled latent, and some do not."""
    torch.manual_seed(0)
    shape = {"chunk_size": chunk_size, "latent_size": 16, "hidden_size": 32, "intermediate_size": 32}
    settings = shape | {"kind": kind, "latent_dropout": 0.0, "token_dropout": 0.0}  # it has not long
    autoencoder = make_autoencoder(AUTOENCODERS.parse(settings), V)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-2)
    noise = SequenceNoise(range(64))
    alone = 20 if kind == "reading" else 10  # of which half of the chunks teach the encoder
    for _ in range(alone if chunk_size == 1 else 30 * chunk_size):
        chunks = torch.randint(1, V, (64, 1, chunk_size))
        loss = autoencoder(chunks, torch.ones_like(chunks, dtype=torch.bool), noise)
        optimizer.zero_grad()
        loss.cross_entropy.backward()
        optimizer.step()
    return freeze(autoencoder)


def sequences(chunk_size: int, number: int = 6) -> Tensor:
    """Eight chunks each: of the last one of the first sequence one token is real, the second one ends with padding."""
    tokens = torch.randint(1, V, (number, 8 * chunk_size), generator=torch.Generator().manual_seed(1))
    tokens[0, 7 * chunk_size + 1 :] = PAD
    tokens[1, 4 * chunk_size :] = PAD
    return tokens


def measured(autoencoder: Autoencoder, tokens: Tensor, batch_size: int) -> AutoencoderQuality:
    batches = (
        (tokens[start : start + batch_size], SequenceNoise(range(start, min(start + batch_size, len(tokens)))))
        for start in range(0, len(tokens), batch_size)
    )
    return fidelity.measure(autoencoder, batches, pad_id=PAD, train_counts_V=COUNTS)


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
@pytest.mark.parametrize("chunk_size", [1, 3, 4])
def test_accuracies_are_those_that_a_loop_counts(kind: str, chunk_size: int) -> None:
    autoencoder, tokens = trained(kind, chunk_size), sequences(chunk_size)
    quality = measured(autoencoder, tokens, batch_size=4)

    def counted(decoded: list[Tensor]) -> tuple[float, float]:
        """Shares of tokens and of chunks, of decoded sequences [P, K]."""
        hits: list[bool] = []
        whole: list[bool] = []
        for true, came in zip(tokens.unflatten(1, (-1, chunk_size)).tolist(), decoded, strict=True):
            for chunk, back in zip(true, came.tolist(), strict=True):
                found = [a == b for a, b in zip(chunk, back, strict=True) if a != PAD]
                hits += found
                whole += [all(found)] if found else []
        return sum(hits) / len(hits), sum(whole) / len(whole)

    means, sampled = [], []
    noisy: dict[float, list[Tensor]] = {scale: [] for scale in fidelity.NOISE_SCALES}
    for number, row in enumerate(tokens):
        noise, chunks = SequenceNoise([number]), row.unflatten(0, (-1, chunk_size))
        before = autoencoder.before(chunks.unsqueeze(0))[0]
        posterior = autoencoder.encode(chunks)
        means.append(autoencoder.decode(posterior.mean, before))
        sampled.append(reconstruct(autoencoder, chunks.unsqueeze(0), noise)[0])
        normal = noise.normal(*posterior.mean.shape)[0]
        for scale, decoded in noisy.items():
            decoded.append(autoencoder.decode(posterior.mean + scale * normal, before))
    assert (quality.mean.tokens, quality.mean.chunks) == counted(means)
    assert (quality.sampled.tokens, quality.sampled.chunks) == counted(sampled)
    assert 0.2 < quality.sampled.tokens < 1  # else nothing was told apart
    curve = [(one.scale, one.tokens, one.chunks) for one in quality.under_noise]
    assert curve == [(scale, *counted(noisy[scale])) for scale in fidelity.NOISE_SCALES[: len(curve)]]
    assert [tokens < fidelity.BROKEN for _, tokens, _ in curve] == [False] * (len(curve) - 1) + [True]


def test_batches_change_nothing() -> None:
    autoencoder, tokens = trained("mlp", 4), sequences(4)
    whole, parts = measured(autoencoder, tokens, batch_size=6), measured(autoencoder, tokens, batch_size=1)
    assert whole == parts


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_noise_is_tried_on_the_first_sequences(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding at every scale is most of the work, and a few thousand tokens tell enough."""
    autoencoder, tokens = trained("mlp", 4), sequences(4)
    whole, first = measured(autoencoder, tokens, batch_size=6), measured(autoencoder, tokens[:3], batch_size=3)
    monkeypatch.setattr(fidelity, "NOISE_TOKENS", 3 * tokens.shape[1] + 1)
    some = measured(autoencoder, tokens, batch_size)
    assert some.under_noise == first.under_noise != whole.under_noise
    assert some.sampled == whole.sampled
    monkeypatch.setattr(fidelity, "NOISE_TOKENS", 1)
    assert measured(autoencoder, tokens, batch_size).under_noise == measured(autoencoder, tokens[:1], 1).under_noise
    assert measured(autoencoder, torch.cat([0 * tokens[:1], tokens]), batch_size).under_noise == []


def test_a_sequence_of_padding_changes_nothing() -> None:
    autoencoder, tokens = trained("mlp", 4), sequences(4)
    padded = torch.cat([tokens, torch.full_like(tokens[:1], PAD)])
    assert measured(autoencoder, padded, batch_size=1) == measured(autoencoder, tokens, batch_size=1)


def test_text_of_padding_alone_is_refused() -> None:
    with pytest.raises(CalmError, match="no token of the held-out text is real"):
        measured(trained("mlp", 4), torch.full((2, 8), PAD), batch_size=2)


def test_frequencies_are_told_apart_by_powers_of_ten() -> None:
    """COUNTS: token 1 never occurs, 2 once, 3 nine times, 4 ten times, ...; the rest five times."""
    autoencoder, tokens = trained("mlp", 4), sequences(4)
    quality = measured(autoencoder, tokens, batch_size=6)
    chunks = tokens.unflatten(1, (-1, 4))
    back = reconstruct(autoencoder, chunks, SequenceNoise(range(6)))
    expected = {}
    for least, most in ((0, 0), (1, 9), (10, 99), (100, 999), (100_000, 999_999)):
        hits = [
            true == came
            for true, came in zip(chunks.flatten().tolist(), back.flatten().tolist(), strict=True)
            if true != PAD and least <= int(COUNTS[true]) <= most
        ]
        if hits:
            expected[least, most] = (len(hits), sum(hits) / len(hits))
    assert len(expected) >= 4
    assert {(one.least, one.most): (one.tokens, one.accuracy) for one in quality.by_frequency} == expected


class Placed(Autoencoder):
    """Latents that are told for each token: K = 1."""

    def __init__(self, mean_VL: Tensor, std_VL: Tensor) -> None:
        super().__init__(
            AutoencoderModelConfig(kind="placed", chunk_size=1, latent_size=mean_VL.shape[1]), len(mean_VL)
        )
        self.mean_VL, self.std_VL = mean_VL, std_VL

    def posterior(self, tokens: Tensor, keep: Tensor | None = None) -> Posterior:
        return Posterior(self.mean_VL[tokens.squeeze(-1)], self.std_VL[tokens.squeeze(-1)])

    def states(self, latents: Tensor) -> Tensor:
        return torch.cat([latents, torch.ones_like(latents[..., :1])], -1).unsqueeze(-2)

    @property
    def embedding(self) -> Tensor:
        """The nearest mean is the likeliest token: 2 x.m - |m|^2 is largest where |x - m| is smallest."""
        return torch.cat([2 * self.mean_VL, -self.mean_VL.square().sum(1, keepdim=True)], 1)


def test_dimensions_are_active_whose_mean_varies_however_large_it_is() -> None:
    """In fp32, the mean of the squares less the square of the mean would be nonsense beside 1000^2."""
    spread = torch.linspace(-1, 1, V)
    spread = spread / spread.std(correction=0)
    scales = torch.tensor([0.0, 0.05, 0.09, 0.11, 1.0])  # variance above 0.01 from 0.1 on
    autoencoder = Placed(1000 + spread[:, None] * scales, torch.full((V, 5), 0.3))
    tokens = torch.arange(V).repeat(20).view(-1, 10)  # token 0 too: here nothing is padding
    batches = ((rows, SequenceNoise(range(len(rows)))) for rows in tokens.split(7))
    quality = fidelity.measure(autoencoder, batches, pad_id=V, train_counts_V=torch.ones(V + 1, dtype=torch.int64))
    assert quality.latent_size == 5
    assert quality.active_dimensions == 2


@pytest.mark.parametrize("size", [1e-6, 0.3, 400.0])
def test_quantiles_of_the_standard_deviation_are_those_of_all_values(size: float) -> None:
    std = size * torch.rand(V, 3, generator=torch.Generator().manual_seed(0)).exp()
    autoencoder = Placed(torch.randn(V, 3), std)
    tokens = torch.randint(1, V, (9, 40), generator=torch.Generator().manual_seed(1))
    tokens[2, 11:] = PAD
    quality = measured(autoencoder, tokens, batch_size=2)
    values = std[tokens[tokens != PAD]].numpy()
    assert list(quality.latent_std) == [str(level) for level in fidelity.STD_LEVELS]
    for level, value in quality.latent_std.items():
        exact = float(np.quantile(values, float(level), method="inverted_cdf"))
        assert math.isclose(value, exact, rel_tol=2**-12)


def test_latents_that_hold_everything_are_exact() -> None:
    autoencoder = Placed(1000 * torch.arange(V).float()[:, None], torch.full((V, 1), 0.5))
    quality = measured(autoencoder, sequences(4), batch_size=6)
    assert quality.mean.tokens == quality.sampled.chunks == 1
    assert [one.scale for one in quality.under_noise] == list(fidelity.NOISE_SCALES)  # nothing breaks it
    assert {one.accuracy for one in quality.by_frequency} == {1.0}


def test_the_smallest_config_has_no_width_to_speak_of() -> None:
    """One latent number, chunks of one token, no blocks."""
    config = MlpAutoencoderConfig(
        chunk_size=1, latent_size=1, hidden_size=1, intermediate_size=1, num_encoder_layers=0, num_decoder_layers=0
    )
    quality = measured(freeze(make_autoencoder(config, V)), sequences(1), batch_size=6)
    assert quality.latent_size == 1
