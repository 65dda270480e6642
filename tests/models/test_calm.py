"""The language model: what each position sees, its head, its cache, and its loss."""

import pytest
import torch

from calm_core.config import CalmModelConfig, EnergyHeadConfig, MlpAutoencoderConfig
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.backbone import Branches, rotary, rotate
from calm_core.models.calm import Calm, make_targets, next_chunk_counts
from calm_core.models.energy_score import energy_loss
from calm_core.models.heads.energy import EnergyHead
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise

B, P, K, L, V, D = 2, 6, 4, 5, 13, 16
HEAD = EnergyHeadConfig(num_layers=2, noise_size=3, model_samples=4, target_samples=6)
CONFIG = CalmModelConfig(
    hidden_size=D,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    head=HEAD,
)


@pytest.fixture
def calm() -> Calm:
    torch.manual_seed(0)
    model = Calm(CONFIG, V, K, L)
    torch.nn.init.normal_(model.mlp_generator.final_layer.linears[2].weight)
    return model


@pytest.fixture
def autoencoder() -> MlpAutoencoder:
    torch.manual_seed(1)
    config = MlpAutoencoderConfig(chunk_size=K, latent_size=L, hidden_size=8, intermediate_size=8)
    model = MlpAutoencoder(config, V)
    freeze(model)
    return model


def chunks() -> torch.Tensor:
    return torch.randint(1, V, (B, P, K), generator=torch.Generator().manual_seed(2))


def test_a_position_sees_only_itself_and_what_came_before(calm: Calm) -> None:
    changed = chunks()
    changed[:, 3] = (changed[:, 3] % (V - 1)) + 1
    before, after = (calm.transformer(calm.embed(x))[0] for x in (chunks(), changed))
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 3], after[:, 3])


@pytest.mark.parametrize("pieces", [[1] * P, [4, 1, 1], [2, 3, 1]])
def test_cached_steps_equal_the_whole(calm: Calm, pieces: list[int]) -> None:
    whole, _ = calm.transformer(calm.embed(chunks()))
    past, states = None, []
    for piece in calm.embed(chunks()).split(pieces, dim=1):
        hidden, past = calm.transformer(piece, past)
        states.append(hidden)
    assert torch.allclose(torch.cat(states, 1), whole, atol=1e-5)


def test_branches_equal_recomputing_each_continuation(calm: Calm) -> None:
    """Continuing after each position with two more chunks, sharing the prefix, against one sequence at a time."""
    x = calm.embed(chunks())
    new = calm.embed(torch.randint(1, V, (B, P, 2, K), generator=torch.Generator().manual_seed(3)))  # [B, Q, J, D]
    _, prefix = calm.transformer(x)
    branches = Branches(torch.arange(P).expand(B, P), prefix)
    states = []
    for j in range(2):
        hidden, branches = calm.transformer.branch(new[:, :, j], branches)
        states.append(hidden)
    for start in range(P):
        alone, _ = calm.transformer(torch.cat([x[:, : start + 1], new[:, start]], dim=1))
        for j in range(2):
            assert torch.allclose(states[j][:, start], alone[:, start + 1 + j], atol=1e-5)


def test_rotary_embedding_depends_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator)
    products = []
    for shift in (0, 7):
        cos, sin = rotary(torch.tensor([3 + shift, 5 + shift]), 8, 10_000.0)
        products.append((rotate(q, cos[0], sin[0]) * rotate(k, cos[1], sin[1])).sum().item())
    assert products[0] == pytest.approx(products[1], abs=1e-5)


def test_the_head_equals_its_formula_written_plainly(calm: Calm) -> None:
    """x <- x + Down(SiLU(g) * up), (g, up) = Linears([LayerNorm(x), y]) with the concatenation really made."""
    head: EnergyHead = calm.mlp_generator
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, D, generator=generator)
    uniform = torch.rand(7, 4, 3, generator=generator)

    x = head.norm_noise(head.noise_embd(uniform - 0.5))
    y = head.norm_hidden(head.hidden_embd(hidden)).unsqueeze(1).expand(-1, 4, -1)
    for block in head.mlp_blocks:
        gate, up = block.linears(torch.cat([block.in_ln(x), y], dim=-1)).chunk(2, dim=-1)
        x = x + block.down_proj(torch.nn.functional.silu(gate) * up)
    assert torch.allclose(head.sample(hidden, uniform), head.final_layer(x), atol=1e-5)


def test_the_head_starts_at_zero() -> None:
    head = Calm(CONFIG, V, K, L).mlp_generator
    assert head.sample(torch.randn(3, D), torch.rand(3, 2, 3)).abs().max() == 0


def test_loss_counts_positions_before_real_chunks_only(calm: Calm, autoencoder: MlpAutoencoder) -> None:
    real = torch.ones(B, P, K, dtype=torch.bool)
    real[0, 4:] = False  # padding at the end
    real[1, 5, 2:] = False  # a partly padded chunk still counts
    padded = chunks() * real
    counted = next_chunk_counts(real)
    assert counted.tolist() == [[True, True, True, False, False], [True] * 5]

    noise = SequenceNoise([10, 11])
    targets = make_targets(autoencoder, padded, real, noise, HEAD.target_samples)
    loss = calm(padded, targets, noise)

    noise = SequenceNoise([10, 11])
    normal = noise.normal(P - 1, HEAD.target_samples, L)
    uniform = noise.uniform(P - 1, HEAD.model_samples, HEAD.noise_size)
    hidden, _ = calm.transformer(calm.embed(padded[:, :-1]))
    plain = torch.zeros(())
    for b in range(B):
        for p in range(P - 1):
            if counted[b, p]:
                posterior = autoencoder.encode(padded[b, p + 1])
                samples = calm.sample(hidden[b, p], uniform[b, p])
                deviations = normal[b, p] * posterior.std
                plain = plain + energy_loss(samples[None], posterior.mean[None], deviations[None], 1.0)[0]
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)


def test_training_the_model_leaves_the_autoencoder_frozen(calm: Calm, autoencoder: MlpAutoencoder) -> None:
    """`train()` of the language model must not reach the autoencoder: its dropout would change the targets."""
    calm.train()
    assert not autoencoder.training
    real = torch.ones(B, P, K, dtype=torch.bool)
    targets = make_targets(autoencoder, chunks(), real, SequenceNoise([0, 1]), 3)
    calm(chunks(), targets, SequenceNoise([0, 1])).backward()
    assert all(parameter.grad is None for parameter in autoencoder.parameters())
    assert all(parameter.grad is not None for parameter in calm.parameters())
