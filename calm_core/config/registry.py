"""Settings of the registry."""

from pydantic import Field

from calm_core.config.base import Section


class RegistryConfig(Section):
    """Where the model is registered in MLflow."""

    model_name: str = Field("calm", pattern=r"^[^/:.\"%'?#@]+$")
    alias: str = Field("champion", pattern=r"^[A-Za-z][\w-]*$")
