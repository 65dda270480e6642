"""The paper's head: an implicit model, trained by the energy score (arXiv 2510.27688)."""

from torch import Tensor

from calm_core.config import EnergyHeadConfig
from calm_core.models.energy_score import energy_loss
from calm_core.models.heads.base import Targets
from calm_core.models.heads.network import NetworkHead
from calm_core.models.noise import SequenceNoise


class EnergyHead(NetworkHead):
    """An implicit model: uniform noise in, one latent sample out, trained by the energy score."""

    loss_name = "energy_loss"
    noise_centre = 0.5

    config: EnergyHeadConfig

    def __init__(self, config: EnergyHeadConfig, hidden_size: int, latent_size: int) -> None:
        super().__init__(config, hidden_size, latent_size, config.noise_size)

    def target_samples(self) -> int:
        return self.config.target_samples

    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return noise.uniform(*shape, self.noise_size)

    def sample(self, hidden: Tensor, drawn: Tensor, branch: float = 1.0) -> Tensor:
        """As of every head; `branch` scales the noise after its norm, before which its size tells nothing."""
        return self.network((drawn - self.noise_centre).to(hidden.dtype), self.condition(hidden), branch)

    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        drawn_RNU = targets.rows(self.sampling_noise(noise, hidden_BPD.shape[1], self.config.model_samples))
        samples_RNL = self.sample(targets.rows(hidden_BPD), drawn_RNU)
        return energy_loss(samples_RNL, targets.mean_RL, targets.deviations_RML, self.config.alpha)
