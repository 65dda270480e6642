"""Facts of registered models."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from calm_core.store.facts.base import Facts


class RegistrationFacts(Facts, kind="registration"):
    """A version of a registered model.

    Attributes:
        promoted: Whether the alias pointed to this version once it was registered.
        reason: Why it did or did not, for people; artifacts of schema version 2 have none.
    """

    schema_version: ClassVar[int] = 3

    model_name: str
    version: Annotated[str, Field(pattern=r"^[0-9]+$")]
    alias: str
    model_uri: str
    promoted: bool = True
    reason: str = ""

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Until version 2, the alias moved to each version."""
        return (config, results) if version == 2 else super().upgrade(version, config, results)

    @model_validator(mode="after")
    def _uri_is_of_the_version(self) -> Self:
        if self.model_uri != (expected := f"models:/{self.model_name}/{self.version}"):
            raise ValueError(f"model_uri is {self.model_uri}, not {expected}")
        return self
