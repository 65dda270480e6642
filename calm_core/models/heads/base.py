"""What every generative head is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from calm_core.config import HeadConfig
from calm_core.models.layers import rows_of
from calm_core.models.noise import SequenceNoise
from calm_core.models.paired_noise import normal_quantiles


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

    def rows(self, x_BP: Tensor) -> Tensor:
        """[R, ...] of [B, P - 1, ...]: those of the positions that count."""
        return rows_of(x_BP, self.counted_BP)


class Head(nn.Module, ABC):
    """A conditional sampler of latents, trained without or with a density of its own.

    Args:
        config: The head's settings.
        hidden_size: D, of the backbone.
        latent_size: L.
        noise_size: U, numbers that one sample is made from.

    Attributes:
        loss_name: Name of the loss in curves.
        fits_data: Whether `fit` is to be called with latents of the training data before training.
        noise_centre: What the numbers of `sampling_noise` are symmetric about: 0 of N(0, 1), 0.5 of uniform ones.
    """

    loss_name: str
    fits_data: ClassVar[bool] = False
    noise_centre: ClassVar[float] = 0.0

    def __init__(self, config: HeadConfig, hidden_size: int, latent_size: int, noise_size: int) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size
        self.latent_size = latent_size
        self.noise_size = noise_size

    def finish_initialization(self) -> None:  # most heads have nothing to add
        """Set what differs from the initial weights that all layers get."""

    def fit(self, latents: Tensor) -> None:  # as above
        """Take constants from latents [R, L] of the training data."""

    def target_samples(self) -> int:
        """M, samples of the posterior that `loss` needs for each position."""
        return self.config.model_samples

    @abstractmethod
    def sampling_noise(self, noise: SequenceNoise, *shape: int) -> Tensor:
        """What `sample` turns into latents, [B, *shape, U]."""

    @abstractmethod
    def sample(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        """Latents [..., N, L] of backbone states [..., D] and `sampling_noise` [..., N, U]."""

    def sample_paired(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """`sample` of noise [..., N, V] uniform in [0, 1), V >= U, that other models make theirs of, too."""
        own = uniform[..., : self.noise_size]
        return self.sample(hidden, own if self.noise_centre else normal_quantiles(own))

    @property
    def training_passes(self) -> int:
        """How many `training_pass` are in the loss of a position: N."""
        return self.config.model_samples

    def training_pass(self, hidden: Tensor, drawn: Tensor) -> Tensor:
        """What `loss` evaluates for each of its draws; its operations are counted. Arguments as of `sample`."""
        return self.sample(hidden, drawn)

    @abstractmethod
    def loss(self, hidden_BPD: Tensor, targets: Targets, noise: SequenceNoise) -> Tensor:
        """The loss of each position that counts, fp32 [R]."""
