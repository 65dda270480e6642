"""The model that a CALM model learns from, by manifests alone."""

from calm_core.config import CalmConfig
from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import CalmFacts, ModelFacts, TransformerFacts

TEACHER = "teacher"
"""Name of the setting, and of the parent."""
SETTING = f"{CalmConfig.kind}.{TEACHER}"


def teacher_artifact(uri: str) -> Artifact[ModelFacts]:
    """The artifact that `calm.teacher` names.

    Raises:
        ConfigError: It is missing, damaged, or of another kind.
    """
    try:
        return Artifact[ModelFacts](uri, CalmFacts, TransformerFacts)
    except ArtifactError as error:
        raise ConfigError(f"{SETTING}: {error}") from None
