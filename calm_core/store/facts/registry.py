"""Facts of registered models."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from calm_core.store.facts.base import Facts, Record
from calm_core.store.facts.evaluation import Difference

VersionNumber = Annotated[str, Field(pattern=r"^[0-9]+$", max_length=19)]
LONGEST_TOLD = 1000
"""Characters of a line for people; tags of a registry have bounds."""
Told = Annotated[str, Field(max_length=LONGEST_TOLD)]


class Check(Record):
    """One of the rules of promotion, as it was met or not.

    Attributes:
        rule: Its name, e.g. "significant win".
        passed: Whether it allows the version to become champion.
        told: What was found, for people.
    """

    rule: Annotated[str, Field(max_length=64)]
    passed: bool
    told: Told


class Decided(Record):
    """Whether a version became champion, and why.

    Attributes:
        promoted: Whether it became champion.
        reason: For people.
        champion: The version that was champion until then; empty if none was.
        checks: The rules that were looked at.
        comparison: Of this version with that champion, on the same documents; None where none could be or had to be.
    """

    promoted: bool
    reason: Told = ""
    champion: VersionNumber | Literal[""] = ""
    checks: Annotated[list[Check], Field(max_length=16)] = []
    comparison: Difference | None = None


class RegistrationFacts(Facts, Decided, kind="registration"):
    """A version of a registered model.

    Attributes:
        promoted: Whether this version became champion; of artifacts until schema version 3, whether the alias pointed
            to it once it was registered. Artifacts of schema version 2 have no reason, and until version 3 there was
            no champion, check or comparison.
    """

    schema_version: ClassVar[int] = 4

    model_name: str
    version: VersionNumber
    alias: str
    model_uri: str
    promoted: bool = True

    @property
    def champion_uri(self) -> str:
        """The version that was champion until then; empty if none was."""
        return f"models:/{self.model_name}/{self.champion}" if self.champion else ""

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Until version 3, higher scores alone decided; until version 2, the alias moved to each version."""
        return (config, results) if version in (2, 3) else super().upgrade(version, config, results)

    @model_validator(mode="after")
    def _uri_is_of_the_version(self) -> Self:
        if self.model_uri != (expected := f"models:/{self.model_name}/{self.version}"):
            raise ValueError(f"model_uri is {self.model_uri}, not {expected}")
        return self
