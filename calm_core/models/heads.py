"""Generative heads: noise and a hidden state to a sample of the next chunk's latent (arXiv 2510.27688).

All share one network of blocks and one interface (`sampling_noise`, `sample`, `loss`). Parameter names are those of the
public checkpoints' `mlp_generator`; those of the time embedding are ours.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_core.config import CalmModelConfig
from calm_core.models.energy_score import energy_loss
from calm_core.noise import SequenceNoise

_LAYER_NORM_EPS = 1e-6


class HeadBlock(nn.Module):
    """x + down(SiLU(gate) * up), with gate and up from an MLP of [LayerNorm(x), y]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(hidden_size, eps=_LAYER_NORM_EPS)
        self.linears = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, 2 * hidden_size),
        )
        self.down_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [..., N, D], y [..., 1 or N, D] -> [..., N, D]; y's half of the first layer is computed once a position."""
        first = cast(nn.Linear, self.linears[0])
        weight_x, weight_y = first.weight.chunk(2, dim=1)
        h = self.linears[1:](F.linear(self.in_ln(x), weight_x) + F.linear(y, weight_y, first.bias))
        gate, up = h.chunk(2, dim=-1)
        out: Tensor = x + self.down_proj(F.silu(gate) * up)
        return out


class FinalLayer(nn.Module):
    """LayerNorm, Linear, SiLU, and a Linear to the latent that starts at zero."""

    def __init__(self, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(hidden_size, eps=_LAYER_NORM_EPS)
        self.linears = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, latent_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linears(self.in_ln(x))
        return out

    def start_at_zero(self) -> None:
        last = cast(nn.Linear, self.linears[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


@dataclass(frozen=True)
class Targets:
    """What the positions that count must predict, computed by the frozen autoencoder.

    Attributes:
        counted_BP: bool [B, P - 1], positions whose next chunk holds a real token; R of them.
        mean_RL: Mean of the next chunk's posterior.
        deviations_RML: M samples of that posterior, less the mean.
    """

    counted_BP: Tensor
    mean_RL: Tensor
    deviations_RML: Tensor


class Head(nn.Module, ABC):
    """A conditional sampler of latents, trained without or with a density of its own."""

    loss_name: str

    def __init__(self, config: CalmModelConfig, latent_size: int, noise_size: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.latent_size = latent_size
        self.noise_embd = nn.Linear(noise_size, hidden)
        self.hidden_embd = nn.Linear(hidden, hidden)
        self.norm_hidden = nn.LayerNorm(hidden, eps=_LAYER_NORM_EPS)
        self.norm_noise = nn.LayerNorm(hidden, eps=_LAYER_NORM_EPS)
        self.mlp_blocks = nn.ModuleList(HeadBlock(hidden) for _ in range(config.num_head_layers))
        self.final_layer = FinalLayer(hidden, latent_size)

    def network(self, x: Tensor, y: Tensor) -> Tensor:
        """[..., N, L] of what is transformed [..., N, noise_size] and its condition [..., 1 or N, D]."""
        x = self.norm_noise(self.noise_embd(x))
        for block in self.mlp_blocks:
            x = block(x, y)
        out: Tensor = self.final_layer(x)
        return out

    def condition(self, hidden: Tensor) -> Tensor:
        """[..., 1, D] of backbone states [..., D]."""
        out: Tensor = self.norm_hidden(self.hidden_embd(hidden)).unsqueeze(-2)
        return out

    def target_samples(self) -> int:
        """Samples of the posterior that `loss` needs for each position."""
        return self.config.model_samples

    @abstractmethod
    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """What `sample` turns into latents, [B, *shape, U]."""

    @abstractmethod
    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        """Latents [..., N, L] of backbone states [..., D] and `sampling_noise` [..., N, U]."""

    @abstractmethod
    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        """The loss of each position that counts, fp32 [R]."""


class EnergyHead(Head):
    """An implicit model: uniform noise in, one latent sample out, trained by the energy score."""

    loss_name = "energy_loss"

    def __init__(self, config: CalmModelConfig, latent_size: int) -> None:
        super().__init__(config, latent_size, config.noise_size)

    def target_samples(self) -> int:
        return self.config.target_samples

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return noise.uniform(*shape, self.config.noise_size)

    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        return self.network((drawn - 0.5).to(hidden.dtype), self.condition(hidden))

    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        drawn_BPNU = self.sampling_noise(noise, hidden_BPD.shape[1], self.config.model_samples)
        samples_RNL = self.sample(hidden_BPD[targets.counted_BP], drawn_BPNU[targets.counted_BP])
        return energy_loss(samples_RNL, targets.mean_RL, targets.deviations_RML, self.config.energy_alpha)


class DenoisingHead(Head):
    """A head that learns to undo noise, and samples in several evaluations of its network.

    The loss of a position is the mean squared error over `model_samples` draws of (latent, time, noise).
    """

    latent_scale: Tensor

    def __init__(self, config: CalmModelConfig, latent_size: int) -> None:
        super().__init__(config, latent_size, latent_size)
        self.time_embd = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.SiLU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.register_buffer("latent_scale", torch.ones(()))

    def fit_scale(self, latents: Tensor) -> None:
        """Set the root mean square of the data, which the network sees scaled to one."""
        self.latent_scale.copy_(latents.float().square().mean().sqrt())

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """N(0, 1), the latent at the noisy end."""
        return noise.normal(*shape, self.latent_size)

    def predict(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Network output, fp32 [..., N, L], at noisy latents [..., N, L] and times in [0, 1] [..., N or 1]."""
        dtype = condition.dtype
        time_embedding = self.time_embd(sinusoids(time, self.config.hidden_size).to(dtype))
        return self.network(x.to(dtype), condition + time_embedding).float()

    @abstractmethod
    def draw_time(self, uniform: Tensor) -> Tensor:
        """Times at which the network is trained, from numbers uniform in [0, 1)."""

    @abstractmethod
    def noisy(self, latent: Tensor, normal: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latent at `time` [..., 1], and what the network must predict there."""

    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        shape, counted = (hidden_BPD.shape[1], self.config.model_samples), targets.counted_BP
        time_RN = self.draw_time(noise.uniform(*shape)[counted])
        normal_RNL = self.sampling_noise(noise, *shape)[counted]
        latent_RNL = (targets.mean_RL.unsqueeze(1) + targets.deviations_RML).float() / self.latent_scale
        x_RNL, wanted_RNL = self.noisy(latent_RNL, normal_RNL, time_RN.unsqueeze(-1))
        predicted_RNL = self.predict(x_RNL, time_RN, self.condition(hidden_BPD[counted]))
        return (predicted_RNL - wanted_RNL).square().mean((1, 2))


class DiffusionHead(DenoisingHead):
    """Noise prediction (DDPM, Ho et al. 2020) with the cosine schedule (Nichol and Dhariwal 2021).

    Sampled by DDIM (Song et al. 2021, eta 0): given the first noise no more is drawn, so one sample needs L numbers.
    """

    loss_name = "diffusion_loss"

    def signal(self, time: Tensor) -> Tensor:
        """Share of the variance that is data at `time`, from almost 1 at 0 to almost 0 at 1."""
        offset = 0.008
        return (torch.cos((time + offset) / (1 + offset) * math.pi / 2).square()).clamp(1e-4, 1 - 1e-4)

    def draw_time(self, uniform: Tensor) -> Tensor:
        steps = self.config.diffusion_steps
        return (uniform * steps).floor() / (steps - 1)

    def noisy(self, latent: Tensor, normal: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        signal = self.signal(time)
        return signal.sqrt() * latent + (1 - signal).sqrt() * normal, normal

    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        levels, steps = self.config.diffusion_steps, self.config.sampling_steps
        grid = torch.linspace(levels - 1, 0, steps, dtype=torch.float64).round().float().to(hidden.device)
        times = grid / (levels - 1)
        condition, x = self.condition(hidden), drawn
        for i in range(steps):
            signal = self.signal(times[i])
            normal = self.predict(x, times[i].expand(1), condition)
            latent = (x - (1 - signal).sqrt() * normal) / signal.sqrt()
            if i + 1 == steps:
                return latent * self.latent_scale
            next_signal = self.signal(times[i + 1])
            x = next_signal.sqrt() * latent + (1 - next_signal).sqrt() * normal
        raise AssertionError("sampling_steps is at least 1")


class FlowHead(DenoisingHead):
    """Flow matching on the straight path x_t = (1 - t) noise + t latent (Lipman et al. 2023), sampled by midpoints."""

    loss_name = "flow_loss"

    def draw_time(self, uniform: Tensor) -> Tensor:
        return uniform

    def noisy(self, latent: Tensor, normal: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - time) * normal + time * latent, latent - normal

    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        """Midpoint steps of two evaluations each; an odd `sampling_steps` begins with one Euler step."""
        evaluations, condition, x = self.config.sampling_steps, self.condition(hidden), drawn
        steps = -(-evaluations // 2)
        size = 1 / steps
        for i in range(steps):
            start = torch.full((1,), i * size, device=drawn.device)
            velocity = self.predict(x, start, condition)
            if i > 0 or evaluations % 2 == 0:
                velocity = self.predict(x + velocity * size / 2, start + size / 2, condition)
            x = x + velocity * size
        return x * self.latent_scale


def sinusoids(time: Tensor, size: int) -> Tensor:
    """Features [..., size] of times in [0, 1]: cosines and sines of 1 to 10,000 radians."""
    half = size // 2
    angles = time.float().unsqueeze(-1) * torch.logspace(0, 4, half, device=time.device)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, size - 2 * half))


_HEADS: dict[str, type[EnergyHead] | type[DiffusionHead] | type[FlowHead]] = {
    "energy": EnergyHead,
    "diffusion": DiffusionHead,
    "flow": FlowHead,
}


def make_head(config: CalmModelConfig, latent_size: int) -> Head:
    """The head that the config names, with new weights."""
    return _HEADS[config.head](config, latent_size)
