"""The models that are measured, and the same mathematics written plainly."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from calm_core.config import CalmModelConfig, EnergyHeadConfig, MlpAutoencoderConfig, TransformerModelConfig
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.heads.network import HeadBlock, NetworkHead
from calm_core.models.layers import freeze
from calm_core.models.transformer import Transformer

SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
LARGE = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8, "num_attention_heads": 16}
V, L, K, N, M = 8192, 128, 4, 8, 100


def models(
    shape: dict[str, int], head_layers: int, vocab_size: int = V, chunk_size: int = K
) -> tuple[Calm, MlpAutoencoder]:
    """CALM and its frozen autoencoder, with random weights and samples that differ."""
    torch.manual_seed(0)
    autoencoder = MlpAutoencoder(
        MlpAutoencoderConfig(chunk_size=chunk_size, latent_size=L, hidden_size=256, intermediate_size=688), vocab_size
    )
    head = EnergyHeadConfig(num_layers=head_layers, model_samples=N, target_samples=M)
    config = CalmModelConfig(head=head, **shape)
    calm = Calm(config, vocab_size, chunk_size, L)
    freeze(autoencoder)
    spread_samples(calm, 0.2)
    return calm, autoencoder


def spread_samples(calm: Calm, deviation: float) -> None:
    """How much two samples of the head differ, from all alike (small) to all different."""
    last = cast(nn.Linear, cast(NetworkHead, calm.mlp_generator).final_layer.linears[2])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        last.bias.copy_(torch.randn(L, generator=generator))
        last.weight.copy_(deviation * last.in_features**-0.5 * torch.randn(last.weight.shape, generator=generator))


def baseline(shape: dict[str, int], vocab_size: int = V) -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerModelConfig(**shape), vocab_size)


def plain_energy_loss(samples_RNL: Tensor, mean_RL: Tensor, deviations_RML: Tensor, alpha: float) -> Tensor:
    """The formula of the energy loss as it is written, with all differences."""
    targets_RML = mean_RL.unsqueeze(1) + deviations_RML
    to_target = (samples_RNL.unsqueeze(2) - targets_RML.unsqueeze(1)).norm(dim=-1).pow(alpha)
    between = (samples_RNL.unsqueeze(2) - samples_RNL.unsqueeze(1) + 1e-12).norm(dim=-1).pow(alpha)
    n = samples_RNL.shape[1]
    loss_R: Tensor = 2 * to_target.mean((1, 2)) - between.sum((1, 2)) / (n * (n - 1))
    return loss_R


def _plain_block(block: HeadBlock, x: Tensor, y: Tensor) -> Tensor:
    gate, up = block.linears(torch.cat([block.in_ln(x), y], dim=-1)).chunk(2, dim=-1)
    return cast(Tensor, x + block.down_proj(torch.nn.functional.silu(gate) * up))


def _plain_network(head: NetworkHead, x: Tensor, y: Tensor, branch: float = 1.0) -> Tensor:
    """Hidden states for each sample, as if the samples were a batch."""
    x = branch * head.norm_noise(head.noise_embd(x))
    for block in head.mlp_blocks:
        x = block(x, y.expand(*x.shape[:-1], -1))
    return cast(Tensor, head.final_layer(x))


@contextmanager
def written_plainly() -> Iterator[None]:
    """CALM with the plain energy loss and a head that treats its input as one vector."""
    with (
        patch("calm_core.models.heads.energy.energy_loss", plain_energy_loss),
        patch.object(HeadBlock, "forward", _plain_block),
        patch.object(NetworkHead, "network", _plain_network),
    ):
        yield
