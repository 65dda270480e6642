"""The head that a config names."""

from calm_core.config import HEADS, HeadConfig
from calm_core.models.heads.base import Head


def make_head(config: HeadConfig, hidden_size: int, latent_size: int) -> Head:
    """The head that the config names, with new weights."""
    head: Head = HEADS.class_of(config.kind)(config, hidden_size, latent_size)
    return head
