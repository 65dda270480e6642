"""The head that a config names."""

from calm_core.config import CalmModelConfig
from calm_core.models.heads.base import Head
from calm_core.models.heads.diffusion import DiffusionHead
from calm_core.models.heads.energy import EnergyHead
from calm_core.models.heads.flow import FlowHead

_HEADS: dict[str, type[EnergyHead] | type[DiffusionHead] | type[FlowHead]] = {
    "energy": EnergyHead,
    "diffusion": DiffusionHead,
    "flow": FlowHead,
}


def make_head(config: CalmModelConfig, latent_size: int) -> Head:
    """The head that the config names, with new weights."""
    return _HEADS[config.head](config, latent_size)
