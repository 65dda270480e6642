"""The autoencoder: shapes, loss against plain formulas, and the traps of section 5 of the science notes."""

import pytest
import torch
import torch.nn.functional as F

from calm_core.config import MlpAutoencoderConfig
from calm_core.models.autoencoders.base import Posterior, reconstruct, to_chunks
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise

B, P, V = 2, 3, 11


def make(**settings: float) -> MlpAutoencoder:
    torch.manual_seed(0)
    shape = {"chunk_size": 4, "latent_size": 5, "hidden_size": 8, "intermediate_size": 12}
    return MlpAutoencoder(MlpAutoencoderConfig.model_validate(shape | settings), V)


def tokens(chunk_size: int = 4) -> torch.Tensor:
    return torch.randint(1, V, (B, P, chunk_size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 8])
def test_any_chunk_size_encodes_and_decodes(chunk_size: int) -> None:
    model = make(chunk_size=chunk_size)
    posterior = model.encode(tokens(chunk_size))
    assert posterior.mean.shape == posterior.std.shape == (B, P, 5)
    assert model.logits(posterior.mean).shape == (B, P, chunk_size, V)


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_every_block_is_used(layers: int) -> None:
    """An odd number of blocks must not leave one out: each of them changes the output, so each has a gradient."""
    model = make(num_encoder_layers=layers, num_decoder_layers=layers)
    loss = model(tokens(), torch.ones(B, P, 4, dtype=torch.bool), SequenceNoise([0, 1]))
    loss.cross_entropy.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_clipped_kl_is_the_formula() -> None:
    """kl_i = (mean^2 + std^2 - 1 - 2 log std) / 2, at least kl_clip each, summed; checked against torch's own KL."""
    model = make(kl_clip=0.5).eval()
    real = torch.ones(B, P, 4, dtype=torch.bool)
    posterior = model.encode(tokens())
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(posterior.mean, posterior.std), normal(0.0, 1.0))
    loss = model(tokens(), real, SequenceNoise([0, 1]))
    assert loss.kl.item() == pytest.approx(kl.clamp_min(0.5).sum().item(), rel=1e-5)
    assert loss.clipped.item() == (kl < 0.5).sum().item()
    assert 0 < loss.clipped.item() < kl.numel()  # else the clip was not tried on both sides


def test_a_dimension_below_the_clip_has_no_gradient() -> None:
    mean = torch.tensor([0.1, 3.0], requires_grad=True)
    Posterior(mean, torch.ones(2)).kl().clamp_min(0.5).sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == pytest.approx([0.0, 3.0])


def test_cross_entropy_counts_real_tokens_only() -> None:
    model = make().eval()
    chunks = tokens()
    real = torch.ones(B, P, 4, dtype=torch.bool)
    real[1, 2, 1:] = False  # a chunk that is partly padding
    real[0, 0] = False  # a chunk of padding
    chunks = chunks * real  # token 0 is the padding
    loss = model(chunks, real, SequenceNoise([0, 1]))

    noise = SequenceNoise([0, 1])
    posterior = model.encode(chunks)
    logits = model.logits(posterior.sample(noise.normal(P, 5)))
    plain = [
        F.cross_entropy(logits[b, p, k], chunks[b, p, k])
        for b in range(B)
        for p in range(P)
        for k in range(4)
        if real[b, p, k]
    ]
    assert loss.cross_entropy.item() == pytest.approx(torch.stack(plain).sum().item(), rel=1e-5)


def test_regularisers_act_in_training_only() -> None:
    model = make(latent_dropout=0.5, token_dropout=0.5)
    real = torch.ones(B, P, 4, dtype=torch.bool)
    training = model(tokens(), real, SequenceNoise([0, 1])).cross_entropy
    model.eval()
    first, second = (model(tokens(), real, SequenceNoise([0, 1])).cross_entropy for _ in range(2))
    assert first.item() == second.item()
    assert training.item() != first.item()


def test_a_masked_token_is_not_token_zero() -> None:
    """Hidden tokens are zero vectors, not the embedding of id 0, which is a real token in many vocabularies."""
    model = make()
    hidden = torch.zeros(B, P, 4, dtype=torch.bool)
    masked = model.encoder(tokens(), hidden)
    zeros = model.encoder(torch.zeros_like(tokens()))
    assert torch.equal(masked.mean, model.encoder(tokens() * 0 + 3, hidden).mean)
    assert not torch.allclose(masked.mean, zeros.mean)


def test_chunks_do_not_see_each_other() -> None:
    model = make().eval()
    changed = tokens()
    changed[:, 0] = (changed[:, 0] + 1) % V
    assert torch.equal(model.encode(tokens()).mean[:, 1:], model.encode(changed).mean[:, 1:])


def test_decoder_and_encoder_share_one_embedding() -> None:
    names = dict(make().named_parameters())
    assert [name for name in names if "embed" in name or "lm_head" in name] == ["encoder.embed_tokens.weight"]


def test_extreme_log_std_stays_finite() -> None:
    model = make()
    with torch.no_grad():
        model.encoder.hidden_to_latent.bias.fill_(1e4)
    posterior = model.encode(tokens())
    assert posterior.std.isfinite().all() and posterior.kl().isfinite().all()


def test_a_length_that_is_no_multiple_of_the_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="10 is no multiple of the chunk size 4"):
        to_chunks(torch.zeros(1, 10), 4)


def test_reconstruction_is_of_sampled_latents() -> None:
    model = make()
    freeze(model)
    with torch.no_grad():
        model.encoder.hidden_to_latent.bias[5:].fill_(5.0)  # log std: the latent is nearly all noise
    different = [reconstruct(model, tokens(), SequenceNoise([seed, seed])) for seed in (0, 1)]
    assert not torch.equal(*different)
