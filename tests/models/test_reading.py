"""The autoencoder whose decoder reads: its states against a loop, what it sees, and what teaches which of its parts."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calm_core.config import AUTOENCODERS, ReadingAutoencoderConfig
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.autoencoders.reading import ReadingAutoencoder
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise

B, P, V, L, D = 3, 5, 13, 6, 8


def make(chunk_size: int = 4, context_size: int = 6, **settings: float) -> ReadingAutoencoder:
    torch.manual_seed(0)
    shape = {"chunk_size": chunk_size, "latent_size": L, "hidden_size": D, "intermediate_size": 12}
    settings["context_size"] = context_size
    return ReadingAutoencoder(ReadingAutoencoderConfig.model_validate(shape | settings), V)


def text(chunk_size: int = 4) -> Tensor:
    return torch.randint(V, (B, P, chunk_size), generator=torch.Generator().manual_seed(1))


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, L, generator=torch.Generator().manual_seed(2))


def plain_states(model: ReadingAutoencoder, latents_BPL: Tensor, chunks_BPK: Tensor) -> Tensor:
    """Token by token, of the latent and of the tokens before; those that are not there add nothing."""
    size, reads = chunks_BPK.shape[-1], model.config.context_size
    weight = model.read.weight.view(D, reads, D)
    decoder = model.decoder
    expand = decoder.expand_layer
    states = []
    for b in range(B):
        for p in range(P):
            trunk = decoder.trunk(latents_BPL[b, p])
            for k in range(size):
                own = slice(k * D, (k + 1) * D)
                h = F.linear(trunk, expand.weight[own], expand.bias[own])
                seen = chunks_BPK[b].flatten().tolist()[: p * size + k][-reads:]
                for back, token in enumerate(reversed(seen), 1):
                    h = h + weight[:, -back] @ model.embedding[token]
                for layer in decoder.decoder_layers[decoder.layers_before :]:
                    h = layer(h)
                states.append(decoder.norm(h))
    return torch.stack(states).view(B, P, size, D)


@pytest.mark.parametrize("context_size", [1, 2, 6, 16, 40])
@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_states_and_their_gradients_are_those_of_a_loop(chunk_size: int, context_size: int) -> None:
    """Of windows shorter than a chunk, and longer than the text."""
    model, chunks = make(chunk_size, context_size).double(), text(chunk_size)
    ours, plainly = (latents(B, P).double().requires_grad_() for _ in range(2))
    found = model.states(ours, model.before(chunks), chunks)
    plain = plain_states(model, plainly, chunks)
    torch.testing.assert_close(found, plain)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    for states, leaf in ((found, ours), (plain, plainly)):
        model.zero_grad()
        (weights * states).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        if leaf is ours:
            first = gradients
    torch.testing.assert_close(ours.grad, plainly.grad)
    assert first.keys() == gradients.keys() and "read.weight" in first
    for name, gradient in gradients.items():
        torch.testing.assert_close(first[name], gradient, msg=name)


@pytest.mark.parametrize("context_size", [1, 3, 16])
@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_it_decodes_one_token_after_another(chunk_size: int, context_size: int) -> None:
    """Each the likeliest by the states of the text so far, of which the tokens that a prompt gives are part."""
    model, chunks = freeze(make(chunk_size, context_size)), text(chunk_size)
    before = model.before(chunks)
    begun = torch.where(torch.rand(chunks.shape, generator=torch.Generator().manual_seed(4)) < 0.3, chunks, -1)
    for known in (None, begun):
        plain = torch.zeros_like(chunks)
        for k in range(chunk_size):
            likeliest = F.linear(model.states(latents(B, P), before, plain), model.embedding).argmax(-1)[..., k]
            plain[..., k] = likeliest if known is None else torch.where(known[..., k] < 0, likeliest, known[..., k])
        assert torch.equal(model.decode(latents(B, P), before, known), plain)
    one_more = model.decode(latents(B, P, 2), before.unsqueeze(2))
    assert torch.equal(one_more[:, :, 0], model.decode(latents(B, P, 2)[:, :, 0], before))


def test_a_token_sees_what_is_before_it_and_nothing_else() -> None:
    model, chunks = freeze(make()), text()

    def changed(p: int, k: int) -> list[tuple[int, int]]:
        other = chunks.clone()
        other[:, p, k] = (other[:, p, k] + 1) % V
        pair = [model.states(latents(B, P), model.before(one), one) for one in (chunks, other)]
        return (pair[0] != pair[1]).any(-1).any(0).nonzero().tolist()

    assert changed(1, 2) == [[1, 3], *([2, k] for k in range(4)), [3, 0]]
    assert changed(1, 0) == [[1, 1], [1, 2], [1, 3], [2, 0], [2, 1], [2, 2]]
    assert changed(P - 1, 3) == []


def _in_training(model: ReadingAutoencoder, latents_BPL: Tensor) -> Iterator[tuple[bool, Tensor, int, int]]:
    """Of each chunk: whether its latent gets noise, and its states."""
    states = model.states_in_training(latents_BPL, text(), SequenceNoise(range(B)))
    noisy_BP = SequenceNoise(range(B)).uniform(P, 1).squeeze(-1) < 0.5
    assert 0 < noisy_BP.sum() < B * P
    return ((bool(noisy_BP[b, p]), states[b, p], b, p) for b in range(B) for p in range(P))


def test_the_chunks_without_noise_alone_teach_the_encoder() -> None:
    model, given = make(), latents(B, P).requires_grad_()
    plain = model.states(given, model.before(text()), text())
    for noisy, states, b, p in _in_training(model, given):
        (gradient,) = torch.autograd.grad(states.sum(), given, retain_graph=True)
        assert bool((gradient[b, p] == 0).all()) == noisy
        gradient[b, p] = 0
        assert not gradient.any()
        assert torch.allclose(states, plain[b, p], atol=1e-6) != noisy


def test_the_others_are_shrunk_and_get_noise_of_their_own_size() -> None:
    """Up to `reading_noise` root mean squares; each latent's own, whatever else is in the batch."""
    model, given = freeze(make(reading_noise=3.0)), latents(B, P) * torch.linspace(0.1, 9, B * P).view(B, P, 1)
    noise = SequenceNoise(range(B))
    _, kept, size = (noise.uniform(P, 1) for _ in range(3))
    normal = noise.normal(P, L)
    for noisy, states, b, p in _in_training(model, given):
        z = given[b, p]
        if noisy:
            z = kept[b, p] * z + 3.0 * size[b, p] * (z @ z / L).sqrt() * normal[b, p]
        expected = model.states(z, model.before(text())[b, p], text()[b, p])
        torch.testing.assert_close(states, expected)


def test_the_states_need_the_text() -> None:
    model = freeze(make())
    for call in (model.states, model.decode, model.logits):
        with pytest.raises(ValueError, match="reads the text so far"):
            call(latents(B, P))


def test_a_latent_between_two_chunks_becomes_one_of_them() -> None:
    """The texts are 1 1 1 1, 2 2 2 2, ..., in any order; the paper's decoder, as long trained, mixes two of them."""
    shape = {"chunk_size": 4, "latent_size": 8, "hidden_size": 16, "intermediate_size": 32, "token_dropout": 0.0}
    pairs = torch.combinations(torch.arange(V))
    whole = {}
    for kind in ("mlp", "reading"):
        torch.manual_seed(0)
        model = make_autoencoder(AUTOENCODERS.parse(shape | {"kind": kind}), V)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        noise = SequenceNoise(range(16))
        for _ in range(150):
            chunks = torch.randint(V, (16, 8, 1)).expand(-1, -1, 4)
            loss = model(chunks, torch.ones_like(chunks, dtype=torch.bool), noise)
            optimizer.zero_grad()
            loss.cross_entropy.backward()
            optimizer.step()
        freeze(model)
        between = model.encode(pairs.unsqueeze(-1).expand(-1, -1, 4)).mean.mean(1)
        decoded = model.decode(between, torch.randint(V, (len(pairs), 1)).expand(-1, 16))
        whole[kind] = (decoded == decoded[:, :1]).all(-1).float().mean().item()
    assert whole["reading"] > 0.95 > whole["mlp"]
