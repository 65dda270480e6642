"""Settings of CALM's generative heads."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from calm_core.config.base import Layers, Width
from calm_core.config.kinds import Kind, Kinds


class HeadConfig(Kind):
    """What every generative head has.

    Attributes:
        differentiable: Whether all of the head's weights get a gradient through its samples.
    """

    differentiable: ClassVar[bool] = True

    num_layers: Layers = Field(4, description="blocks of the head; the paper uses a quarter of the layers")
    model_samples: int = Field(
        8,
        ge=2,
        le=4096,
        description="N: samples per position in the energy loss, draws of noise in the other heads' losses",
    )


class EnergyHeadConfig(HeadConfig):
    """One sample from one evaluation, trained by the energy score (arXiv 2510.27688)."""

    kind: Literal["energy"] = "energy"
    noise_size: Width = Field(64, description="uniform noise that is turned into a sample")
    target_samples: int = Field(100, ge=1, le=2**16, description="M, samples of the autoencoder's posterior")
    alpha: float = Field(1.0, gt=0, lt=2, description="exponent of the energy score, strictly proper in (0, 2)")


class DiffusionHeadConfig(HeadConfig):
    """Noise prediction, sampled in many steps."""

    kind: Literal["diffusion"] = "diffusion"
    diffusion_steps: int = Field(1000, ge=2, le=10**6, description="noise levels that are trained on")
    sampling_steps: int = Field(100, ge=1, le=10**6, description="network evaluations of one sample")

    @model_validator(mode="after")
    def _levels_for_each_step(self) -> Self:
        if self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps ({self.sampling_steps}) must not exceed diffusion_steps ({self.diffusion_steps})"
            )
        return self


class FlowHeadConfig(HeadConfig):
    """Flow matching on the straight path, sampled in few steps."""

    kind: Literal["flow"] = "flow"
    model_samples: int = Field(2, ge=1, le=4096, description="draws of time and noise for each position in the loss")
    sampling_steps: int = Field(4, ge=1, le=10**6, description="network evaluations of one sample")
    linear_path: bool = Field(
        False, description="add a linear map of the condition to the velocity, which is learned sooner"
    )


class ResidualHeadConfig(HeadConfig):
    """One sample from one evaluation: a mean of the hidden state, and noise that is corrected; the energy score."""

    kind: Literal["residual"] = "residual"
    model_samples: int = Field(2, ge=2, le=4096, description="N: samples per position in the energy loss")
    target_samples: int = Field(1, ge=1, le=2**16, description="M, samples of the autoencoder's posterior")


class MixtureHeadConfig(HeadConfig):
    """One draw of a mixture of normal distributions, which are functions of the hidden state; the energy score."""

    differentiable: ClassVar[bool] = False  # which component a sample is of is drawn

    kind: Literal["mixture"] = "mixture"
    num_layers: Layers = Field(1, description="hidden layers between the backbone's state and the components")
    components: int = Field(8, ge=1, le=4096, description="C, normal distributions of each position")
    model_samples: int = Field(4, ge=2, le=64, description="N: draws of noise in the energy loss")
    target_samples: int = Field(1, ge=1, le=2**16, description="M, samples of the autoencoder's posterior")


HEADS = Kinds(
    "calm.model.head",
    HeadConfig,
    {
        "energy": "calm_core.models.heads.energy:EnergyHead",
        "diffusion": "calm_core.models.heads.diffusion:DiffusionHead",
        "flow": "calm_core.models.heads.flow:FlowHead",
        "residual": "calm_core.models.heads.residual:ResidualHead",
        "mixture": "calm_core.models.heads.mixture:MixtureHead",
    },
)
AnyHeadConfig = Annotated[SerializeAsAny[HeadConfig], BeforeValidator(HEADS.parse)]
