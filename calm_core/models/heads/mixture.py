"""A head that is a mixture of normal distributions; its form and parameter names are ours."""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from calm_core.config import MixtureHeadConfig
from calm_core.models.heads.base import Head, Targets
from calm_core.models.heads.network import LAYER_NORM_EPS
from calm_core.models.noise import SequenceNoise

_SMALLEST_SQUARE = 1e-8  # of a distance, below which it counts as this: a root has an infinite slope at zero
_MIN_LOG_STD, _MAX_LOG_STD = -6.0, 2.0  # keeps exp() finite in any precision
_SPREAD = 0.3  # of the first means; components that begin as one would stay one


class Mixture(NamedTuple):
    """Distributions of latents in units of `latent_scale`, fp32.

    Attributes:
        log_weights: [..., C].
        means: [..., C, L].
        std: Of each number around its mean, [..., C].
    """

    log_weights: Tensor
    means: Tensor
    std: Tensor


class MixtureHead(Head):
    """scale * (m_c + s_c u) with u ~ N(0, 1), and c drawn by weights w_c: all of them functions of the hidden state.

    Trained by the energy score, over scale * sqrt(L), of which only u is sampled: c is summed over (C components),

        2/(N M) sum_nm sum_c w_c ||x_nc - z_m|| - 1/(N (N-1)) sum_{n != k} sum_cd w_c w_d ||x_nc - x_kd||,

    x_nc = m_c + s_c u_n. All components and weights get a gradient from each position, where a sampled head gets one
    through its N samples alone; and a choice between chunks that differ is a choice of c, not a jump that a network
    has to make of smooth noise. Mixtures for latents are those of GIVT (Tschannen et al. 2023, arXiv 2312.02116),
    which trains them by likelihood.
    """

    loss_name = "mixture_loss"
    fits_data = True

    config: MixtureHeadConfig
    latent_scale: Tensor

    def __init__(self, config: MixtureHeadConfig, hidden_size: int, latent_size: int) -> None:
        super().__init__(config, hidden_size, latent_size, latent_size + 1)
        layers: list[nn.Module] = [nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)]
        for _ in range(config.num_layers):
            layers += [nn.Linear(hidden_size, hidden_size), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.components = nn.Linear(hidden_size, config.components * (latent_size + 2))
        self.register_buffer("latent_scale", torch.ones(()))

    def finish_initialization(self) -> None:
        """Components of equal weight and unit deviation, around means of their own that hardly depend on the state."""
        means = self.config.components * self.latent_size
        with torch.no_grad():
            self.components.weight[:means] *= 0.1
            self.components.weight[means:] = 0
            self.components.bias[:means].normal_(std=_SPREAD)

    def fit(self, latents: Tensor) -> None:
        """Set the root mean square of the data, which is the unit of the components."""
        self.latent_scale.copy_(latents.float().square().mean().sqrt())

    def target_samples(self) -> int:
        return self.config.target_samples

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """N(0, 1): L numbers of u, and one whose place in the distribution chooses c."""
        return noise.normal(*shape, self.noise_size)

    def mixture(self, hidden: Tensor) -> Mixture:
        """Of backbone states [..., D]."""
        count = self.config.components
        parts = cast(Tensor, self.components(self.layers(hidden))).float()
        means, logits, log_std = parts.split([count * self.latent_size, count, count], dim=-1)
        std = log_std.clamp(_MIN_LOG_STD, _MAX_LOG_STD).exp()
        return Mixture(logits.log_softmax(-1), means.unflatten(-1, (count, -1)), std)

    def sample(self, hidden: Tensor, drawn: Tensor, temperature: float = 1.0) -> Tensor:
        """As of every head; the weights are raised to 1 / temperature, and u is multiplied by it."""
        log_weights, means, std = self.mixture(hidden)
        edges = (log_weights / temperature).softmax(-1).cumsum(-1)
        place = torch.special.ndtr(drawn[..., -1].float()) * edges[..., -1:]
        chosen = torch.searchsorted(edges.contiguous(), place.contiguous()).clamp_max(self.config.components - 1)
        mean = means.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, self.latent_size))
        noise = std.gather(-1, chosen).unsqueeze(-1) * drawn[..., :-1]
        return (mean + temperature * noise) * self.latent_scale

    @property
    def training_passes(self) -> int:
        """One: the components are the same for all draws."""
        return 1

    def training_pass(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        mean = drawn.new_zeros(len(hidden), self.latent_size)
        return _loss(self.mixture(hidden), drawn.expand(-1, self.config.model_samples, -1), mean, mean.unsqueeze(1))

    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        counted = targets.counted_BP
        drawn_RNU = self.sampling_noise(noise, hidden_BPD.shape[1], self.config.model_samples)[counted]
        mean_RL, deviations_RML = targets.mean_RL / self.latent_scale, targets.deviations_RML / self.latent_scale
        mixture = self.mixture(hidden_BPD[counted])
        with torch.autocast(hidden_BPD.device.type, enabled=False):
            return _loss(mixture, drawn_RNU, mean_RL.float(), deviations_RML.float())


def _loss(mixture: Mixture, drawn_RNU: Tensor, mean_RL: Tensor, deviations_RML: Tensor) -> Tensor:
    """The loss [R] of targets in units of `latent_scale`."""
    x_RNCL = (mixture.means - mean_RL.unsqueeze(1)).unsqueeze(1)
    x_RNCL = x_RNCL + mixture.std[:, None, :, None] * drawn_RNU[:, :, None, :-1]
    return _energy_score(mixture.log_weights.exp(), x_RNCL, deviations_RML) / math.sqrt(mean_RL.shape[1])


def _energy_score(weights_RC: Tensor, x_RNCL: Tensor, z_RML: Tensor) -> Tensor:
    """[R], by the formula of `MixtureHead`; distances come from inner products, so both should lie about zero."""
    number = x_RNCL.shape[1]
    squares_RNC = torch.linalg.vecdot(x_RNCL, x_RNCL)
    inner_RNCM = (x_RNCL.flatten(1, 2) @ z_RML.transpose(1, 2)).unflatten(1, squares_RNC.shape[1:])
    to_z_RNCM = _root(squares_RNC.unsqueeze(3) + torch.linalg.vecdot(z_RML, z_RML)[:, None, None] - 2 * inner_RNCM)
    score_R = 2 * (weights_RC * to_z_RNCM.mean((1, 3))).sum(1)
    # Draws n and n + k, over all k: each unordered pair comes once, hence the 2.
    for k in range(1, number):
        inner_RNCC = x_RNCL[:, k:] @ x_RNCL[:, :-k].transpose(2, 3)
        between_RNCC = _root(squares_RNC[:, k:].unsqueeze(3) + squares_RNC[:, :-k].unsqueeze(2) - 2 * inner_RNCC)
        weighted_R = torch.einsum("rc,rcd,rd->r", weights_RC, between_RNCC.sum(1), weights_RC)
        score_R = score_R - 2 / (number * (number - 1)) * weighted_R
    return score_R


def _root(squares: Tensor) -> Tensor:
    return squares.clamp_min(_SMALLEST_SQUARE).sqrt()
