"""Losses through the frozen decoder against their formulas, written out in fp64."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from calm_core.config import AUTOENCODERS, DECODER_LOSSES, HEADS, CalmModelConfig
from calm_core.models import cross_entropy
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm, make_targets
from calm_core.models.decoder_losses.base import DecoderLoss, chosen
from calm_core.models.decoder_losses.make import make_decoder_loss
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise

R, N, K, L, V, D = 5, 3, 4, 6, 7, 16
REAL = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"kind": "cross_entropy"},
    "Brier": {"kind": "brier"},
    "joint Brier": {"kind": "brier", "joint": True},
}


def autoencoder(dtype: torch.dtype = torch.float32, kind: str = "mlp") -> Autoencoder:
    torch.manual_seed(0)
    shape = {"kind": kind, "chunk_size": K, "latent_size": L, "hidden_size": 8, "intermediate_size": 8}
    model = make_autoencoder(AUTOENCODERS.parse(shape), V)
    with torch.no_grad():
        model.embedding.mul_(3)  # distributions that are far from uniform
    return freeze(model.to(dtype))


def latents(rows: int = R, samples: int = N) -> Tensor:
    return torch.randn(rows, samples, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def chunks() -> Tensor:
    return torch.randint(V, (R, K), generator=torch.Generator().manual_seed(2)).masked_fill(~REAL, 0)


def before() -> Tensor:
    return torch.randint(V, (R, 16), generator=torch.Generator().manual_seed(5))


def make(name: str, model: Autoencoder, **settings: Any) -> DecoderLoss:
    return make_decoder_loss(DECODER_LOSSES.parse(LOSSES[name] | settings), model)


def plain_loss(name: str, p_NKV: Tensor, true_K: Tensor, real_K: Tensor) -> Tensor:
    """The loss of one position, one sample, pair and token at a time."""
    samples, real = range(len(p_NKV)), int(real_K.sum())
    if name == "cross-entropy":
        return -torch.stack([p_NKV[n, range(real), true_K[:real]].prod() for n in samples]).mean().log()
    losses = []
    for k in range(real):
        tokens = range(k + 1) if name == "joint Brier" else [k]
        hits = [math.prod(p_NKV[n, j, true_K[j]] for j in tokens) for n in samples]
        both = [
            math.prod((p_NKV[n, j] * p_NKV[m, j]).sum() for j in tokens) for n, m in itertools.permutations(samples, 2)
        ]
        losses.append(1 - 2 * sum(hits) / len(hits) + sum(both) / len(both))
    return torch.stack(losses).mean()


def plain_losses(name: str, model: Autoencoder, latents_RNL: Tensor) -> Tensor:
    read = before().unsqueeze(1), chunks().unsqueeze(1)
    p_RNKV = model.double().logits(latents_RNL, *read).softmax(-1)
    return torch.stack([plain_loss(name, *one) for one in zip(p_RNKV, chunks(), REAL, strict=True)])


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_formula(name: str, kind: str) -> None:
    """Padding counts nowhere, and the decoder gets no gradient."""
    model, weights = autoencoder(kind=kind), torch.linspace(0.5, 2, R)
    ours = latents().float().requires_grad_()
    found = make(name, model)(ours, chunks(), REAL, before())
    (weights * found).sum().backward()
    assert all(p.grad is None for p in model.parameters())

    plainly = latents().requires_grad_()
    plain = plain_losses(name, model, plainly)
    (weights * plain).sum().backward()
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), plain, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad.double(), plainly.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("name", LOSSES)
def test_in_bf16_they_are_off_by_its_rounding(name: str, how: str) -> None:
    """bf16 has three digits; the sums over tokens and samples are fp32."""
    model = autoencoder(torch.bfloat16 if how == "weights" else torch.float32)
    ours = latents().to(torch.bfloat16 if how == "weights" else torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = make(name, model)(ours, chunks(), REAL, before())
    found.sum().backward()
    plainly = ours.detach().double().requires_grad_()
    plain = plain_losses(name, model, plainly)
    plain.sum().backward()
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), plain, rtol=0.03, atol=0.03)
    assert torch.cosine_similarity(ours.grad.double().flatten(), plainly.grad.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("positions", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_logits_exist_for_a_block_of_positions_only(name: str, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make(name, autoencoder())
    whole, parts = latents().float().requires_grad_(), latents().float().requires_grad_()
    loss(whole, chunks(), REAL, before()).sum().backward()
    of_logits, seen = loss.of_logits, []
    monkeypatch.setattr(loss, "of_logits", lambda logits, *rest: seen.append(len(logits)) or of_logits(logits, *rest))
    monkeypatch.setattr(cross_entropy, "_BLOCK_ELEMENTS", positions * N * K * V)
    loss(parts, chunks(), REAL, before()).sum().backward()
    assert max(seen) == positions
    assert sum(seen) == R
    assert torch.allclose(parts.grad, whole.grad, rtol=1e-5, atol=1e-7)


def test_no_position_has_no_loss() -> None:
    none = torch.zeros(0, N, L, requires_grad=True)
    make("cross-entropy", autoencoder())(none, torch.zeros(0, K).long(), REAL[:0], before()[:0]).sum().backward()
    assert none.grad.shape == (0, N, L)


def mean_over_draws(name: str, model: Autoencoder, number: int) -> Tensor:
    """The mean loss of `number` independent draws from three equally likely latents: over all of them, so exactly."""
    three = latents(1, 3)[0].float()
    draws = torch.stack([three[list(places)] for places in itertools.product(range(3), repeat=number)])
    true, real = chunks()[:1].expand(len(draws), K), REAL[:1].expand(len(draws), K)
    return make(name, model)(draws, true, real, before()[:1].expand(len(draws), -1)).double().mean()


@pytest.mark.parametrize("name", ["Brier", "joint Brier"])
@pytest.mark.parametrize("number", [2, 3])
def test_the_expected_brier_loss_is_the_brier_score_of_the_models_distribution(name: str, number: int) -> None:
    """sum_x (P(x) - 1{x = y})^2, with P the mean over all latents, and x one token or the first n of the chunk."""
    model = autoencoder()
    found = mean_over_draws(name, model, number)
    p_NKV, true = model.double().logits(latents(1, 3)[0]).softmax(-1), chunks()[0].tolist()
    scores = []
    for k in range(K):
        tokens = range(k + 1) if name == "joint Brier" else [k]
        score = 0.0
        for x in itertools.product(range(V), repeat=len(tokens)):
            probability = (
                sum(math.prod(p[j][x_j] for j, x_j in zip(tokens, x, strict=True)) for p in p_NKV.tolist()) / 3
            )
            score += (probability - (list(x) == [true[j] for j in tokens])) ** 2
        scores.append(score)
    assert found.item() == pytest.approx(sum(scores) / K, rel=1e-5)


def test_the_expected_cross_entropy_falls_towards_the_negative_log_likelihood() -> None:
    model = autoencoder()
    one, two, six = (mean_over_draws("cross-entropy", model, number).item() for number in (1, 2, 6))
    p_NKV, true = model.double().logits(latents(1, 3)[0]).softmax(-1), chunks()[0]
    exact = -p_NKV[:, range(K), true].prod(-1).mean().log().item()
    assert one > two > six > exact
    assert six - exact < (one - exact) / 3


@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
@pytest.mark.parametrize("head", ["energy", "flow", "diffusion"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_reaches_the_whole_model_and_its_head(name: str, head: str, kind: str) -> None:
    """As of each position's own samples, decoded one at a time; the head's loss stays what it is."""
    model = autoencoder(kind=kind)
    settings: dict[str, Any] = {"kind": head, "num_layers": 1, "model_samples": N}
    settings |= {"target_samples": 2} if head == "energy" else {"sampling_steps": 3}
    shape = {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(3)
    calm = Calm(CalmModelConfig(head=HEADS.parse(settings), **shape), V, K, L)
    torch.nn.init.normal_(calm.mlp_generator.final_layer.linears[2].weight)
    tokens = torch.randint(1, V, (2, 5, K), generator=torch.Generator().manual_seed(4))
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[0, 3, 2:], real[0, 4:] = False, False
    text = torch.nn.functional.pad(tokens.flatten(1), (model.reads, 0), value=-1)
    loss = make(name, model)

    def run(beside: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        calm.zero_grad()
        noise = SequenceNoise([0, 1])
        targets = make_targets(model, tokens, real, noise, calm.mlp_generator.target_samples())
        own, decoded = calm(tokens, targets, noise, beside)
        decoded.backward()
        return (
            own.detach(),
            decoded.detach(),
            torch.cat([p.grad.flatten() for p in calm.parameters() if p.grad is not None]),
        )

    def plainly(head: Any, hidden_BPD: Tensor, noise: SequenceNoise) -> Tensor:
        noise.uniform(1)
        drawn = head.sampling_noise(noise, 4, N)
        total = torch.zeros(())
        for b, p in real[:, 1:].any(-1).nonzero().tolist():
            z = torch.cat([head.sample(hidden_BPD[b, p], drawn[b, p, n : n + 1]) for n in range(N)])
            before = text[b, (p + 1) * K :][: model.reads].expand(N, -1)
            p_NKV = model.logits(z, before, tokens[b, p + 1].expand(N, -1)).softmax(-1)
            total = total + plain_loss(name, p_NKV, tokens[b, p + 1], real[b, p + 1])
        return total

    def ours(head: Any, hidden_BPD: Tensor, noise: SequenceNoise) -> Tensor:
        before = model.before(tokens)[:, 1:]
        return loss.of_head(head, hidden_BPD, noise, chunks_BPK=tokens[:, 1:], real_BPK=real[:, 1:], before_BPW=before)

    found, wanted = run(ours), run(plainly)
    assert found[0] == wanted[0]
    assert torch.allclose(found[1], wanted[1], rtol=1e-5)
    assert torch.allclose(found[2], wanted[2], rtol=1e-3, atol=1e-5 * wanted[2].abs().max())
    assert all(p.grad.abs().sum() > 0 for p in calm.mlp_generator.parameters() if p.grad is not None)
    assert calm.transformer.embed_tokens.weight.grad.abs().sum() > 0


def test_a_share_of_the_positions_is_drawn_evenly_by_each_sequences_own_noise() -> None:
    counted = torch.rand(6, 40, generator=torch.Generator().manual_seed(5)) < 0.7
    drawn = torch.stack([chosen(counted, 0.3, SequenceNoise(range(s, s + 6))) for s in range(0, 3000, 6)])
    assert not drawn[:, ~counted].any()
    assert ((drawn.sum(-1) - 0.3 * counted.sum(-1)).abs() < 1).all()
    # 500 draws of a probability of 0.3: five standard deviations.
    assert (drawn.double().mean(0)[counted] - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 500)
    noise = SequenceNoise(range(6))
    alone = torch.cat([chosen(counted[row : row + 1], 0.3, SequenceNoise([row])) for row in range(6)])
    assert torch.equal(alone, chosen(counted, 0.3, noise))
    assert torch.equal(chosen(counted, 1.0, noise), counted)


def test_the_loss_of_a_share_of_the_positions_estimates_that_of_all() -> None:
    model, tokens = autoencoder(), torch.randint(1, V, (1, 20, K), generator=torch.Generator().manual_seed(6))
    hidden, real = torch.zeros(1, 20, D), torch.ones(1, 20, K, dtype=torch.bool)
    torch.manual_seed(7)
    head = Calm(
        CalmModelConfig(hidden_size=D, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2), V, K, L
    ).mlp_generator  # whose samples are all zero before it is trained, so positions alone decide

    def mean(share: float, draws: int) -> float:
        loss = make("cross-entropy", model, positions=share, samples=1)
        with torch.no_grad():
            found = [
                loss.of_head(
                    head, hidden, SequenceNoise([s]), chunks_BPK=tokens, real_BPK=real, before_BPW=model.before(tokens)
                )
                for s in range(draws)
            ]
        return torch.stack(found).mean().item()

    # Five standard errors of 100 draws, each of 5 of 20 positions whose losses differ by about half their mean.
    assert mean(0.25, 100) == pytest.approx(mean(1.0, 1), rel=5 * 0.5 / math.sqrt(5 * 100))
