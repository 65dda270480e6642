"""A head that is a mixture of normal distributions; its form and parameter names are ours."""

import itertools
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
        chosen = torch.searchsorted(edges, place.contiguous()).clamp_max(self.config.components - 1)
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
        drawn_RNU = targets.rows(self.sampling_noise(noise, hidden_BPD.shape[1], self.config.model_samples))
        mean_RL, deviations_RML = targets.mean_RL / self.latent_scale, targets.deviations_RML / self.latent_scale
        mixture = self.mixture(targets.rows(hidden_BPD))
        with torch.autocast(hidden_BPD.device.type, enabled=False):
            return _loss(mixture, drawn_RNU, mean_RL.float(), deviations_RML.float())


def _loss(mixture: Mixture, drawn_RNU: Tensor, mean_RL: Tensor, deviations_RML: Tensor) -> Tensor:
    """The loss [R] of targets in units of `latent_scale`."""
    centred = mixture._replace(means=mixture.means - mean_RL.unsqueeze(1))  # no large inner products cancel then
    return _energy_score(centred, drawn_RNU[..., :-1], deviations_RML) / math.sqrt(mean_RL.shape[1])


def _energy_score(mixture: Mixture, u_RNL: Tensor, z_RML: Tensor) -> Tensor:
    """[R], by the formula of `MixtureHead`.

    All distances come from inner products of m, u and z, as |a - b|^2 = |a|^2 + |b|^2 - 2 a.b with

        x_nc . x_kd = m_c . m_d + s_d m_c . u_k + s_c m_d . u_n + s_c s_d u_n . u_k,

    so that no x, [R, N, C, L], is ever made.
    """
    means_RCL, std_RC, weights_RC = mixture.means, mixture.std, mixture.log_weights.exp()
    mm_RCC, mu_RCN, mz_RCM = (means_RCL @ other.transpose(1, 2) for other in (means_RCL, u_RNL, z_RML))
    uu_RNN, uz_RNM = (u_RNL @ other.transpose(1, 2) for other in (u_RNL, z_RML))
    uu_R1N = uu_RNN.diagonal(dim1=1, dim2=2).unsqueeze(1)
    squares_RCN = mm_RCC.diagonal(dim1=1, dim2=2).unsqueeze(2) + 2 * std_RC.unsqueeze(2) * mu_RCN
    squares_RCN = squares_RCN + std_RC.square().unsqueeze(2) * uu_R1N

    inner_RCNM = mz_RCM.unsqueeze(2) + std_RC[:, :, None, None] * uz_RNM.unsqueeze(1)
    to_z_RCNM = _root(squares_RCN.unsqueeze(3) + torch.linalg.vecdot(z_RML, z_RML)[:, None, None] - 2 * inner_RCNM)
    score_R = 2 * (weights_RC * to_z_RCNM.mean((2, 3))).sum(1)

    pairs = list(itertools.combinations(range(u_RNL.shape[1]), 2))  # n < k, Q of them: each unordered pair once
    n, k = ([pair[side] for pair in pairs] for side in (0, 1))
    of_c, of_d = std_RC[:, None, :, None], std_RC[:, None, None]
    inner_RQCC = of_d * _picked(mu_RCN, k).unsqueeze(3) + of_c * _picked(mu_RCN, n).unsqueeze(2)
    inner_RQCC = inner_RQCC + of_c * of_d * uu_RNN[:, n, k, None, None] + mm_RCC.unsqueeze(1)
    squares_RQCC = _picked(squares_RCN, n).unsqueeze(3) + _picked(squares_RCN, k).unsqueeze(2) - 2 * inner_RQCC
    return score_R - torch.einsum("rc,rcd,rd->r", weights_RC, _root(squares_RQCC).mean(1), weights_RC)


def _picked(of_draws_RCN: Tensor, draws: list[int]) -> Tensor:
    """[R, Q, C]; not by one index, whose gradient adds up in a varying order."""
    return torch.stack([of_draws_RCN[..., draw] for draw in draws], dim=1)


def _root(squares: Tensor) -> Tensor:
    return squares.clamp_min(_SMALLEST_SQUARE).sqrt()
